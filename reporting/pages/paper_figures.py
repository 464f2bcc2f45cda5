"""The tables of ``docs/paper_figures.md`` on the figures of the SparseOpt paper.

Each function of ``PAGE`` reads stored results and returns Markdown.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from examples.common.markdown import table
from reporting import stored
from reporting.pages import gains, when_it_helps
from reporting.pages.parts import named
from reporting.statistics import by_arm

# The paper's figures, by the program that measures them.
FIGURES = {
    "skew": "1",
    "gradient_ratio": "2",
    "explored": "5 and 10",
    "student_teacher": "6 to 9",
    "accuracy": "3, 4, 11, 12 and 15 to 22",
}
SHOWN = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)  # sparsities


def load(name: str) -> dict[str, Any]:
    """Load the stored result of a program."""
    return stored.load(f"studies.paper.{name}")


def _rows(name: str, kind: str) -> list[dict[str, Any]]:
    (found,) = stored.select(load(name)["tables"], kind=kind)
    return found["rows"]


def met(record: Mapping[str, Any]) -> str:
    """State how many of the paper's claims are met."""
    found = [c["met"] for c in record["claims"] if c.get("published")]
    return f"{sum(found)} of {len(found)}"


def verdicts() -> str:
    """Show the verdict on every figure, and where the numbers come from."""
    rows = []
    for name, figure in FIGURES.items():
        record = load(name)
        rows.append(
            (
                figure,
                f"[`{name}.py`](../studies/paper/{name}.py)",
                met(record),
                f"*{record['verdict']}*",
                f"{record['commit'][:10]}, jax {record['versions']['jax']}",
            )
        )
    head = ("figure", "program", "the paper's claims met", "verdict", "measured at")
    return table(head, rows)


def claims(name: str) -> str:
    """Show the claims of one figure, with their limits."""
    rows = []
    for claim in load(name)["claims"]:
        limit, met = "-", "-"
        for key, words in (("at_least", "at least"), ("at_most", "at most")):
            if key in claim:
                limit = f"{words} {claim[key]:g}"
                met = "yes" if claim["met"] else "no"
        whose = "the paper" if claim.get("published") else "we"
        what = claim["what"].replace("|", r"\|")
        rows.append((whose, what, f"{claim['measured']:.3g}", limit, met))
    return table(("who says", "what", "measured", "limit", "met"), rows)


def gradient_ratio() -> str:
    """Show ratios by sparsity, below those of the theory and the paper."""
    record = load("gradient_ratio")
    rows = _rows("gradient_ratio", "ratios")
    theory = {row["sparsity"]: f"{row['theory']:.2f}" for row in rows}
    lines = [("theory, with BN", *(theory[s] for s in SHOWN))]
    for norm, points in record["paper"].items():
        # The last sparsity is ours.
        by_sparsity = dict(zip(theory, points, strict=False))
        cells = (f"{by_sparsity[s]:.2f}" if s in by_sparsity else "-" for s in SHOWN)
        lines.append((f"the paper, {norm}", *cells))
    for arm in dict.fromkeys(map(_arm, rows)):
        at_sparsity = {row["sparsity"]: row for row in rows if _arm(row) == arm}
        cells = (_with_sd(at_sparsity[s]["mean"], at_sparsity[s]["sd"]) for s in SHOWN)
        lines.append((arm, *cells))
    return table(("sparsity", *(f"{s:g}" for s in SHOWN)), lines)


def ratio_layers() -> str:
    """Show the ResNet's layers at the paper's largest sparsity, with BN."""
    rows = [
        row
        for row in _rows("gradient_ratio", "layers")
        if row["network"] == "ResNet, digits" and row["batch_norm"]
    ]
    layers = dict.fromkeys(row["layer"] for row in rows)
    inits = dict.fromkeys(row["init"] for row in rows)
    lines = []
    for layer in layers:
        by_init = {row["init"]: row for row in rows if row["layer"] == layer}
        cells = (_with_sd(by_init[init]["mean"], by_init[init]["sd"]) for init in inits)
        lines.append((layer.removesuffix("/kernel"), *cells))
    sparsity = rows[0]["sparsity"]
    head = (f"layer at {sparsity:g}, with BN", *(f"{init} init" for init in inits))
    return table(head, lines)


def _arm(row: Mapping[str, Any]) -> str:
    norm = "with BN" if row["batch_norm"] else "without BN"
    return f"{row['network']}, {norm}, {row['init']} init"


def skew() -> str:
    """Show the layers of both arms."""
    (found,) = load("skew")["tables"]
    head = (
        *("run", "layer", "neurons", "angle", "factors, sd", "factors, range"),
        *("factors moved by a change", "angle moved by a change", "by a step"),
    )
    lines = [
        (
            row["arm"],
            row["layer"].removesuffix("/kernel"),
            str(row["neurons"]),
            f"{row['angle']:.1f}°",
            f"{row['factor_sd']:.2f}",
            f"{row['factor_min']:.2f} to {row['factor_max']:.2f}",
            f"{100 * row['factors_moved']:.0f} %",
            f"{row['jump']:.1f}°",
            f"{row['noise']:.1f}°",
        )
        for row in found["rows"]
    ]
    return table(head, lines)


def one_neuron() -> str:
    """Show one neuron, by rate, task and strength of HAM."""
    head = (
        *("η", "inputs", "active", "HAM", "flips", "flips, rescaled"),
        *("converged", "converged, rescaled", "steps", "steps, rescaled"),
        *("ratio of steps", "end alike"),
    )
    lines = [
        (
            *_task(row),
            f"{row['alpha']:g}",
            *(_percent(row[k]) for k in ("flips", "flips_scaled")),
            *_speed(row),
            _percent(row["same_end"]),
        )
        for row in _rows("student_teacher", "one_neuron")
    ]
    return table(head, lines)


def first_sizes() -> str:
    """Show one neuron, by the size of its initial weights."""
    head = (
        *("η", "inputs", "active", "first weights", "converged"),
        *("converged, rescaled", "steps", "steps, rescaled", "ratio of steps"),
    )
    lines = [
        (
            *_task(row),
            f"x {row['size']:g}",
            *_speed(row),
        )
        for row in _rows("student_teacher", "first_sizes")
    ]
    return table(head, lines)


def two_neurons() -> str:
    """Show how often the dense one of two neurons is off at the end."""
    scalings = {"none": "unscaled", "own": "by sqrt(1 - s)", "rule": "by the rule"}
    head = (
        *("η", "inputs", "active", "HAM", "signs"),
        *(f"off, {words}" for words in scalings.values()),
        *(f"converged, {words}" for words in scalings.values()),
    )
    lines = [
        (
            *_task(row),
            f"{row['alpha']:g}",
            f"`{row['start']}`",
            *(_percent(row[f"off_{name}"]) for name in scalings),
            *(_percent(row[f"reached_{name}"]) for name in scalings),
        )
        for row in _rows("student_teacher", "two_neurons")
    ]
    return table(head, lines)


def explored() -> str:
    """Show explored fractions, with the paper's next to ours."""
    (found,) = load("explored")["tables"]
    head = ("sparsity", "correction", "explored %", "the paper's %", "accuracy %")
    lines = [
        (
            f"{row['sparsity']:g}",
            "none" if row["arm"] == "RigL" else row["arm"].removeprefix("corrected "),
            _with_sd(row["explored_mean"], row["explored_sd"]),
            f"{row['paper']:.1f}",
            _with_sd(row["accuracy_mean"], row["accuracy_sd"], digits=1),
        )
        for row in found["rows"]
    ]
    return table(head, lines)


def accuracy_without() -> str:
    """Show accuracies without a correction, by condition and length."""
    return _by_length(lambda arms: gains.accuracy(arms["none"]))


def accuracy_fan_in() -> str:
    """Show what the paper's correction adds to them."""
    return _by_length(lambda arms: gains.interval(arms["fan_in"]))


def accuracy_batch_variance() -> str:
    """Show what the correction by measured variances adds to them."""
    return _by_length(lambda arms: gains.interval(arms["batch_variance"]))


def _by_length(cell: Callable[[Mapping[str, Any]], str]) -> str:
    """Return a row for each method and sparsity, a column for each way to train it."""
    found: dict[str, dict[str, str]] = {}
    for entry in load("accuracy")["conditions"]:
        condition = entry["condition"]
        way = "norms kept" if condition["keep_norms"] else f"{condition['length']} x"
        method = when_it_helps.METHODS[condition["method"]]
        base = f"{method}, {100 * condition['sparsity']:g} %"
        if condition["ham"]:
            base += ", HAM"
        found.setdefault(base, {})[way] = cell(by_arm(entry))
    ways = list(dict.fromkeys(way for cells in found.values() for way in cells))
    lines = [
        (base, *(cells.get(way, "-") for way in ways)) for base, cells in found.items()
    ]
    return table(("condition", *ways), lines)


def _with_sd(mean: float, sd: float | None, digits: int = 2) -> str:
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def _task(row: Mapping[str, Any]) -> tuple[str, ...]:
    return f"{row['eta']:g}", str(row["inputs"]), str(row["active"])


def _speed(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the converged fractions, plain and rescaled, and the numbers of steps."""
    return (
        *(_percent(row[key]) for key in ("reached", "reached_scaled")),
        *(_number(row[key]) for key in ("steps", "steps_scaled")),
        "-" if row["steps_ratio"] is None else f"{row['steps_ratio']:.2f}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


PAGE = named(
    *(verdicts, skew, gradient_ratio, ratio_layers, explored),
    *(one_neuron, first_sizes, two_neurons),
    *(accuracy_without, accuracy_fan_in, accuracy_batch_variance),
) | {f"{name}_claims": functools.partial(claims, name) for name in FIGURES}

"""The tables of ``docs/when_it_helps.md``, from stored results, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.common.markdown import table
from reporting.pages.parts import named
from reporting.statistics import accuracies, by_arm, difference
from reporting.stored import load, select

ARMS = ("fan_in", "batch_variance", "weight_norm")
METHODS = {"rigl": "RigL", "set": "SET", "static": "static", "spread": "static"}
# Conditions whose learning rates are shown: their runs differ most in the rates they
# bear.
BY_RATE = ("RigL, 90 %", "RigL, 95 %", "RigL, 97 %")


def conditions() -> str:
    """Show the accuracy after the last epoch, and what corrections add to it."""
    head = ("condition", "without, %", *(f"{_name(arm)}, points" for arm in ARMS))
    lines, together = [], _together(load("studies.convergence"))
    for entry in load("studies.convergence")["conditions"]:
        name, rows = entry["condition"]["name"], by_arm(entry)
        cells = [accuracy(rows["none"])]
        for arm in ARMS:
            cells.append(_gain(rows[arm], together[name, arm]))
        lines.append((name, *cells))
    return table(head, lines) + _legend(load("studies.convergence"))


def pooled() -> str:
    """Show mean gains over several conditions, averaged seed by seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in load("studies.convergence")["conditions"]:
        condition = entry["condition"]
        on = f"{condition['network']}, {METHODS[condition['method']]}"
        groups.setdefault(on, []).append(entry)
    head = ("conditions", "of them", *(f"{_name(arm)}, points" for arm in ARMS))
    lines = []
    for name, entries in groups.items():
        cells = []
        for arm in ARMS:
            ends = np.mean([accuracies(one, arm) for one in entries], axis=0)
            none = np.mean([accuracies(one, "none") for one in entries], axis=0)
            gain = difference(ends, none)
            cells.append(f"{_gain(gain)} (p {gain['p']:.2g})")
        lines.append((name, str(len(entries)), *cells))
    return table(head, lines)


def candidates() -> str:
    """Show what the other candidates add, where they were tried."""
    tried = [
        entry
        for entry in load("studies.convergence")["conditions"]
        if len(entry["arms"]) > 4
    ]
    head = ("correction", *(entry["condition"]["name"] for entry in tried))
    arms = [row["arm"] for row in tried[0]["arms"][1:]]
    together = _together(load("studies.convergence"))
    lines = [
        (
            _name(arm),
            *(
                _gain(by_arm(entry)[arm], together[entry["condition"]["name"], arm])
                for entry in tried
            ),
        )
        for arm in arms
    ]
    return table(head, lines)


def starts() -> str:
    """Show accuracy after a ninth of the epochs, and epochs to the target."""
    head = (
        *("condition", "without, %", "fan-in, points", "batch variance, points"),
        *("target, %", "epochs, fan-in", "epochs, batch variance"),
        "spread of fan-ins: without, fan-in, batch variance",
    )
    lines: list[tuple[str, ...]] = []
    for entry in load("studies.convergence")["conditions"]:
        rows = by_arm(entry)
        none, shown = rows["none"], [rows[arm] for arm in ARMS[:2]]
        early = [_points(row["early_mean"], row["early_p"]) for row in shown]
        target = "-" if none["target"] is None else f"{100 * none['target']:.0f}"
        ratios = [
            "-"
            if row["epochs_ratio"] is None
            else f"x {row['epochs_ratio']:.2f} ({row['both_reach_it']})"
            for row in shown
        ]
        spreads = (f"{row['fan_in_spread']:.2f}" for row in (none, *shown))
        cells = (f"{100 * none['early_accuracy']:.1f}", *early, target, *ratios)
        lines.append((entry["condition"]["name"], *cells, ", ".join(spreads)))
    return table(head, lines)


def rates() -> str:
    """Show the tuning: accuracy by learning rate on held-out images."""
    tried = _tried(load("studies.convergence"), BY_RATE)
    shown = {
        name: [row for row in rows if row["arm"] in ("none", *ARMS)]
        for name, rows in tried.items()
    }
    return _rates(shown)


def further() -> str:
    """Show the added conditions, each arm with its chosen rate."""
    record = load("studies.convergence.further")
    together = _together(record)
    arms = (*ARMS[:2], "fan_in_but_head")
    names = (f"{_name(arm)}, points (rate)" for arm in arms)
    head = ("condition", "without, % (rate)", *names)
    lines = []
    for entry in record["conditions"]:
        name, rows = entry["condition"]["name"], by_arm(entry)
        cells = [f"{accuracy(rows['none'])} ({rows['none']['rate']:g})"]
        for arm in arms:
            gain = "-"
            if arm in rows:
                gain = _gain(rows[arm], together[name, arm])
                gain = f"{gain} ({rows[arm]['rate']:g})"
            cells.append(gain)
        lines.append((name, *cells))
    return f"{table(head, lines)}{_legend(record)}"


def further_rates() -> str:
    """Show the tuning of the added conditions, at all rates that were tried."""
    record = load("studies.convergence.further")
    names = [entry["condition"]["name"] for entry in record["conditions"]]
    return _rates(_tried(record, names))


def _tried(
    record: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Return the trials of some conditions of a record."""
    found = {
        entry["condition"]["name"]: entry["tried"] for entry in record["conditions"]
    }
    return {name: found[name] for name in names}


def _rates(tried: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a row per condition and arm, a column per rate; the best is bold."""
    steps = sorted({row["rate"] for rows in tried.values() for row in rows})
    lines = []
    for name, rows in tried.items():
        for arm in dict.fromkeys(row["arm"] for row in rows):
            by_rate = {row["rate"]: row for row in rows if row["arm"] == arm}
            cells = (
                _bold_if(
                    by_rate[rate]["best"], f"{100 * by_rate[rate]['accuracy']:.1f}"
                )
                if rate in by_rate
                else "-"
                for rate in steps
            )
            lines.append((name, _name(arm), *cells))
    return table(("condition", "correction", *(f"{rate:g}" for rate in steps)), lines)


def scales() -> str:
    """Show exponents of fan-in, from the start of a run to its end."""
    (found,) = select(load("studies.neuron_scales")["tables"], kind="exponents")
    head = ("run", "share of training", "deviation", "weights", "gradient", "pace")
    lines: list[tuple[str, ...]] = [("theory", "0", "0.50", "0.50", "0.00", "-0.50")]
    for row in found["rows"]:
        cells = (
            "-" if row[name] is None else f"{row[name]:.2f} ± {row[f'{name}_sd']:.2f}"
            for name in ("deviation", "weights", "gradient", "pace")
        )
        lines.append((row["run"], f"{row['share_of_training']:g}", *cells))
    return table(head, lines)


def jumps() -> str:
    """Show the effect of updates on the deviations, and the fan-in's prediction."""
    (found,) = select(load("studies.neuron_scales")["tables"], kind="jumps")
    head = ("run", "changes", "fan-in says", "measured", "share that it follows")
    lines = [
        (
            row["run"],
            str(row["changes"]),
            f"{row['said_by_fan_in']:.3f}",
            f"{row['measured']:.3f}",
            f"{row['follows']:.2f}",
        )
        for row in found["rows"]
    ]
    return table(head, lines)


def accuracy(row: Mapping[str, Any]) -> str:
    """Return the accuracy of an arm and its deviation over seeds, in percent."""
    return f"{100 * row['accuracy']:.1f} ± {100 * row['sd']:.1f}"


def interval(row: Mapping[str, Any]) -> str:
    """Return a mean difference and the ends of its interval, in points."""
    low, mean, high = (100 * row[key] for key in ("low", "mean", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _together(record: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Return the p-values of all tests together, by condition and arm."""
    (tests,) = select(record["tables"], kind="p_values")
    return {(row["condition"], row["arm"]): row["holm"] for row in tests["rows"]}


def _gain(row: Mapping[str, Any], holm: float = 1.0) -> str:
    """Return a difference and its interval; bold if significant among all tests."""
    return _bold_if(holm < 0.05, interval(row))


def _bold_if(condition: bool, text: str) -> str:
    return f"**{text}**" if condition else text


def _points(mean: float, p: float) -> str:
    return f"{100 * mean:+.1f} (p {p:.2g})"


def _name(arm: str) -> str:
    words = {"variance^1/4": "variance^(1/4)", "variance^1": "variance"}
    return words.get(arm, arm.replace("_", " ").replace("fan in", "fan-in"))


def _legend(record: Mapping[str, Any]) -> str:
    seeds = len(record["conditions"][0]["accuracies"][0])
    tests, version = len(_together(record)), record["versions"]["jax"]
    return (
        f"\n{seeds} seeds; differences by seed with their 95 % intervals; **bold** "
        f"where p < 0.05 among all {tests} tests (Holm). jax {version}.\n"
    )


PAGE = named(
    conditions, pooled, starts, rates, further, further_rates, candidates, scales, jumps
)

"""The tables of ``docs/results.md``: the papers' claims, and the results here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from examples.common.markdown import table
from reporting.pages import paper_figures
from reporting.pages.gains import at_same_rate, interval
from reporting.pages.parts import named
from reporting.pages.published import EARLY, GAINS, RIGL, SPARSEOPT, Published
from reporting.pages.readme import digits
from reporting.statistics import accuracies as accuracies_of
from reporting.statistics import by_arm, difference, epochs_at
from reporting.stored import load, select

OUT_OF_REACH = "*out of reach here*"
KEPT = "RigL, 95 %, norms kept"  # the paper's ablation, without numbers


def verdict(row: Mapping[str, Any], gain: float) -> str:
    """Return the verdict of a paired difference on a published gain.

    Args:
      row: with ``low`` and ``high``, the ends of its 95 % interval.
      gain: the paper's gain, in the same unit.

    Returns:
      Reproduced, if the interval is above 0; undecided, if it contains both 0 and the
      paper's gain; else not reproduced.
    """
    if row["low"] > 0.0:
        return "*reproduced*"
    return "*undecided*" if row["high"] >= gain else "*not reproduced*"


def _compared() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return the program and the record of every condition.

    The further ones are tuned at more learning rates, or separately.
    """
    return {
        entry["condition"]["name"]: (program, entry)
        for program in ("studies.convergence", "studies.convergence.further")
        for entry in load(program)["conditions"]
    }


def small_scale() -> str:
    """Show the correction's gains on a small network, next to the paper's."""
    alike, lines = at_same_rate(load("studies.convergence.same_rate")), []
    for name, (program, entry) in _compared().items():
        if name in GAINS or name == KEPT:
            again = alike.get((name, "fan_in"))
            cells = _against_the_paper(entry, GAINS.get(name), again)
            lines.append((*cells, f"`python -m {program}`"))
    return table((*_AGAINST_THE_PAPER, "command"), lines)


def photographs() -> str:
    """Show the correction's gains in a ResNet-8 on photographs, next to the paper's."""
    record = load("studies.photographs")
    alike, lines = at_same_rate(record), []
    for entry in record["conditions"]:
        name = entry["condition"]["name"]
        gain = GAINS.get(name.removeprefix("ResNet, "))
        if name.startswith("ResNet, ") and gain is not None:
            again = alike.get((name, "fan_in"))
            lines.append(_against_the_paper(entry, gain, again))
    return table(_AGAINST_THE_PAPER, lines)


_AGAINST_THE_PAPER = (
    *("condition", "the paper's gain", "gain here", "p", "seeds"),
    *("at the same rate", "verdict"),
)


def _against_the_paper(
    entry: Mapping[str, Any], gain: float | None, again: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """Return a condition's cells, from its name to the verdict on the paper's gain.

    ``again`` is the gain at the same learning rate, if it was measured; it is then what
    is judged.
    """
    row = by_arm(entry)["fan_in"]
    return (
        entry["condition"]["name"],
        "not given" if gain is None else f"{gain:+.2f}",
        interval(row),
        f"{row['p']:.2g}",
        str(len(entry["accuracies"][0])),
        interval(again) if again else "-",
        verdict(again or row, (gain or 0.0) / 100),
    )


def early() -> str:
    """Show gains during training at 97 %, next to the paper's."""
    found, lines = _compared(), []
    for name in ("RigL, 97 %", "SET, 97 %"):
        _, entry = found[name]
        epochs = np.shape(entry["accuracies"])[-1]
        for share, gain in EARLY.items():
            runs = (accuracies_of(entry, arm, share) for arm in ("fan_in", "none"))
            row = difference(*runs)
            lines.append(
                (
                    name,
                    f"{round(90 * share)} of 90",
                    f"{100 * gain:+.1f}",
                    f"{epochs_at(share, epochs)} of {epochs}",
                    interval(row),
                    verdict(row, gain),
                )
            )
    head = (
        *("condition", "the paper's epoch", "the paper's gain"),
        *("epoch here", "gain here", "verdict"),
    )
    return table(head, lines)


def figures() -> str:
    """Show the paper's figures that need little computing."""
    lines = []
    for name, figure in paper_figures.FIGURES.items():
        found = paper_figures.load(name)
        lines.append(
            (
                figure,
                paper_figures.met(found),
                f"*{found['verdict']}*",
                f"`python -m studies.paper.{name}`",
            )
        )
    return table(("figure", "claims met", "verdict", "command"), lines)


def accuracies() -> str:
    """Show the accuracies of SparseOpt's paper, and how to measure them."""
    return _published(SPARSEOPT)


def rigl() -> str:
    """Show RigL's accuracies, and how to measure them."""
    return _published(RIGL)


def others() -> str:
    """Show the claims of the papers on memory and on large batches."""
    head = ("claim", "here", "verdict", "command")
    return table(head, [*_smet(), *_lamb()])


def _published(rows: Sequence[Published]) -> str:
    lines = []
    for row in rows:
        lengths = ", ".join(map(str, row.lengths))
        cells = (row.what, lengths, ", ".join(row.numbers), OUT_OF_REACH)
        lines.append((*cells, f"`python -m {row.command}`"))
    head = ("what", "epochs", "the paper's top-1, %", "verdict", "command")
    return table(head, lines)


def _smet() -> Iterator[tuple[str, ...]]:
    """Yield SMET's Figure 1 and its losses, on the small language model."""
    entries = {
        entry["method"]: entry for entry in load("examples.language_model")["results"]
    }
    adam, smet = (entries[name] for name in ("sparse_adam", "smet"))
    setbacks = [1e3 * entry["setback"]["probe"]["mean"] for entry in (adam, smet)]
    command = "`python -m examples.language_model --seeds 3`"
    yield (
        "SMET: changes of the masks set sparse Adam's loss back, and not SMET's",
        f"{setbacks[0]:+.1f} against {setbacks[1]:+.1f} thousandths of a bit",
        "*reproduced*"
        if setbacks[0] > 0.0 and setbacks[1] <= setbacks[0] / 3
        else "*not reproduced*",
        command,
    )
    gaps = [entry["gap_to_dense"] for entry in (adam, smet)]
    yield (
        "SMET: it ends better than sparse Adam",
        f"{gaps[1]:+.3f} against {gaps[0]:+.3f} bits per byte over dense, not tuned",
        "*reproduced*" if gaps[1] < gaps[0] else "*undecided*",
        command,
    )
    rows = load("benchmarks.memory")["tables"][0]["rows"]
    sizes = [
        (row["leaf"] / rows[0]["leaf"], row["density"])
        for row in rows
        if row["optimizer"] == "Adam, active weights" and row["block"] > 1
    ]
    shares = [size / density for size, density in sizes]
    yield (
        "SMET: optimizer states shrink with the density",
        f"x {min(shares):.3f} to {max(shares):.3f} density, in blocks",
        "*reproduced*" if max(shares) < 1.05 else "*not reproduced*",
        "`python -m benchmarks.memory`",
    )


def _lamb() -> Iterator[tuple[str, ...]]:
    """Yield LAMB's claim, on images and on text."""
    for program, what in (
        ("studies.large_batch", "digits"),
        ("studies.large_batch.text", "text"),
    ):
        record = load(program)
        smallest = min(
            row["batch"] for entry in record["tables"] for row in entry["rows"]
        )
        for density in ("dense", "sparse"):
            claims = select(record["claims"], density=density)
            adam, lamb, ratio = (
                *select(claims, optimizer="Adam"),
                *select(claims, optimizer="LAMB"),
                *select(claims, of="LAMB", over="Adam"),
            )
            # If all reach only the smallest batch, the runs were too short.
            decided = any(entry["measured"] != smallest for entry in (adam, lamb))
            missed = "*not reproduced*" if decided else "*undecided*"
            yield (
                f"LAMB: its rule holds further than Adam's, {what}, {density}",
                f"Adam: {adam['measured']}, LAMB: {lamb['measured']}",
                "*reproduced*" if ratio["met"] else missed,
                f"`python -m {program}`",
            )


PAGE = named(digits, small_scale, photographs, early, figures, accuracies, rigl, others)

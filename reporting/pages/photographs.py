"""The tables of ``docs/when_it_helps.md`` on photographs, from stored results."""

from collections.abc import Mapping
from typing import Any

from examples.common.markdown import table
from reporting.pages.gains import (
    accuracy,
    arm_name,
    gain_of,
    interval,
    legend,
    p_together,
    points,
    table_at_same_rate,
    table_of_exponents,
    table_of_rates,
    tried_in,
)
from reporting.statistics import by_arm
from reporting.stored import load, select

PROGRAM = "studies.photographs"
ARMS = ("none", "fan_in", "batch_variance")
CLASSES = ("few", "usual", "many")


def photographs() -> str:
    """Show accuracy after the last epoch, what corrections gain, and dead neurons."""
    record = load(PROGRAM)
    together = p_together(record)
    head = (
        *("condition", "without, % (rate)", "fan-in, points (rate)"),
        *("batch variance, points (rate)", "dead neurons, %", "spread of fan-ins"),
    )
    lines = []
    for entry in record["conditions"]:
        name, rows = entry["condition"]["name"], by_arm(entry)
        none, *others = (rows[arm] for arm in ARMS)
        cells = [f"{accuracy(none)} ({none['rate']:g})"]
        for row in others:
            gain = gain_of(row, together[name, row["arm"]])
            cells.append(f"{gain} ({row['rate']:g})")
        dead = ", ".join(f"{100 * rows[arm]['dead']:.1f}" for arm in ARMS)
        spread = ", ".join(f"{rows[arm]['fan_in_spread']:.2f}" for arm in ARMS)
        lines.append((name, *cells, dead, spread))
    missing = "; ".join(record["missing"])
    rest = f"Not measured yet: {missing}.\n" if missing else ""
    columns = "The last two columns: without, fan-in, batch variance.\n"
    return f"{table(head, lines)}{legend(record)}{columns}{rest}"


def photograph_starts() -> str:
    """Show the accuracy after the first epochs, and what corrections gain there."""
    lines = []
    for entry in load(PROGRAM)["conditions"]:
        none, *others = (by_arm(entry)[arm] for arm in ARMS)
        gains = (points(row["early_mean"], row["early_p"]) for row in others)
        early = f"{100 * none['early_accuracy']:.1f}"
        lines.append((entry["condition"]["name"], early, *gains))
    head = ("condition", "without, %", "fan-in, points", "batch variance, points")
    return table(head, lines)


def least_fan_in() -> str:
    """Show what a least fan-in gains over none."""
    (found,) = select(load(PROGRAM)["tables"], kind="least_fan_in")
    lines = [
        (
            row["condition"],
            f"{_arm(row['arm'])}, least fan-in of 2",
            _arm(row["against"]),
            interval(row),
            f"{row['p']:.2g}",
        )
        for row in found["rows"]
    ]
    return table(("condition", "arm", "against", "points", "p"), lines)


def photograph_same_rate() -> str:
    """Show gains over uncorrected runs with the same learning rate."""
    return table_at_same_rate(load(PROGRAM))


def photograph_rates() -> str:
    """Show accuracy by learning rate, on the images held out for tuning."""
    record = load(PROGRAM)
    tuned = [
        entry["condition"]["name"] for entry in record["conditions"] if entry["tried"]
    ]
    return table_of_rates(tried_in(record, tuned))


def neuron_deaths() -> str:
    """Show what updates of the masks do to neurons, by fan-in."""
    (found,) = select(load(f"{PROGRAM}.neurons")["tables"], kind="neurons")
    head = (
        *("network", "correction", "rule", "dropped, %", "grown and kept, %"),
        *("lost their last weight", "got one again", "no bias above 0, %"),
        *("dead at the end, %", "accuracy, %"),
    )
    lines = [
        (
            row["network"],
            _arm(row["arm"]),
            row["rule"],
            _shares(row, "dropped"),
            _shares(row, "kept"),
            f"{row['died']:.0f}",
            f"{row['revived']:.0f}",
            _percent(row["closed"]),
            f"{100 * row['dead']:.1f}",
            accuracy(row),
        )
        for row in found["rows"]
    ]
    return table(head, lines)


def photograph_scales() -> str:
    """Show exponents of fan-in, from the start of an uncorrected run to its end."""
    (found,) = select(load(f"{PROGRAM}.neurons")["tables"], kind="exponents")
    return table_of_exponents(found["rows"])


def _arm(arm: str) -> str:
    words = {"none": "none", "fan_in_floored": "fan-in"}
    return words.get(arm, arm_name(arm))


def _shares(row: Mapping[str, Any], part: str) -> str:
    return ", ".join(_percent(row[f"{part}_{name}"]) for name in CLASSES)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"

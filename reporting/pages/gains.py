"""Cells and tables of gains, of learning rates, and of exponents of fan-in."""

from collections.abc import Mapping, Sequence
from typing import Any

from examples.common.markdown import table
from reporting.stored import select


def accuracy(row: Mapping[str, Any]) -> str:
    """Return the accuracy of an arm and its deviation over seeds, in percent."""
    return f"{100 * row['accuracy']:.1f} ± {100 * row['sd']:.1f}"


def interval(row: Mapping[str, Any]) -> str:
    """Return a mean difference and the ends of its interval, in points."""
    low, mean, high = (100 * row[key] for key in ("low", "mean", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def gain_of(row: Mapping[str, Any], holm: float = 1.0) -> str:
    """Return a difference and its interval, bold if significant among all tests."""
    return bold_if(holm < 0.05, interval(row))


def points(mean: float, p: float) -> str:
    """Return a mean difference, in points, and its p-value."""
    return f"{100 * mean:+.1f} (p {p:.2g})"


def bold_if(condition: bool, text: str) -> str:
    """Return the text, bold if so."""
    return f"**{text}**" if condition else text


def arm_name(arm: str) -> str:
    """Return what tables call a correction."""
    words = {"variance^1/4": "variance^(1/4)", "variance^1": "variance"}
    return words.get(arm, arm.replace("_", " ").replace("fan in", "fan-in"))


def p_together(record: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Return the p-values among all tests, by condition and arm."""
    (tests,) = select(record["tables"], kind="p_values")
    return {(row["condition"], row["arm"]): row["holm"] for row in tests["rows"]}


def at_same_rate(record: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return gains over uncorrected runs with the correction's learning rate.

    By condition and arm. They were measured where the interval of a gain is above 0.
    """
    (found,) = select(record["tables"], kind="same_rate")
    return {(row["condition"], row["arm"]): row for row in found["rows"]}


def table_at_same_rate(record: Mapping[str, Any]) -> str:
    """Write a row for each gain that was compared at the same learning rate."""
    lines = [
        (
            condition,
            arm_name(arm),
            f"{row['rate']:g}",
            accuracy(row),
            interval(row),
            f"{row['p']:.2g}",
        )
        for (condition, arm), row in at_same_rate(record).items()
    ]
    head = ("condition", "correction", "rate of both", "without, %", "points", "p")
    return table(head, lines)


def tried_in(
    record: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Return the learning rates that were tried, by condition."""
    found = {
        entry["condition"]["name"]: entry["tried"] for entry in record["conditions"]
    }
    return {name: found[name] for name in names}


def table_of_rates(tried: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Write a row for each condition and arm, a column for each rate, the best bold."""
    steps = sorted({row["rate"] for rows in tried.values() for row in rows})
    lines = []
    for name, rows in tried.items():
        for arm in dict.fromkeys(row["arm"] for row in rows):
            by_rate = {row["rate"]: row for row in rows if row["arm"] == arm}
            cells = (
                bold_if(by_rate[rate]["best"], f"{100 * by_rate[rate]['accuracy']:.1f}")
                if rate in by_rate
                else "-"
                for rate in steps
            )
            lines.append((name, arm_name(arm), *cells))
    return table(("condition", "correction", *(f"{rate:g}" for rate in steps)), lines)


def table_of_exponents(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a row for each moment of each run, below what the theory says."""
    names = ("deviation", "weights", "gradient", "pace")
    lines: list[tuple[str, ...]] = [("theory", "0", "0.50", "0.50", "0.00", "-0.50")]
    for row in rows:
        cells = (_exponent(row[name], row[f"{name}_sd"]) for name in names)
        lines.append((row["run"], f"{row['share_of_training']:g}", *cells))
    return table(("run", "share of training", *names), lines)


def _exponent(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def legend(record: Mapping[str, Any]) -> str:
    """Return the sentence below a table of gains."""
    counts = {len(entry["accuracies"][0]) for entry in record["conditions"]}
    seeds = " or ".join(map(str, sorted(counts)))
    tests, version = len(p_together(record)), record["versions"]["jax"]
    return (
        f"\n{seeds} seeds; differences by seed with their 95 % intervals; **bold** "
        f"where p < 0.05 among all {tests} tests (Holm). jax {version}.\n"
    )

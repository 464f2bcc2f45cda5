"""The tables of ``docs/surviving.md``."""

from collections.abc import Callable, Iterator
from typing import Any

from examples.common.markdown import table
from reporting.pages.parts import named
from reporting.stored import load, path_of, select

Line = tuple[str, str, str]


def reliability() -> str:
    """Show what runs have survived, as a Markdown table."""
    lines: list[Line] = []
    for part, (what, read) in _PARTS.items():
        program = f"studies.reliability.{part}"
        if path_of(program).exists():
            lines += read(load(program))
        else:
            lines.append((what, "-", f"not measured yet: `python -m {program}`"))
    return table(("what happened", "how often", "what was found"), lines)


def _ended(by: str) -> Callable[[dict[str, Any]], Iterator[Line]]:
    def read(record: dict[str, Any]) -> Iterator[Line]:
        for row in record["tables"][0]["rows"]:
            yield (
                f"{by}: {row['training']}",
                f"{row['ended']}, half of them aimed at a save",
                f"{row['lost']} checkpoints lost, {row['corrupt']} corrupt, "
                f"{row['different']} different from the uninterrupted run",
            )

    return read


def _faults(record: dict[str, Any]) -> Iterator[Line]:
    for row in record["tables"][0]["rows"]:
        yield (
            f"{row['fault']} during a save",
            f"{row['met']}, {row['heard of']} of them raised an error",
            f"{row['lost']} checkpoints lost, {row['corrupt']} corrupt; "
            f"{row['went on']} runs continued and saved again",
        )


def _non_finite(record: dict[str, Any]) -> Iterator[Line]:
    rows = record["tables"][0]["rows"]
    trainings = sum(row["trainings"] for row in rows)
    nonzero, miscounted = (
        sum(row[what] for row in rows) for what in ("nonzero", "miscounted")
    )
    yield (
        f"NaN and infinite gradients at each of {rows[0]['steps']} steps",
        f"{len(rows)} topologies, {trainings:,} trainings",
        f"{nonzero} masked weights nonzero, {miscounted} steps with a wrong number of "
        "active weights",
    )


def _invariants(record: dict[str, Any]) -> Iterator[Line]:
    rows = record["tables"][0]["rows"]
    failed = sum(row["failed"] for row in rows)
    yield (
        "random weights, gradients, masks and shapes (Hypothesis)",
        f"{len(rows)} properties, {rows[0]['examples']:,} examples each",
        f"{failed} properties failed",
    )


def _flushing(record: dict[str, Any]) -> Iterator[Line]:
    (timed,) = select(record["tables"], kind="flushing")
    (counted,) = select(record["tables"], kind="flushes")
    times = {row["name"]: row["median_ms"] for row in timed["rows"]}
    flushes = {row["checkpoint"]: row["flushes"] for row in counted["rows"]}
    yield (
        "cost of flushing a checkpoint to disk, in the background",
        f"{timed['key']['weights']:,} weights with momentum and masks",
        f"{flushes['with']} flushes; {times['with']:.0f} ms a save, "
        f"{times['without']:.0f} ms without them",
    )


# For each program of the study: the row without a record, and how to read a record.
_PARTS: dict[str, tuple[str, Callable[[dict[str, Any]], Iterator[Line]]]] = {
    "kills": ("SIGKILL", _ended("SIGKILL")),
    "power": ("a power failure", _ended("a power failure, simulated")),
    "faults": ("a full disk, an unwritable folder", _faults),
    "non_finite": ("NaN and infinite gradients", _non_finite),
    "invariants": ("random weights, gradients, masks", _invariants),
    "flushing": ("cost of flushing", _flushing),
}

PAGE = named(reliability)

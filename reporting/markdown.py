"""Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a head.

    >>> print(table(("a", "b"), [("1", "2")]), end="")
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def named(*tables: Callable[[], str]) -> dict[str, Callable[[], str]]:
    """The tables of a page, by the names that stand in its markers."""
    return {table.__name__: table for table in tables}


def measured_on(record: Mapping[str, Any]) -> str:
    """What times of a record depend on most, as a sentence."""
    cores, version = record["machine"]["cores"], record["versions"]["jax"]
    return f"{cores} cores, jax {version}, medians."

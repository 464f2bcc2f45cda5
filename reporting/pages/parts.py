"""What the tables of a page have in common."""

from collections.abc import Callable, Mapping
from typing import Any


def named(*tables: Callable[[], str]) -> dict[str, Callable[[], str]]:
    """The tables of a page, by the names that stand in its markers."""
    return {table.__name__: table for table in tables}


def measured_on(record: Mapping[str, Any]) -> str:
    """What times of a record depend on most, as a sentence."""
    cores, version = record["machine"]["cores"], record["versions"]["jax"]
    words = "1 core" if cores == 1 else f"{cores} cores"
    busy = record["machine"].get("load", 0.0) > cores + 1
    beside = ", beside other work on the machine" if busy else ""
    return f"{words}, jax {version}, medians{beside}."

"""Helpers shared by the tables of all pages."""

from collections.abc import Callable, Mapping
from typing import Any


def named(*tables: Callable[[], str]) -> dict[str, Callable[[], str]]:
    """Return the tables of a page, by the names in their markers."""
    return {table.__name__: table for table in tables}


def measured_on(record: Mapping[str, Any]) -> str:
    """State in a sentence what the times of a record depend on most."""
    cores, version = record["machine"]["cores"], record["versions"]["jax"]
    words = "1 core" if cores == 1 else f"{cores} cores"
    busy = record["machine"].get("load", 0.0) > cores + 1
    beside = ", with other work on the machine" if busy else ""
    return f"{words}, jax {version}, medians{beside}."

"""Records that programs have stored, and pictures of them.

Records are stored next to the programs: ``studies.paper.skew`` in
``studies/results/paper/skew.json``.
"""

import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def path_of(program: str, device: str = "", root: Path = ROOT) -> Path:
    """Return the path of a record.

    Args:
      program: the module that measures.
      device: the device that was measured, unless it is a CPU.
      root: the checkout.

    Returns:
      The path.
    """
    folder, *names = program.split(".")
    file = "-".join(filter(None, (names.pop(), device)))
    return Path(root, folder, "results", *names, f"{file}.json")


def load(program: str) -> dict[str, Any]:
    """Load the record of a program; it is cached, so callers must not change it."""
    return _read(path_of(program))


def select(entries: Iterable[dict[str, Any]], **key: Any) -> list[dict[str, Any]]:
    """Return the tables or claims of a record whose keys have these values.

    >>> tables = [{"key": {"kind": "step"}}, {"key": {"kind": "step", "batch": 32}}]
    >>> select(tables, batch=32)
    [{'key': {'kind': 'step', 'batch': 32}}]
    """
    return [entry for entry in entries if key.items() <= entry["key"].items()]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, completely or not at all."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(aside, path)


def write_picture(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as PNG.

    The file does not name the versions that drew it; the record has all versions.
    """
    figure.savefig(path, dpi=110, metadata={"Software": None})


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())

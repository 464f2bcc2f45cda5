"""Writes the tables of the README from the stored results.

    python benchmarks/tables.py

A test keeps the README equal to what this writes.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"


def load(name: str) -> dict[str, Any]:
    """A stored result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def between(text: str, name: str, content: str) -> str:
    """The text with the content put between the markers of this name."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    head, _, rest = text.partition(begin)
    _, marker, tail = rest.partition(end)
    if not marker:
        raise ValueError(f"the README has no markers {begin.strip()} and {end}")
    return head + begin + content + marker + tail

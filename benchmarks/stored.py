"""The results that benchmarks have stored."""

import functools
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def load(name: str) -> dict[str, Any]:
    """The record of a benchmark, read once and shared: it is not to be changed.

    Args:
      name: of the benchmark; ``"paper/skew"`` lies in a folder.

    Returns:
      What ``harness.Report`` has stored.
    """
    return _read(RESULTS / f"{name}.json")


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())

"""The results that benchmarks have stored, and the pictures beside them."""

import functools
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def load(name: str) -> dict[str, Any]:
    """The record of a benchmark, read once and shared: it is not to be changed.

    Args:
      name: of the benchmark; ``"paper/skew"`` lies in a folder.

    Returns:
      What ``harness.Report`` has stored.
    """
    return _read(RESULTS / f"{name}.json")


def write_picture(figure: Any, path: Path) -> None:
    """Writes a figure of matplotlib as PNG.

    Nothing of the versions that drew it: the record has those of the rest.
    """
    figure.savefig(path, dpi=110, metadata={"Software": None})


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())

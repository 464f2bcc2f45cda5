"""What the figures of the SparseOpt paper share: claims, a verdict, and how to draw.

The paper is Adnan et al., 2026 (arXiv 2605.27541). A claim that it makes is told apart
from one of ours, and the verdict goes by the paper's alone.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The other benchmarks are programs, too, that are not installed.
from reporting import harness

# Colours that the colour-blind can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


class Report(harness.Report):
    """A report on one figure, stored in ``benchmarks/results/paper``."""

    def __init__(self, name: str, options: harness.Options, root: Path = harness.ROOT):
        """Opens the report, as ``harness.Report`` does."""
        super().__init__(f"paper/{name}", options, root)

    def published(self, what: str, measured: float, **limit: float) -> None:
        """Adds a claim that the paper makes, with a limit that we have set beforehand.

        Args:
          what: the number in words.
          measured: its value.
          **limit: ``at_least`` or ``at_most``.
        """
        self.claim(what, measured, **limit)
        self.record["claims"][-1]["published"] = True

    def store(self) -> None:
        """Writes the record with its verdict."""
        self.record["verdict"] = verdict(self.record["claims"])
        print(f"\nVerdict on what the paper claims: {self.record['verdict']}.")
        super().store()


def verdict(claims: Iterable[Mapping[str, Any]]) -> str:
    """What has become of the claims that the paper makes.

    >>> verdict([{"published": True, "met": True}, {"met": False}])
    'reproduced'
    """
    met = [claim["met"] for claim in claims if claim.get("published")]
    if not met:
        raise ValueError("no claim of the paper was looked at")
    if all(met):
        return "reproduced"
    return "partly reproduced" if any(met) else "not reproduced"


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure, and its axes in an array (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained")
    places: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in places.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, places


def legend(axes: Axes, **options: Any) -> None:
    """A legend without a frame."""
    axes.legend(frameon=False, fontsize=8, **options)

"""One style for all figures."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Safe for colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def panels(
    rows: int, columns: int, size: tuple[float, float], *, sharey: bool = False
) -> tuple[Figure, Any]:
    """Return a figure, and its axes in an array (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained")
    places: Any = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    for axes in places.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, places


def legend(axes: Axes, **options: Any) -> None:
    """Add a legend without a frame."""
    axes.legend(frameon=False, fontsize=8, **options)

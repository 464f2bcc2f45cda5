"""What pictures of comparisons have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase


def grouped(
    runs: Sequence[Mapping[str, Any]], key: str
) -> dict[str, list[Mapping[str, Any]]]:
    """The runs by what they have under a key, in the order of the first of each."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run[key], []).append(run)
    return groups


def without_frame(axes: Axes) -> None:
    """Leaves the lines to the left and below, and makes the title small."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)


def legend_above(figure: FigureBase, axes: Axes, *, title: str, columns: int) -> None:
    """Names the lines of some axes above a picture, under its title.

    Args:
      figure: the picture, or a part of it.
      axes: whose lines they are.
      title: what stands above them.
      columns: how many names stand side by side.
    """
    legend = figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        title=title,
        title_fontsize=12,
    )
    for line in legend.get_lines():
        line.set_linewidth(3)

"""Helpers shared by figures that compare methods."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase


def grouped(
    runs: Sequence[Mapping[str, Any]], key: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Group the runs by the value of a key, in order of first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run[key], []).append(run)
    return groups


def without_frame(axes: Axes) -> None:
    """Keep only the left and the bottom line of the frame, and make the title small."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)


def legend_above(figure: FigureBase, axes: Axes, *, title: str, columns: int) -> None:
    """Add a legend above a figure, under its title, for the lines of some axes.

    Args:
      figure: the figure, or a part of it.
      axes: the axes that hold the lines.
      title: the title above the legend.
      columns: number of legend entries side by side.
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

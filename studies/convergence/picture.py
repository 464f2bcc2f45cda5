"""Accuracy against epochs, a panel for each condition."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reporting.figures import COLORS, panels

STYLE = {
    "none": "0.35",
    "fan_in": COLORS[1],
    "batch_variance": COLORS[0],
    "weight_norm": COLORS[2],
}


def draw(conditions: Sequence[Mapping[str, Any]], columns: int = 3) -> Figure:
    """A panel for each condition, a line for each arm: mean and standard deviation."""
    columns = min(columns, len(conditions))
    rows = -(-len(conditions) // columns)
    figure, places = panels(rows, columns, (4.0 * columns, 2.6 * rows))
    for axes, own in zip(places.flat, conditions, strict=False):
        for row, runs in zip(own["arms"], own["accuracies"], strict=True):
            if row["arm"] in STYLE:
                _line(axes, row["arm"], 100 * np.asarray(runs))
        axes.set_title(own["condition"]["name"], fontsize=9)
        axes.tick_params(labelsize=8)
    for axes in places.flat[len(conditions) :]:
        axes.set_visible(False)
    figure.supxlabel("epochs", fontsize=9)
    what = "synthetic images, but where it says digits"
    figure.supylabel(f"test accuracy, %; {what}", fontsize=9)
    labels = places.flat[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _line(axes: Any, arm: str, runs: np.ndarray) -> None:
    epochs = np.arange(1, runs.shape[1] + 1)
    mean, sd = runs.mean(axis=0), runs.std(axis=0, ddof=1)
    color, label = STYLE[arm], arm.replace("_", " ")
    axes.plot(epochs, mean, color=color, label=label, linewidth=1.2)
    axes.fill_between(
        epochs, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0
    )

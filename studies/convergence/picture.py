"""Accuracy against epochs, a panel for each condition.

    python -m studies.convergence.picture

draws the stored results anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reporting import stored

# Stored results, and how many panels stand side by side.
RECORDS = {"convergence": 3, "convergence_further": 3, "paper/accuracy": 4}

COLORS = {
    "none": "0.35",
    "fan_in": "tab:orange",
    "batch_variance": "tab:blue",
    "weight_norm": "tab:green",
}


def draw(conditions: Sequence[Mapping[str, Any]], columns: int = 3) -> Figure:
    """A panel for each condition, a line for each arm, mean and standard deviation.

    Args:
      conditions: as the record has them.
      columns: panels side by side.

    Returns:
      The figure.
    """
    columns = min(columns, len(conditions))
    rows = -(-len(conditions) // columns)
    figure = Figure((4.0 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, own in zip(panels, conditions, strict=False):
        for row, runs in zip(own["arms"], own["accuracies"], strict=True):
            if row["arm"] in COLORS:
                _line(axes, row["arm"], 100 * np.asarray(runs))
        axes.set_title(own["condition"]["name"], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in panels[len(conditions) :]:
        axes.set_visible(False)
    figure.supxlabel("epochs", fontsize=9)
    what = "synthetic images, but where it says digits"
    figure.supylabel(f"test accuracy, %; {what}", fontsize=9)
    labels = panels[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _line(axes: Any, arm: str, runs: np.ndarray) -> None:
    epochs = np.arange(1, runs.shape[1] + 1)
    mean, sd = runs.mean(axis=0), runs.std(axis=0, ddof=1)
    color, label = COLORS[arm], arm.replace("_", " ")
    axes.plot(epochs, mean, color=color, label=label, linewidth=1.2)
    axes.fill_between(
        epochs, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0
    )


if __name__ == "__main__":
    for name, columns in RECORDS.items():
        picture = draw(stored.load(name)["conditions"], columns)
        stored.write_picture(picture, stored.RESULTS / f"{name}.png")

"""Figures of the gains under each condition, and of accuracy over epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reporting.figures import COLORS, panels
from reporting.statistics import by_arm
from reporting.stored import select

STYLE = {
    "none": "0.35",
    "fan_in": COLORS[1],
    "batch_variance": COLORS[0],
    "weight_norm": COLORS[2],
}


def draw_gains(record: Mapping[str, Any]) -> Figure:
    """Draw a panel for each correction and a row for each condition: gain and interval.

    A filled marker is significant among all tests of gains, by Holm's method.
    """
    (tests,) = select(record["tables"], kind="p_values")
    holm = {(row["condition"], row["arm"]): row["holm"] for row in tests["rows"]}
    compared = {arm for _, arm in holm}
    arms = [arm for arm in STYLE if arm in compared]
    names = [entry["condition"]["name"] for entry in record["conditions"]]
    size = (3.0 * len(arms) + 1.5, 0.24 * len(names) + 1.2)
    figure, places = panels(1, len(arms), size, sharey=True)
    for axes, arm in zip(places.flat, arms, strict=True):
        if axes is not places[0, 0]:
            axes.sharex(places[0, 0])
        axes.axvline(0, color="0.5", linewidth=0.8)
        for place, condition in enumerate(record["conditions"]):
            row = by_arm(condition).get(arm)
            if row is None:
                continue
            low, mean, high = (100 * row[key] for key in ("low", "mean", "high"))
            color, stands = STYLE[arm], holm[names[place], arm] < 0.05
            axes.plot((low, high), (place, place), color=color, linewidth=1.5)
            face = color if stands else "white"
            axes.plot(mean, place, "o", color=color, markerfacecolor=face, markersize=5)
        axes.set_title(arm.replace("_", " ").replace("fan in", "fan-in"), fontsize=9)
        axes.tick_params(labelsize=8)
    places[0, 0].set_yticks(range(len(names)), names)
    places[0, 0].invert_yaxis()
    figure.supxlabel("gain over no correction, points of test accuracy", fontsize=9)
    return figure


def draw(conditions: Sequence[Mapping[str, Any]], columns: int = 3) -> Figure:
    """Draw a panel for each condition, a line for each arm: mean and deviation."""
    columns = min(columns, len(conditions))
    rows = -(-len(conditions) // columns)
    figure, places = panels(rows, columns, (4.0 * columns, 2.6 * rows))
    for axes, entry in zip(places.flat, conditions, strict=False):
        for row, runs in zip(entry["arms"], entry["accuracies"], strict=True):
            if row["arm"] in STYLE:
                _line(axes, row["arm"], 100 * np.asarray(runs))
        axes.set_title(entry["condition"]["name"], fontsize=9)
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

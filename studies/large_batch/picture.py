"""Epochs to the loss over the batch, one line for each optimizer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from reporting import stored
from reporting.figures import COLORS, panels

# The network of each record.
TRAINED = {
    "studies.large_batch": "Digits, a small ResNet",
    "studies.large_batch.text": "Text, a small decoder",
}
STYLES = {
    "SGD": ("0.35", "o"),
    "LARS": (COLORS[0], "s"),
    "Adam": (COLORS[2], "^"),
    "LAMB": (COLORS[1], "D"),
}
EPOCHS = (1, 2, 5, 10, 20, 50, 100)
# Open markers are drawn at this multiple of the last epoch, side by side at this
# fraction of the axis.
ABOVE, BESIDE = 1.3, 0.03


def draw(record: Mapping[str, Any]) -> Figure:
    """Draw a panel for dense networks and one for sparse ones, a line per optimizer.

    If not all seeds reach the loss, there is an open marker above the last epoch and a
    gap in the line.
    """
    tables = stored.select(record["tables"], kind="rule")
    rows = [row for table in tables for row in table["rows"]]
    last, batches = rows[0]["of_epochs"], sorted({row["batch"] for row in rows})
    first = min((row["epochs"] for row in rows if row["epochs"]), default=last / 2)
    figure, places = panels(1, len(tables), (8.0, 3.6), sharey=True)
    for axes, table in zip(places[0], tables, strict=True):
        _scale(axes, batches, last)
        _lines(axes, table["rows"], last)
        axes.set_title(table["key"]["density"], fontsize=9)
        axes.set_xlabel("batch", fontsize=9)
    places[0, 0].set_ylim(first / 1.4, last * ABOVE**2)
    places[0, 0].set_ylabel("epochs", fontsize=9)
    key, trained = tables[0]["key"], TRAINED[record["program"]]
    goal = f"epochs to a loss of {key['target']:.3g}"
    title = f"{trained}: {goal}, mean of {key['seeds']} seeds"
    figure.suptitle(title, fontsize=10)
    missed = _open("0.35", "o", f"not all seeds within {last} epochs")
    handles = [*places[0, 0].get_legend_handles_labels()[0], missed]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    return figure


def _scale(axes: Any, batches: Sequence[int], last: int) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(batches[0] / 1.6, batches[-1] * 1.6)
    axes.xaxis.set_major_locator(FixedLocator(batches))
    ticks = [*(epochs for epochs in EPOCHS if epochs < last), last]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)


def _lines(axes: Any, rows: Sequence[Mapping[str, Any]], last: int) -> None:
    axes.axhline(last, color="0.8", linewidth=0.8, label="_last")
    left, right = axes.get_xlim()
    missed: dict[int, list[str]] = {}
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        epochs_at = {
            row["batch"]: row["epochs"] for row in rows if row["optimizer"] == name
        }
        for batch, epochs in epochs_at.items():
            if epochs is None:
                missed.setdefault(batch, []).append(name)
        color, marker = STYLES[name]
        y = [math.nan if epochs is None else epochs for epochs in epochs_at.values()]
        axes.plot(
            [*epochs_at], y, marker=marker, color=color, label=name, markersize=4.5
        )
    for batch, names in missed.items():
        for place, name in enumerate(names):
            aside = BESIDE * (place - (len(names) - 1) / 2)
            line = _open(*STYLES[name], f"_{name} at {batch}")
            line.set_data([batch * (right / left) ** aside], [last * ABOVE])
            axes.add_line(line)


def _open(color: str, marker: str, label: str) -> Line2D:
    return Line2D(
        [],
        [],
        color=color,
        marker=marker,
        markerfacecolor="none",
        linestyle="none",
        markersize=5.5,
        label=label,
    )

"""Epochs to the loss against the batch, from what large_batch.py and its like store.

    python -m studies.large_batch.picture

The programs that measure draw the picture themselves. Started by itself this one draws
both again from the stored records, and measures nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from reporting import stored

# Of each record, what was trained.
TRAINED = {
    "large_batch": "Digits, a small ResNet",
    "large_batch_text": "Text, a small decoder",
}
STYLES = {
    "SGD": ("0.35", "o"),
    "LARS": ("tab:blue", "s"),
    "Adam": ("tab:green", "^"),
    "LAMB": ("tab:orange", "D"),
}
RULE = ": the rule, "  # in the titles of the tables that are drawn
EPOCHS = (1, 2, 5, 10, 20, 50, 100)
# Open markers stand so many times above the last epoch, and beside each other by this
# part of the axis.
ABOVE, BESIDE = 1.3, 0.03


def draw(record: Mapping[str, Any]) -> Figure:
    """A panel for dense networks and one for sparse ones, a line for each optimizer.

    Where not all seeds reach the loss there is an open marker above the last epoch, and
    a gap in the line.

    Args:
      record: as ``large_batch.py`` stores it.

    Returns:
      The figure.
    """
    tables = [table for table in record["tables"] if RULE in table["title"]]
    rows = [row for table in tables for row in table["rows"]]
    last, batches = rows[0]["of_epochs"], sorted({row["batch"] for row in rows})
    first = min((row["epochs"] for row in rows if row["epochs"]), default=last / 2)
    figure = Figure((8.0, 3.6), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, table in zip(panels, tables, strict=True):
        _scale(axes, batches, last)
        _lines(axes, table["rows"], last)
        axes.set_title(table["title"].split(",")[0], fontsize=9)
        axes.set_xlabel("batch", fontsize=9)
    panels[0].set_ylim(first / 1.4, last * ABOVE**2)
    panels[0].set_ylabel("epochs", fontsize=9)
    what, seeds = tables[0]["title"].split(RULE)
    target, trained = float(what.rpartition(" ")[2]), TRAINED[record["benchmark"]]
    title = f"{trained}: epochs to a loss of {target:.3g}, mean of {seeds}"
    figure.suptitle(title, fontsize=10)
    missed = _open("0.35", "o", f"not all seeds within {last} epochs")
    handles = [*panels[0].get_legend_handles_labels()[0], missed]
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
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _lines(axes: Any, rows: Sequence[Mapping[str, Any]], last: int) -> None:
    axes.axhline(last, color="0.8", linewidth=0.8, label="_last")
    left, right = axes.get_xlim()
    missed: dict[int, list[str]] = {}
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        own = {row["batch"]: row["epochs"] for row in rows if row["optimizer"] == name}
        for batch, epochs in own.items():
            if epochs is None:
                missed.setdefault(batch, []).append(name)
        color, marker = STYLES[name]
        y = [math.nan if epochs is None else epochs for epochs in own.values()]
        axes.plot([*own], y, marker=marker, color=color, label=name, markersize=4.5)
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


def main() -> None:
    """Draws the pictures of the stored records again."""
    for name in TRAINED:
        picture = draw(stored.load(name))
        stored.write_picture(picture, stored.RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()

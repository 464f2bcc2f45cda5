"""Pictures that sum up long tables of the pages, from the stored results."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from reporting.figures import COLORS, legend, panels
from reporting.stored import ROOT, load, select

# Colours of the methods' sparsities; the dense network is a line.
SPARSITIES = {
    "0.5": COLORS[0],
    "0.75 or 0.8": COLORS[2],
    "0.9": COLORS[1],
    "learned": COLORS[6],
}


def method_results() -> Figure:
    """Draw the accuracy of every method on small networks against the dense one."""
    found = select(load("benchmarks.methods")["tables"], kind="training")
    figure, places = panels(1, len(found), (9.0, 6.2), sharey=True)
    for axes, entry in zip(places[0], found, strict=True):
        dense, *rows = entry["rows"]
        for place, row in enumerate(reversed(rows)):
            axes.errorbar(
                x=100 * row["accuracy_mean"],
                y=place,
                xerr=100 * (row["accuracy_sd"] or 0.0),
                color=SPARSITIES[_sparsity(row["sparsity"])],
                fmt="o",
                markersize=4,
                capsize=2,
            )
        axes.axvline(100 * dense["accuracy_mean"], color="k", linestyle="--", lw=1)
        axes.set(title=entry["key"]["network"], xlabel="test accuracy, %")
        names = [" ".join(filter(None, (x["method"], _short(x)))) for x in rows]
        axes.set_yticks(range(len(rows)), names[::-1], fontsize=8)
    for name, color in SPARSITIES.items():
        places[0, 0].plot([], [], "o", color=color, markersize=4, label=name)
    places[0, 0].plot([], [], "k--", lw=1, label="dense")
    legend(places[0, 0], title="sparsity", title_fontsize=8, loc="lower left")
    return figure


def mask_updates() -> Figure:
    """Draw how many times as long updates of large masks take by sorting."""
    found = load("benchmarks.mask_changes")["tables"]
    rows = {
        entry["key"]["method"]: {row["name"]: row for row in entry["rows"]}
        for entry in found
    }
    ratios = [by["argsort"]["ratio"]["median"] for by in rows.values()]
    figure, places = panels(1, 1, (7.5, 5.2))
    (axes,) = places[0]
    axes.barh(range(len(ratios)), ratios[::-1], color=COLORS[0])
    axes.set_yticks(range(len(ratios)), list(rows)[::-1], fontsize=8)
    axes.axvline(1.0, color="k", linestyle="--", lw=1)
    axes.set_xlabel("time by argsort / time of the update")
    return figure


def memory() -> Figure:
    """Draw the bytes of the optimizer's state and of a step against the density."""
    (found,) = load("benchmarks.memory")["tables"]
    dense, *rows = found["rows"]
    figure, places = panels(1, 2, (9.0, 3.6))
    styles = {"Adam, active weights": "-", "SMET": "--"}
    blocks = sorted({row["block"] for row in rows})
    for axes, part in zip(places[0], ("state", "step"), strict=True):
        for name, style in styles.items():
            for block, color in zip(blocks, COLORS, strict=False):
                line = [
                    (row["density"], row[part] / 2**20)
                    for row in rows
                    if (row["optimizer"], row["block"]) == (name, block)
                ]
                label = f"{name}, " + ("single" if block == 1 else f"blocks of {block}")
                axes.plot(
                    *zip(*line, strict=True),
                    marker="o",
                    markersize=4,
                    linestyle=style,
                    color=color,
                    label=label,
                )
        axes.axhline(dense[part] / 2**20, color="k", lw=1, label="Adam, dense")
        axes.set(xlabel="density", ylabel="MiB", ylim=(0, None))
    places[0, 0].set_title("optimizer's state")
    places[0, 1].set_title("compiled step, with parameters and gradients")
    legend(places[0, 1], loc="lower right")
    return figure


PICTURES: dict[Path, Callable[[], Figure]] = {
    ROOT / "docs" / "images" / f"{name}.png": picture
    for name, picture in (
        ("method_results", method_results),
        ("mask_updates", mask_updates),
        ("memory", memory),
    )
}


def _sparsity(asked: float | None) -> str:
    if asked is None:
        return "learned"
    return "0.75 or 0.8" if 0.5 < asked < 0.9 else f"{asked:g}"


def _short(row: dict[str, str]) -> str:
    """A structure, where it is not that of single weights."""
    return "" if row["structure"] == "unstructured" else row["structure"]

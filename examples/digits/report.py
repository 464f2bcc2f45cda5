"""The comparison as a table and as a figure, both made from the rows of finished runs.

A row is the entry of a run in ``log.jsonl``; rows with the same label differ only in
the seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.table import Table

from examples.common.figures import grouped, legend_above, without_frame
from examples.common.markdown import table

TARGET = 0.95
HEAD = (
    "method",
    "test accuracy %",
    "active weights",
    f"epochs to {TARGET:.0%}",
    "explored",
    "ms per step",
)

Runs = Sequence[Mapping[str, Any]]

# Safe for colour-blind readers; the stronger colour marks a corrected gradient.
_COLORS = {
    ("dense", False): "#000000",
    ("static", False): "#999999",
    ("static", True): "#CC79A7",
    ("set", False): "#56B4E9",
    ("set", True): "#0072B2",
    ("rigl", False): "#E69F00",
    ("rigl", True): "#D55E00",
}


def summarize(runs: Runs, weights: int) -> list[dict[str, Any]]:
    """Return one entry for each method.

    Args:
      runs: rows of finished runs.
      weights: number of weights in all kernels, active or not.

    Returns:
      Entries as ``results.json`` holds them, in the order of the rows.
    """
    return [_summarize(runs_of, weights) for runs_of in grouped(runs, "label").values()]


def cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an entry as the cells of a table row, under ``HEAD``."""
    accuracy, sd = entry["test_accuracy_mean"], entry["test_accuracy_sd"]
    runs, reached = len(entry["test_accuracy"]), entry["reached_target"]
    to_target = "-" if not reached else f"{entry['epochs_to_target']:.1f}"
    if 0 < reached < runs:
        to_target += f" ({reached}/{runs})"
    return (
        entry["label"],
        f"{100 * accuracy:.2f}" + (f" ± {100 * sd:.2f}" if runs > 1 else ""),
        f"{entry['active']:,}",
        to_target,
        f"{entry['explored']:.1%}",
        f"{entry['ms_per_step']:.2f}",
    )


def rich_table(entries: Sequence[Mapping[str, Any]], caption: str) -> Table:
    """Return the table for a terminal."""
    table = Table(caption=caption, caption_justify="left")
    for index, name in enumerate(HEAD):
        in_two_lines = name.replace(" ", "\n", 1)
        table.add_column(in_two_lines, justify="right" if index else "left")
    for entry in entries:
        table.add_row(*cells(entry))
    return table


def markdown(entries: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Return the table in Markdown."""
    return f"{table(HEAD, map(cells, entries), numbers=True)}\n{caption}\n"


def draw(runs: Runs, title: str, path: Path) -> None:
    """Draw the figure: curves above, the final masks below.

    Args:
      runs: rows of finished runs.
      title: the title of the figure.
      path: a PNG file to write.
    """
    by_label = grouped(runs, "label")
    sparse = {
        label: runs_of for label, runs_of in by_label.items() if runs_of[0]["layers"]
    }
    corrected = {
        label: runs_of
        for label, runs_of in sparse.items()
        if runs_of[0]["correction"] != "none"
    }
    figure = Figure(figsize=(11, 7 if sparse else 4), dpi=160, layout="constrained")
    parts: Any = figure.subfigures(2 if sparse else 1, squeeze=False, hspace=0.04)
    above, *below = parts[:, 0]
    accuracy, loss = above.subplots(1, 2)
    _draw_accuracies(accuracy, by_label)
    _draw_curves(loss, by_label, "test_loss")
    loss.set(title="Test loss", xlabel="epoch")
    if any(
        np.isfinite(_curves(runs_of, "test_loss")).any()
        for runs_of in by_label.values()
    ):
        loss.set_yscale("log")  # finite numbers only: a whole comparison may diverge
    if sparse:
        if corrected:
            density, factor, fan_in = below[0].subplots(1, 3)
            _draw_factors(factor, corrected)
        else:
            density, fan_in = below[0].subplots(1, 2)
        _draw_densities(density, next(iter(sparse.values())))
        _draw_fan_ins(fan_in, sparse)
    for axes in figure.axes:
        without_frame(axes)
    legend_above(above, accuracy, title=title, columns=len(by_label))
    figure.savefig(path, format="png")


def _summarize(runs: Runs, weights: int) -> dict[str, Any]:
    curves = _curves(runs, "test_accuracy")
    final = curves[:, -1]
    # The first epoch at the target; argmax of all False is 0.
    reached = (curves >= TARGET).any(axis=1)
    epochs = (1 + (curves >= TARGET).argmax(axis=1))[reached]
    layers = runs[0]["layers"]
    active = sum(sum(layer["fan_in"]) for layer in layers) if layers else weights
    return {
        "method": runs[0]["method"],
        "correction": runs[0]["correction"],
        "label": runs[0]["label"],
        "test_accuracy": final.tolist(),
        "test_accuracy_mean": float(final.mean()),
        "test_accuracy_sd": float(final.std(ddof=1)) if len(runs) > 1 else None,
        "active": active,
        "weights": weights,
        "reached_target": int(reached.sum()),
        "epochs_to_target": float(epochs.mean()) if reached.any() else None,
        "explored": float(np.mean([run["explored"] for run in runs])),
        "ms_per_step": float(np.median([run["ms_per_step"] for run in runs])),
    }


def _curves(runs: Runs, name: str) -> np.ndarray:
    """Return a curve for each run, (runs, epochs); null in the log is NaN."""
    return np.array([run["curves"][name] for run in runs], dtype=float)


def _color(run: Mapping[str, Any]) -> str:
    return _COLORS[run["method"], run["correction"] != "none"]


def _draw_curves(axes: Axes, by_label: Mapping[str, Runs], name: str) -> None:
    for label, runs in by_label.items():
        curves = _curves(runs, name)
        mean, sd = curves.mean(axis=0), curves.std(axis=0, ddof=min(1, len(runs) - 1))
        epochs = np.arange(1, len(mean) + 1)
        axes.plot(epochs, mean, color=_color(runs[0]), label=label, linewidth=1.6)
        axes.fill_between(
            epochs,
            np.maximum(mean - sd, mean / 2),  # above 0, for a logarithmic axis
            mean + sd,
            color=_color(runs[0]),
            alpha=0.12,
            linewidth=0,
        )
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)


def _draw_accuracies(axes: Axes, by_label: Mapping[str, Runs]) -> None:
    _draw_curves(axes, by_label, "test_accuracy")
    means = [_curves(runs, "test_accuracy").mean(axis=0) for runs in by_label.values()]
    # With the first epochs, all that follows would be squeezed into a line.
    bottom = min(mean[len(mean) // 3 :].min() for mean in means)
    axes.set(title="Test accuracy", xlabel="epoch", ylim=(bottom - 0.02, 1.0))
    axes.axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _layers(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the layers from the image to the logits; the log sorts them by name."""
    order = {"stem": 0, "head": 2}
    return sorted(
        run["layers"], key=lambda layer: order.get(layer["path"].split("/")[0], 1)
    )


def _layer_axis(axes: Axes, layers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Assign each layer its height, the first at the top."""
    axes.set_ylim(len(layers) - 0.4, -0.6)
    return np.arange(len(layers))


def _draw_densities(axes: Axes, runs: Runs) -> None:
    """Draw one method's densities, which are the same for all sparse methods."""
    layers = _layers(runs[0])
    heights = _layer_axis(axes, layers)
    names = [layer["path"].removesuffix("/kernel") for layer in layers]
    axes.set_yticks(heights, names)
    active = [sum(layer["fan_in"]) for layer in layers]
    densities = [n / layer["size"] for n, layer in zip(active, layers, strict=True)]
    axes.barh(heights, densities, color="#bbbbbb")
    for height, density, n, layer in zip(
        heights, densities, active, layers, strict=True
    ):
        axes.annotate(
            f"{n:,} of {layer['size']:,}",
            (density, height),
            xytext=(3, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=8,
        )
    axes.set(title="Density of each layer", xlabel="active weights")
    axes.set_xlim(0, 1.45 * max(densities))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_factors(axes: Axes, by_label: Mapping[str, Runs]) -> None:
    for index, runs in enumerate(by_label.values()):
        shift = 0.6 * ((index + 0.5) / len(by_label) - 0.5)
        all_layers = [_layers(run) for run in runs]
        for place, height in enumerate(_layer_axis(axes, all_layers[0]) + shift):
            factors = np.concatenate([layers[place]["factor"] for layers in all_layers])
            low, first, middle, third, high = np.quantile(
                factors, [0, 0.25, 0.5, 0.75, 1]
            )
            color = _color(runs[0])
            axes.plot([low, high], [height] * 2, color=color, linewidth=1)
            axes.plot([first, third], [height] * 2, color=color, linewidth=4)
            axes.plot(middle, height, "o", color="white", markeredgecolor=color)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(
        title="Correction factors of its neurons",
        xlabel="factor (range, quartiles, median)",
    )
    axes.tick_params(
        axis="y", left=False, labelleft=False
    )  # as in the panel to the left
    axes.grid(axis="x", alpha=0.25)


def _draw_fan_ins(axes: Axes, by_label: Mapping[str, Runs]) -> None:
    """Draw fan-ins relative to the layer's mean, so that layers can be pooled."""
    relative = {
        label: np.concatenate(
            [
                np.array(layer["fan_in"]) / np.mean(layer["fan_in"])
                for run in runs
                for layer in run["layers"]
            ]
        )
        for label, runs in by_label.items()
    }
    most = 3.0
    for label, runs in by_label.items():
        values = np.minimum(relative[label], most)
        axes.hist(
            values,
            bins=np.arange(0, most + 0.5, 0.25).tolist(),
            weights=np.full(len(values), 1 / len(values)),
            histtype="step",
            linewidth=1.6,
            color=_color(runs[0]),
        )
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(title="Fan-in of all neurons", xlabel="fan-in / mean of the layer")
    axes.set_xticks([0, 1, 2, most], ["0", "1", "2", f"≥ {most:g}"])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", alpha=0.25)

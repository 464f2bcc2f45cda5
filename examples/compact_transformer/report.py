"""The comparison as tables and as a figure, made from the rows of finished runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.common.figures import grouped, legend_above, without_frame
from examples.common.markdown import table

Runs = Sequence[Mapping[str, Any]]

LABELS = {
    "dense": "dense",
    "unstructured": "single weights, in dense arrays",
    "blocks": "active blocks only",
}
# Safe for colour-blind readers.
_COLORS = {"dense": "#000000", "unstructured": "#0072B2", "blocks": "#D55E00"}


def summarize(runs: Runs) -> list[dict[str, Any]]:
    """Return one entry for each method, in the order of the rows."""
    return [_summarize(of_method) for of_method in grouped(runs, "method").values()]


def _summarize(runs: Runs) -> dict[str, Any]:
    curves = np.array([run["held_out"] for run in runs])  # (seeds, evaluations)
    deviation = curves.std(axis=0, ddof=1).tolist() if len(runs) > 1 else None
    medians = {
        name: float(np.median([run[name] for run in runs]))
        for name in ("ms_per_step", "ms_per_update")
    }
    taken = ("method", "parameter_bytes", "optimizer_bytes", "evaluated")
    return {
        **{name: runs[0][name] for name in taken},
        **medians,
        "seeds": len(runs),
        "held_out": {"mean": curves.mean(axis=0).tolist(), "sd": deviation},
    }


def curves(results: Mapping[str, Any]) -> str:
    """Return held-out loss after every eighth of the steps, as a Markdown table."""
    entries = results["results"]
    head = ("bits per byte after step", *(f"{n:,}" for n in entries[0]["evaluated"]))
    lines = []
    for entry in entries:
        cells = [f"{mean:.3f}" for mean in entry["held_out"]["mean"]]
        if entry["held_out"]["sd"]:
            cells[-1] += f" ± {entry['held_out']['sd'][-1]:.3f}"
        lines.append((LABELS[entry["method"]], *cells))
    return table(head, lines, numbers=True)


def costs(results: Mapping[str, Any]) -> str:
    """Return times and bytes, as a Markdown table."""
    head = ("", "a step", "dense / it", "a step with an update", "parameters", "state")
    by_method = {entry["method"]: entry for entry in results["results"]}
    lines = []
    for name, entry in by_method.items():
        ratio, update = "-", "-"
        if "dense" in by_method:
            ratio = f"{by_method['dense']['ms_per_step'] / entry['ms_per_step']:.2f}x"
        if entry["ms_per_update"]:
            update = f"{entry['ms_per_update']:.0f} ms"
        sizes = [
            f"{entry[kind] / 2**20:.1f} MiB"
            for kind in ("parameter_bytes", "optimizer_bytes")
        ]
        step = f"{entry['ms_per_step']:.0f} ms"
        lines.append((LABELS[name], step, ratio, update, *sizes))
    return table(head, lines, numbers=True)


def caption(results: Mapping[str, Any]) -> str:
    """Describe the tables in a sentence or two."""
    config, seeds = results["config"], results["results"][0]["seeds"]
    method = {"rigl": "RigL", "set": "SET"}[config["topology"]]
    return (
        f"{method} at a sparsity of {config['sparsity']:g}, blocks of "
        f"{config['block']}: {results['active_weights']:,} of "
        f"{results['sparse_weights']:,} weights active; {results['parameters']:,} "
        f"parameters, {seeds} {'seed' if seeds == 1 else 'seeds'}, median step times, "
        "all methods in turn."
    )


def markdown(results: Mapping[str, Any]) -> str:
    """Return both tables for a page."""
    return f"{curves(results)}\n{costs(results)}\n{caption(results)}\n"


def draw(runs: Runs, path: Path) -> None:
    """Draw the figure: held-out loss by steps and by time.

    Args:
      runs: rows of finished runs.
      path: a PNG file to write.
    """
    figure = Figure(figsize=(9, 3.8), dpi=160, layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for name, of_method in grouped(runs, "method").items():
        curve = np.mean([run["held_out"] for run in of_method], axis=0)
        steps = np.array(of_method[0]["evaluated"])
        seconds = np.median([run["ms_per_step"] for run in of_method]) / 1e3
        style = {"color": _COLORS[name], "label": LABELS[name], "marker": "o"}
        by_step.plot(steps, curve, **style)
        by_time.plot(steps * seconds, curve, **style)
    by_step.set(xlabel="step", ylabel="bits per byte of held-out text")
    by_time.set(xlabel="seconds of steps")
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        without_frame(axes)
    title = "A small LLaMA, dense and with active blocks only: by step and by time"
    legend_above(figure, by_step, title=title, columns=len(LABELS))
    figure.savefig(path, format="png")

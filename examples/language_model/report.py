"""The comparison as a table and as a figure, both made from the rows of finished runs.

A row is the entry of a run in ``log.jsonl``; rows of the same method differ only in the
seed. Losses are in bits per byte.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from examples.common.figures import grouped, legend_above, without_frame
from examples.common.markdown import table
from examples.language_model.jumps import AROUND, differences, jumps

HEAD = (
    "method",
    "learning rate",
    "bits per byte",
    "gap",
    "jump, probe",
    "jump, training",
    "setback, probe",
    "setback, training",
    "optimizer",
    "ms per step",
)
# Columns for which a terminal of 80 characters has no room.
NOT_IN_TERMINAL = ("learning rate", "jump, training", "setback, training")
SMOOTHED = 20  # steps
MEASURES = ("jump", "setback")
WHERE = ("probe", "train")

Runs = Sequence[Mapping[str, Any]]

# Safe for colour-blind readers.
_COLORS = {"dense": "#000000", "sparse_adam": "#0072B2", "smet": "#D55E00"}


def summarize(runs: Runs) -> list[dict[str, Any]]:
    """Return an entry for each method, as in ``results.json``, in the order of rows."""
    by_method = grouped(runs, "method")
    dense = by_method.get("dense")
    return [_summarize(same_method, dense) for same_method in by_method.values()]


def ratios(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return SMET's jump and setback relative to sparse Adam's, on probe and training.

    Entries are left out where sparse Adam's is not above 0.
    """
    by_method = {entry["method"]: entry for entry in entries}
    if not {"smet", "sparse_adam"} <= by_method.keys():
        return {}
    smet, adam = by_method["smet"], by_method["sparse_adam"]
    return {
        measure: {
            where: smet[measure][where]["mean"] / adam[measure][where]["mean"]
            for where in WHERE
            if adam[measure][where]["mean"] > 0
        }
        for measure in MEASURES
    }


def cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an entry as the cells of a table row, under ``HEAD``."""
    gap = entry["gap_to_dense"]
    return (
        entry["label"],
        f"{entry['learning_rate']:g}",
        _spread(entry["bits_per_byte"], "{:.3f}"),
        "-" if gap is None else f"{gap:+.3f}",
        *(
            "-"
            if entry[measure] is None
            else _spread(entry[measure][where], "{:+.1f}", 1000)
            for measure in MEASURES
            for where in WHERE
        ),
        f"{entry['optimizer_bytes'] / 1e6:.2f} MB",
        f"{entry['ms_per_step']:.1f}",
    )


def rich_table(entries: Sequence[Mapping[str, Any]], caption: str) -> Table:
    """Return the table for a terminal."""
    table = Table(caption=caption, caption_justify="left")
    shown = [index for index, name in enumerate(HEAD) if name not in NOT_IN_TERMINAL]
    for index in shown:
        in_two_lines = HEAD[index].replace(" ", "\n", 1)
        table.add_column(in_two_lines, justify="right" if index else "left")
    for entry in entries:
        row = cells(entry)
        table.add_row(*(row[index] for index in shown))
    return table


def markdown(entries: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Return the table in Markdown."""
    return f"{table(HEAD, map(cells, entries), numbers=True)}\n{caption}\n"


def draw(runs: Runs, title: str, path: Path) -> None:
    """Draw the figure: the training above, the updates of the masks below.

    Args:
      runs: rows of finished runs.
      title: the title of the figure.
      path: a PNG file to write.
    """
    figure = Figure(figsize=(11, 8), dpi=160, layout="constrained")
    (train, validation), (after, setbacks) = figure.subplots(2, 2)
    for method, same_method in grouped(runs, "method").items():
        style = {"color": _COLORS[method], "label": same_method[0]["label"]}
        _draw_train(train, same_method, style)
        _draw_validation(validation, same_method, style)
        if method != "dense":
            _draw_after(after, same_method, style)
            _draw_setbacks(setbacks, same_method, style)
    train.set(title=f"Training loss, mean of {SMOOTHED} steps", xlabel="step")
    _cut_start(train)
    validation.set(title="Held-out loss", xlabel="step")
    after.set(
        title="Loss of the probe with an update minus without it, mean over updates",
        xlabel="steps after the update",
    )
    setbacks.set(title="Setback of each update, probe", xlabel="step")
    for axes in (after, setbacks):
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    for axes in figure.axes:
        axes.set_ylabel("bits per byte")
        axes.grid(alpha=0.25)
        without_frame(axes)
    legend_above(figure, train, title=title, columns=len(_COLORS))
    figure.savefig(path, format="png")


def _summarize(runs: Runs, dense: Runs | None) -> dict[str, Any]:
    final = _final(runs)
    gap = None if dense is None else float((final - _final(dense)).mean())
    return {
        "method": runs[0]["method"],
        "label": runs[0]["label"],
        "learning_rate": runs[0]["learning_rate"],
        "seeds": [run["seed"] for run in runs],
        "bits_per_byte": _statistics(final),
        "gap_to_dense": gap,
        "jump": _on_both(_jumps, runs),
        "setback": None if runs[0]["method"] == "dense" else _on_both(_setbacks, runs),
        "optimizer_bytes": runs[0]["optimizer_bytes"],
        "ms_per_step": float(np.median([run["ms_per_step"] for run in runs])),
    }


def _final(runs: Runs) -> np.ndarray:
    values = [run["validation"]["bits_per_byte"][-1] for run in runs]
    return np.array(values, dtype=float)


def _losses(runs: Runs, where: str) -> np.ndarray:
    """Return losses, (runs, steps); null is NaN."""
    return np.array([run[where] for run in runs], dtype=float)


def _jumps(runs: Runs, where: str) -> np.ndarray:
    """Return the jumps, (runs, changes)."""
    changes = runs[0]["changes"]
    return np.stack([jumps(losses, changes) for losses in _losses(runs, where)])


def _differences(runs: Runs, where: str) -> np.ndarray:
    """Return losses after each update minus without it, (runs, changes, AROUND)."""
    changes = runs[0]["changes"]
    twins = np.array([run["twins"][where] for run in runs], dtype=float)
    return np.stack(
        [
            differences(losses, changes, twin)
            for losses, twin in zip(_losses(runs, where), twins, strict=True)
        ]
    )


def _setbacks(runs: Runs, where: str) -> np.ndarray:
    """Return the setbacks, (runs, changes)."""
    return _differences(runs, where).mean(axis=-1)


def _on_both(function: Any, runs: Runs) -> dict[str, Any]:
    """Return statistics of a function on the probe and on the training batches."""
    return {where: _statistics(function(runs, where).mean(axis=1)) for where in WHERE}


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """Return mean and standard deviation over seeds, and the values themselves."""
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "values": values.tolist(),
    }


def _spread(statistics: Mapping[str, Any], form: str, scale: float = 1.0) -> str:
    text = form.format(scale * statistics["mean"])
    if statistics["sd"] is None:
        return text
    return f"{text} ± {form.replace('+', '').format(scale * statistics['sd'])}"


def _draw_band(
    axes: Axes, steps: Any, curves: np.ndarray, style: Mapping[str, Any], **line: Any
) -> None:
    """Draw the mean of curves (runs, points), with a band of standard deviation."""
    mean, sd = curves.mean(axis=0), curves.std(axis=0, ddof=min(1, len(curves) - 1))
    axes.plot(steps, mean, linewidth=1.6, **style, **line)
    if len(curves) > 1:
        axes.fill_between(
            steps, mean - sd, mean + sd, color=style["color"], alpha=0.12, linewidth=0
        )
    axes.margins(x=0.01)


def _draw_train(axes: Axes, runs: Runs, style: Mapping[str, Any]) -> None:
    losses = _losses(runs, "train")
    kernel = np.full(SMOOTHED, 1 / SMOOTHED)
    smooth = np.stack([np.convolve(curve, kernel, mode="valid") for curve in losses])
    steps = np.arange(smooth.shape[1]) + SMOOTHED / 2
    _draw_band(axes, steps, smooth, style)


def _cut_start(axes: Axes) -> None:
    """Cut off the first steps, beside which all others look alike."""
    curves = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    top = max(curve[len(curve) // 10] for curve in curves)
    if np.isfinite(top):
        axes.set_ylim(top=top)


def _draw_validation(axes: Axes, runs: Runs, style: Mapping[str, Any]) -> None:
    curves = [run["validation"]["bits_per_byte"] for run in runs]
    steps = runs[0]["validation"]["step"]
    _draw_band(axes, steps, np.array(curves, dtype=float), style, marker="o")


def _draw_after(axes: Axes, runs: Runs, style: Mapping[str, Any]) -> None:
    lost = _differences(runs, "probe").mean(axis=1)
    _draw_band(axes, np.arange(1, AROUND + 1), lost, style, marker="o")


def _draw_setbacks(axes: Axes, runs: Runs, style: Mapping[str, Any]) -> None:
    setbacks = _setbacks(runs, "probe")
    _draw_band(axes, runs[0]["changes"], setbacks, style, marker="o")

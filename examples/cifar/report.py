"""The results of a run on CIFAR, and a figure of its curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Rows = Sequence[Mapping[str, Any]]


def curves(logs: Sequence[Rows], event: str, name: str) -> dict[str, list[Any]]:
    """Collect one number from the logs of all seeds.

    Args:
      logs: the rows of each seed at the same epochs; fewer if it has diverged.
      event: the kind of row.
      name: the name of the number.

    Returns:
      ``"epoch"`` and, for each seed, ``"values"``; null in the log is None.
    """
    of_event = [[row for row in rows if row["event"] == event] for rows in logs]
    epochs = [row["epoch"] for row in max(of_event, key=len)]
    values = [[row.get(name) for row in rows] for rows in of_event]
    return {
        "epoch": epochs,
        "values": [row + [None] * (len(epochs) - len(row)) for row in values],
    }


def summarize(logs: Sequence[Rows]) -> dict[str, Any]:
    """Return final numbers of all seeds, their mean and deviation, and the curves.

    Args:
      logs: the rows of each seed.

    Returns:
      An entry as ``results.json`` holds it. Seeds that have diverged end with None and
      are left out of means, deviations and times.
    """
    ends = [next(row for row in rows if row["event"] == "run") for rows in logs]
    diverged = [seed for seed, row in enumerate(ends) if row.get("diverged")]
    lines = {
        "train_loss": curves(logs, "train", "loss"),
        "train_accuracy": curves(logs, "train", "accuracy"),
        "test_loss": curves(logs, "evaluation", "loss"),
        "test_accuracy": curves(logs, "evaluation", "accuracy"),
        "explored": curves(logs, "evaluation", "explored"),
    }
    final = {
        name: [
            None if seed in diverged else values[-1]
            for seed, values in enumerate(lines[name]["values"])
        ]
        for name in ("test_accuracy", "test_loss", "explored")
    }
    accuracies = _others(final["test_accuracy"], diverged)
    times = [
        row["ms_per_step"]
        for row in _others(ends, diverged)
        if row["ms_per_step"] is not None
    ]
    return {
        **final,
        "diverged": diverged,
        "test_accuracy_mean": float(np.mean(accuracies)) if accuracies else None,
        "test_accuracy_sd": (
            float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
        ),
        "ms_per_step": float(np.median(times)) if times else None,
        "curves": lines,
    }


def accuracy(results: Mapping[str, Any]) -> str:
    """State the accuracy in words; at least one seed must not have diverged."""
    mean, sd = results["test_accuracy_mean"], results["test_accuracy_sd"]
    diverged = results["diverged"]
    seeds = len(results["test_accuracy"]) - len(diverged)
    deviation = "" if sd is None else f" ± {100 * sd:.2f}"
    notes = [f"{seeds} seeds"] * (seeds > 1)
    if diverged:
        names = ", ".join(f"seed {seed}" for seed in diverged)
        notes.append(f"{len(diverged)} diverged and left out: {names}")
    remark = f" ({'; '.join(notes)})" if notes else ""
    return f"Test accuracy {100 * mean:.2f}{deviation} %{remark}"


def draw(results: Mapping[str, Any], title: str, path: Path) -> None:
    """Draw the curves: means over seeds with their standard deviations.

    Args:
      results: from ``summarize``, with at least one seed that has not diverged; seeds
        that have diverged are left out.
      title: the title of the figure.
      path: a PNG file to write.
    """
    lines = {
        name: {**line, "values": _others(line["values"], results["diverged"])}
        for name, line in results["curves"].items()
    }
    explored = np.isfinite(_numbers(lines["explored"]["values"])).any()
    figure = Figure(figsize=(12 if explored else 8.5, 4), dpi=160, layout="constrained")
    loss, accuracy, *rest = figure.subplots(1, 3 if explored else 2)
    _draw(loss, lines["train_loss"], "#999999", "training, augmented images")
    _draw(loss, lines["test_loss"], "#D55E00", "test")
    loss.set(title="Loss")
    loss.legend(frameon=False, fontsize=8)
    _draw(accuracy, lines["test_accuracy"], "#D55E00", "test")
    accuracy.set(title="Test accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in rest:
        _draw(axes, lines["explored"], "#0072B2", "explored")
        axes.set(title="Weights that have ever been active", ylim=(0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png")


def _draw(axes: Axes, line: Mapping[str, Any], color: str, label: str) -> None:
    values = _numbers(line["values"])
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
    epochs = np.array(line["epoch"])
    marker = "." if len(epochs) < 10 else ""
    axes.plot(epochs, mean, marker, linestyle="-", color=color, label=label)
    axes.fill_between(
        epochs, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0
    )
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _others(values: Sequence[Any], diverged: Sequence[int]) -> list[Any]:
    """Filter one value per seed: drop those of seeds that have diverged."""
    return [value for seed, value in enumerate(values) if seed not in diverged]


def _numbers(values: Any) -> np.ndarray:
    """Return an array; None, which the log has for non-finite numbers, becomes NaN."""
    return np.array(values, dtype=float)

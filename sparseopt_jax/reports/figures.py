"""Figures of densities, fan-ins, exploration and gradient amplification.

Every function returns a new ``matplotlib.figure.Figure`` that needs no window and
shares no state with others: call ``figure.savefig("file.png")``, or make it the last
line of a notebook cell. Needs the extra ``plot``.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparseopt_jax.arguments.requirements import needed_by
from sparseopt_jax.layers.neurons import Dims, fan_in, resolve_axes
from sparseopt_jax.masks.state import get_masks
from sparseopt_jax.reports.summary import summary
from sparseopt_jax.trees import paths

with needed_by("sparseopt_jax.plot", "matplotlib", extra="plot"):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    from sparseopt_jax.reports.figure_style import BLUE, ORANGE, plain

with needed_by("sparseopt_jax.plot", "pillow", extra="plot"):
    from sparseopt_jax.reports.mask_images import animate_masks, masks

__all__ = [
    "animate_masks",
    "densities",
    "exploration",
    "fan_ins",
    "gradient_scale",
    "masks",
]


def densities(params: Any, opt_state: Any) -> Figure:
    """Draw the density of each sparse layer as bars.

    Args:
      params: the weights.
      opt_state: an optimizer state that holds masks.

    Returns:
      A figure with one axes: a horizontal bar per sparse leaf, in tree order from the
      top, with its active weights beside it.

    Raises:
      ValueError: if ``opt_state`` holds no masks.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> state = so.sparsify(optax.sgd(0.1), so.static(0.75)).init(params)
      >>> [bar] = so.plot.densities(params, state).axes[0].patches
      >>> print(bar.get_width())
      0.25
    """
    layers = summary(params, opt_state).layers
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(layers)), layout="constrained")
    axes = plain(figure.subplots())
    heights = range(len(layers))
    bars = axes.barh(heights, [layer.density for layer in layers], color=BLUE)
    axes.set_yticks(heights, [layer.path for layer in layers])
    axes.bar_label(
        bars,
        [f"{layer.active:,} of {math.prod(layer.shape):,}" for layer in layers],
        padding=3,
        fontsize=8,
    )
    axes.invert_yaxis()
    # Room for the labels.
    axes.set_xlim(0, 1.35 * max((layer.density for layer in layers), default=1) or 1)
    axes.set(title="Density of each sparse layer", xlabel="active weights (%)")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    return figure


def fan_ins(params: Any, opt_state: Any, dims: Dims = None) -> Figure:
    """Draw the fan-ins of each sparse layer's neurons as histograms.

    Args:
      params: the weights.
      opt_state: an optimizer state that holds masks.
      dims: the axes of kernels that do not follow the Flax convention, as given to the
        topology.

    Returns:
      A figure with one axes per sparse leaf that has neurons, in tree order. A dotted
      line marks the mean.

    Raises:
      ValueError: if ``opt_state`` holds no masks, or no leaf has neurons.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> mask = jnp.array([[True, True], [True, False]])
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> topology = so.static(masks={"kernel": mask})
      >>> state = so.sparsify(optax.sgd(0.1), topology).init(params)
      >>> [axes] = so.plot.fan_ins(params, state).axes
      >>> print(*(bar.get_height() for bar in axes.patches))  # fan-ins 1 and 2
      1.0 1.0
    """
    del params  # for the same signature as `densities`; masks suffice
    counts = {
        path: np.asarray(fan_in(mask, axes)).ravel()
        for path, mask in paths.leaves_by_path(get_masks(opt_state)).items()
        if (axes := resolve_axes(dims, path, mask)) is not None
    }
    if not counts:
        raise ValueError("no sparse leaf has neurons; dims= says which axes they are")
    columns = min(3, len(counts))
    rows = -(-len(counts) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows), layout="constrained")
    places: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in places.flat[len(counts) :]:
        axes.remove()
    for axes, (path, sizes) in zip(places.flat, counts.items(), strict=False):
        least, most = int(sizes.min()), int(sizes.max())
        # Every bin covers the same number of integers.
        width = max(1, math.ceil((most - least + 1) / 30))
        edges = np.arange(least, most + width + 1, width) - 0.5
        plain(axes).hist(sizes, bins=edges.tolist(), color=BLUE)
        axes.axvline(float(sizes.mean()), color="black", linewidth=1, linestyle=":")
        axes.set_title(path, fontsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    figure.suptitle("Fan-in of each sparse layer's neurons", fontsize=11)
    figure.supxlabel("fan-in (active incoming weights)", fontsize=9)
    figure.supylabel("neurons", fontsize=9)
    return figure


def exploration(steps: Sequence[float], explored: Sequence[float]) -> Figure:
    """Draw the fraction of weights that have ever been active, over training.

    Args:
      steps: the steps at which it was measured.
      explored: the fractions at these steps, ``metrics(...)["explored"]``.

    Returns:
      A figure with one axes that holds one line.

    Raises:
      ValueError: if the numbers of steps and fractions differ.

    References:
      Liu et al., Do we actually need dense over-parameterization? In-time
      over-parameterization in sparse training, 2021: the exploration rate.

    Examples:
      >>> import sparseopt_jax as so
      >>> figure = so.plot.exploration([0, 100, 200], [0.1, 0.14, 0.17])
      >>> figure.axes[0].get_ylabel()
      'weights that have ever been active (%)'
    """
    x, y = _pairs("steps", steps, "explored", explored)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = plain(figure.subplots())
    axes.plot(x, y, color=BLUE, marker="o" if len(x) < 30 else "", markersize=4)
    if len(x):
        axes.annotate(
            f"{y[-1]:.1%}",
            (x[-1], y[-1]),
            xytext=(0, 6),
            textcoords="offset points",
            horizontalalignment="right",
        )
    axes.set(
        title="Exploration",
        xlabel="step",
        ylabel="weights that have ever been active (%)",
        ylim=(0, None),
    )
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.grid(alpha=0.25)
    return figure


def gradient_scale(
    sparsities: Sequence[float], measured: Sequence[float] | None = None
) -> Figure:
    """Draw how much Batch Normalization amplifies the gradients of sparse neurons.

    Args:
      sparsities: in [0, 1), one per measurement, or those to draw the theory over.
      measured: gradient norms per weight of sparse neurons, relative to dense ones.

    Returns:
      A figure with one axes: the theory, 1 / sqrt(1 - s), as a line from 0 to the
      largest of ``sparsities``, and ``measured`` as points.

    Raises:
      ValueError: if there are no sparsities, one is outside [0, 1), or their number
        differs from the number of measurements.

    References:
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541): equation 11.

    Examples:
      >>> import sparseopt_jax as so
      >>> figure = so.plot.gradient_scale([0.0, 0.5, 0.9], [1.0, 1.5, 3.5])
      >>> figure.axes[0].get_xlabel()
      'sparsity (%)'
    """
    x, y = _pairs("sparsities", sparsities, "measured", measured)
    if not len(x) or not ((x >= 0) & (x < 1)).all():
        raise ValueError(f"sparsities must be in [0, 1), got {sparsities!r}")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = plain(figure.subplots())
    curve = np.linspace(0, x.max(), 200)
    theory = r"theory: $(1 - s)^{-1/2}$"
    axes.plot(curve, (1 - curve) ** -0.5, color="black", linewidth=1.2, label=theory)
    if measured is not None:
        axes.plot(x, y, "o", color=ORANGE, label="measured")
    axes.set(
        title="Gradients of sparse neurons under Batch Normalization",
        xlabel="sparsity (%)",
        ylabel="gradient norm (multiple of dense)",
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def _pairs(
    x_name: str, x: Sequence[float], y_name: str, y: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float vectors of one length; the second is zero if it is None."""
    first = np.asarray(x, float)
    second = np.zeros_like(first) if y is None else np.asarray(y, float)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"{x_name} and {y_name} must be vectors of one length, got shapes "
            f"{first.shape} and {second.shape}"
        )
    return first, second

"""Theoretical FLOPs: the work of hardware that skips zeros.

All functions count per example, a multiplication and an addition as two operations, and
only products with weights: no normalisations, activations, biases or lookups.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.reports import tables
from sparseopt_jax.trees import paths


def forward_flops(weights: int, positions: int = 1) -> int:
    """Count the FLOPs of a layer's forward pass: f_D of all weights, f_S of the active.

    Args:
      weights: number of weights that are multiplied.
      positions: how often an example uses each of them: once in a dense layer, at every
        output position in a convolution, at every token in a transformer.

    Returns:
      ``2 * weights * positions``.

    Examples:
      A 3x3 convolution of 16 channels into 32, with an output of 14x14:

      >>> forward_flops(3 * 3 * 16 * 32, positions=14 * 14)
      1806336
    """
    return 2 * weights * positions


def training_flops(
    sparse: float, dense: float, *, dense_gradients: float = 0.0
) -> float:
    """Return the FLOPs of an average training step relative to the dense network.

    A step costs as much as three forward passes: one forward, two backward. If a
    topology needs the gradient of inactive weights, one backward pass is dense.

    Args:
      sparse: f_S, FLOPs of the sparse network's forward pass.
      dense: f_D, FLOPs of the dense network's.
      dense_gradients: the fraction p of steps that need the dense gradient:
        1 / (dT + 1) for RigL, which spends one extra step on it after every dT steps.

    Returns:
      ``(3 f_S + p (f_D - f_S)) / (3 f_D)``, which for RigL is
      ``(3 f_S dT + 2 f_S + f_D) / (dT + 1) / (3 f_D)``; NaN if nothing is multiplied.

    Note:
      This holds while the topology changes, until its ``stop``; then it is static.

    References:
      Evci et al., RigL, 2020 (arXiv 1911.11134), appendix H.

    Examples:
      >>> training_flops(10, 100)
      0.1
      >>> round(training_flops(10, 100, dense_gradients=1 / 101), 4)
      0.103
    """
    if not dense:
        return float("nan")
    if not dense_gradients:
        return sparse / dense
    return (3 * sparse + dense_gradients * (dense - sparse)) / (3 * dense)


def inference_flops(sparse: float, dense: float) -> float:
    """Return the FLOPs of a forward pass relative to the dense network.

    Args:
      sparse: f_S, FLOPs of the sparse network's forward pass.
      dense: f_D, FLOPs of the dense network's.

    Returns:
      ``f_S / f_D``; NaN if nothing is multiplied.

    Examples:
      >>> inference_flops(10, 100)
      0.1
    """
    return sparse / dense if dense else float("nan")


def is_multiplied(leaf: Any, axes: Axes | None, kind: str) -> bool:
    """Tell whether a leaf is a kernel, sparse or dense, by shape, dtype and kind.

    Args:
      leaf: anything with a ``dtype``.
      axes: its axes; None for a leaf without neurons.
      kind: its kind by name and neighbours, as in ``LeafPlan``.

    Returns:
      False for vectors, biases, scales, embeddings, and tables of integers.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jax.ShapeDtypeStruct((4, 8), jnp.float32)
      >>> axes = Axes((), (0,), (1,))
      >>> is_multiplied(kernel, axes, "")
      True
      >>> is_multiplied(kernel, axes, "embedding")
      False
    """
    if axes is None or kind:
        return False
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def check_positions(positions: Mapping[str, int] | None, known: Iterable[str]) -> None:
    """Raise unless ``positions`` maps globs that match leaves to positive integers.

    Args:
      positions: globs over paths, with their numbers of positions.
      known: the paths of the leaves.

    Raises:
      TypeError: if it is not a mapping.
      ValueError: with the pattern and its value.

    Examples:
      >>> check_positions({"Conv_*/kernel": 196}, ["Conv_0/kernel"])
    """
    if positions is None:
        return
    if not isinstance(positions, Mapping):
        raise TypeError(
            f"positions must map globs over paths to integers, got {positions!r}"
        )
    paths.check_patterns(positions, known, "positions")
    for pattern, value in positions.items():
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_integer or value < 1:
            raise ValueError(
                f"positions must be integers of at least 1, got {value!r} for "
                f"{pattern!r}"
            )


def positions_of(path: str, positions: Mapping[str, int] | None) -> int:
    """Return the number of output positions of one leaf: the first match, or 1.

    Args:
      path: the leaf's canonical path.
      positions: globs over paths, and their numbers of positions.

    Returns:
      The number.

    Examples:
      >>> positions_of("Conv_0/kernel", {"Conv_*": 196})
      196
    """
    return paths.first_match(path, positions or {}) or 1


def note(
    inference: float, training: str | None, positions: Mapping[str, int] | None
) -> str:
    """Return a line below tables that states FLOPs and what they assume.

    Args:
      inference: FLOPs relative to the dense network.
      training: the same for training, in words; None if it is not known.
      positions: as given by the caller.

    Returns:
      One sentence.
    """
    figures = f"{tables.percent(inference)} for inference"
    if training is not None:
        figures += f", {training}"
    counted = (
        "at the given positions, 1 elsewhere"
        if positions
        else "1 position per example and layer: exact for dense layers, convolutions "
        "need positions="
    )
    return f"FLOPs in theory, of the dense network's: {figures} ({counted})."

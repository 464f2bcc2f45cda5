"""The angle between a gradient and the one that SparseOpt corrects."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.layers.neurons import Axes, correction_factor, fan_in


class Skew(NamedTuple):
    """One layer's contribution to the angle, from a single pass over its gradient.

    Attributes:
      largest: float32 scalar, the largest magnitude in the masked gradient.
      squares: float32, each neuron's squared gradient norm in units of ``largest``;
        reduction axes are kept with size 1.
      factors: float32 of that shape, SparseOpt's factors.
    """

    largest: jax.Array
    squares: jax.Array
    factors: jax.Array


def measure(mask: jax.Array, grad: jax.Array, axes: Axes | None) -> Skew:
    """Measure one leaf's contribution to the angle.

    Args:
      mask: bool array, True = active.
      grad: the gradient, in the mask's shape; only its active entries count.
      axes: the leaf's axes; None for a leaf without neurons, which is not corrected.

    Returns:
      A ``Skew``.

    Examples:
      >>> import jax.numpy as jnp
      >>> mask = jnp.array([[True, True], [True, False]])
      >>> skew = measure(mask, 2 * jnp.ones((2, 2)), Axes((), (0,), (1,)))
      >>> print(skew.largest, skew.squares)
      2.0 [[2. 1.]]
    """
    active = jnp.where(mask, grad, 0).astype(jnp.float32)
    largest = jnp.max(jnp.abs(active), initial=0.0)
    # Squares of small gradients may underflow to zero.
    parts = jnp.square(active / jnp.where(largest == 0, 1.0, largest))
    if axes is None:
        return Skew(largest, jnp.sum(parts), jnp.ones([], jnp.float32))
    squares = jnp.sum(parts, axis=axes.reduction, keepdims=True)
    return Skew(largest, squares, correction_factor(fan_in(mask, axes), axes))


def angle(layers: Sequence[Skew]) -> jax.Array:
    r"""Return the angle between the gradient of some layers and the corrected one.

    With g the masked gradient of all layers as one vector, and D their factors:

    .. math::
      2 \arctan \frac{\lVert u - v \rVert}{\lVert u + v \rVert}, \qquad
      u = \frac{g}{\lVert g \rVert}, \quad v = \frac{D g}{\lVert D g \rVert}

    Args:
      layers: from ``measure``, at least one.

    Returns:
      float32 scalar in degrees, from 0 to 90; 0 for a zero gradient, NaN for one that
      is not finite.

    Note:
      An arc cosine would lose angles below about 0.03 degrees to rounding. Everything
      here is computed from D - 1, so that equal factors give exactly 0 and small angles
      are as exact as the factors.

    Examples:
      >>> import jax.numpy as jnp
      >>> skew = Skew(jnp.ones([]), jnp.ones(2), jnp.array([1.0, 0.0]))
      >>> print(angle([skew]))  # (1, 1) becomes (1, 0)
      45.0
    """
    largest = jnp.max(jnp.stack([layer.largest for layer in layers]))
    unit = jnp.where(largest == 0, 1.0, largest)
    squares = [layer.squares * jnp.square(layer.largest / unit) for layer in layers]
    total = _sum(squares)
    safe = jnp.where(total == 0, 1.0, total)
    weights = [square / safe for square in squares]
    factors = [layer.factors for layer in layers]

    def mean(function: Any) -> jax.Array:
        return _sum([w * function(d) for w, d in zip(weights, factors, strict=True)])

    # |Dg| / |g| = 1 + longer, without rounding where all factors are 1.
    growth = jnp.maximum(mean(lambda d: (d - 1) * (d + 1)), -1.0)
    length = jnp.sqrt(1 + growth)
    longer = growth / (1 + length)
    apart = jnp.sqrt(mean(lambda d: jnp.square((d - 1) - longer)))
    together = jnp.sqrt(mean(lambda d: jnp.square(d + length)))
    degrees = jnp.arctan2(apart, together) * (2 * 180 / math.pi)
    return jnp.where(total == 0, 0.0, degrees)


def _sum(parts: Sequence[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack([jnp.sum(part) for part in parts]))

"""Scores by which a topology drops and grows: one number per weight, the highest win.

A score is a function of a PRNG key, a parameter and its dense gradient that returns
float32 scores of the parameter's shape. Any such function can be used; if a structure
switches several weights as one, their scores are summed.

A score declares what it needs, as in ``DeclaredScore``. A plain function is assumed to
read the key, the weight and the gradient.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.sharding_types import (
    explicit_sharding,
    named_sharding,
    on_mesh,
)
from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers.neurons import Axes, correction_factor, fan_in

__all__ = [
    "CorrectedGradient",
    "DeclaredScore",
    "Gradient",
    "Magnitude",
    "MagnitudeAndGradient",
    "Random",
    "Saliency",
    "Score",
    "corrected_gradient",
    "gradient",
    "magnitude",
    "magnitude_and_gradient",
    "random",
    "saliency",
]

Score = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""A function of a key, a parameter and its dense gradient that returns float32 scores
of the parameter's shape."""


@dataclasses.dataclass(frozen=True, repr=False)
class DeclaredScore(abc.ABC):
    """A score that declares what it needs; those of the same type and values are equal.

    Attributes:
      needs_gradient: whether it reads the gradient.
      needs_weight: whether it reads the weight.
      needs_key: whether it reads the key.
      is_drawn: whether it is a random number that does not depend on the weight: one is
        drawn per unit, be it a weight or a block.
      is_elementwise: whether a weight's score depends only on that weight and its
        gradient.
    """

    needs_gradient: ClassVar[bool] = True
    needs_weight: ClassVar[bool] = True
    needs_key: ClassVar[bool] = False
    is_drawn: ClassVar[bool] = False
    is_elementwise: ClassVar[bool] = False

    def seen(self, grad: jax.Array, mask: jax.Array, axes: Axes | None) -> jax.Array:
        """Return the gradient that the score should read; unchanged by default.

        Args:
          grad: the dense gradient, or the memory of it.
          mask: the leaf's current mask.
          axes: the leaf's axes; None if it has no neurons.
        """
        del mask, axes
        return grad

    @abc.abstractmethod
    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """Return the scores: float32 of the parameter's shape."""

    @property
    def record(self) -> Any:
        """The value that represents it in a checkpoint's record."""
        return type(self).__name__.lower()

    def __repr__(self) -> str:
        return f"scores.{self.record}"


class Magnitude(DeclaredScore):
    """The weight's absolute value."""

    needs_gradient = False
    is_elementwise = True

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        del key, grad
        return jnp.abs(param).astype(jnp.float32)


class Gradient(DeclaredScore):
    """The dense gradient's absolute value."""

    needs_weight = False
    is_elementwise = True

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        del key, param
        return jnp.abs(grad).astype(jnp.float32)


class CorrectedGradient(Gradient):
    """The absolute value of the gradient times SparseOpt's factors.

    References:
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541), figures 5 and 10: it explores
      less than the uncorrected gradient.
    """

    is_elementwise = False

    def seen(self, grad: jax.Array, mask: jax.Array, axes: Axes | None) -> jax.Array:
        """Return the corrected gradient."""
        if axes is None:
            return grad
        return grad * correction_factor(fan_in(mask, axes), axes).astype(grad.dtype)

    @property
    def record(self) -> Any:
        return "corrected_gradient"


class Saliency(DeclaredScore):
    """|weight times gradient|: the first-order change of the loss without the weight.

    References:
      Molchanov et al., Pruning convolutional neural networks for resource efficient
      inference, 2017 (arXiv 1611.06440).
    """

    is_elementwise = True

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        del key
        return jnp.abs(param.astype(jnp.float32) * grad.astype(jnp.float32))


class Random(DeclaredScore):
    """Independent uniform random numbers in [0, 1), whatever the weights' sharding."""

    needs_gradient = False
    needs_key = True
    is_drawn = True

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        del grad
        # Each device draws only its part; without sharding types the compiler arranges
        # this.
        return jax.random.uniform(
            on_mesh(key, named_sharding(param)),
            param.shape,
            jnp.float32,
            out_sharding=explicit_sharding(param),
        )


@dataclasses.dataclass(frozen=True, repr=False)
class MagnitudeAndGradient(DeclaredScore):
    """|w| + weight |gradient|; build it with ``magnitude_and_gradient``.

    Attributes:
      weight: the factor of the gradient.
    """

    is_elementwise = True

    weight: float

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        return magnitude(key, param, grad) + self.weight * gradient(key, param, grad)

    @property
    def record(self) -> Any:
        return ["magnitude_and_gradient", self.weight]

    def __repr__(self) -> str:
        return f"scores.magnitude_and_gradient({self.weight})"


magnitude = Magnitude()
"""The absolute value of a weight."""

gradient = Gradient()
"""The absolute value of a weight's dense gradient."""

corrected_gradient = CorrectedGradient()
"""The absolute value of the gradient after SparseOpt's correction."""

saliency = Saliency()
"""The absolute value of weight times gradient."""

random = Random()
"""A random number for each weight."""


def magnitude_and_gradient(weight: float) -> Score:
    """Return the score of MEST: |w| + weight |gradient|.

    Args:
      weight: the factor of the gradient.

    Returns:
      The score.

    References:
      Yuan et al., MEST, 2021 (arXiv 2110.14032).
    """
    return MagnitudeAndGradient(float(weight))


def needs_gradient(score: Score) -> bool:
    """Return whether a score reads the gradient; True if it declares nothing.

    >>> needs_gradient(magnitude), needs_gradient(lambda key, param, grad: param)
    (False, True)
    """
    return getattr(score, "needs_gradient", True)


def needs_weight(score: Score) -> bool:
    """Return whether a score reads the weight; True if it declares nothing."""
    return getattr(score, "needs_weight", True)


def needs_key(score: Score) -> bool:
    """Return whether a score reads its key; True if it declares nothing."""
    return getattr(score, "needs_key", True)


def is_drawn(score: Score) -> bool:
    """Return whether a score is a random number per unit."""
    return getattr(score, "is_drawn", False)


def is_elementwise(score: Score) -> bool:
    """Return whether each score depends only on its weight and gradient."""
    return getattr(score, "is_elementwise", False)


def seen(
    score: Score, grad: jax.Array, mask: jax.Array, axes: Axes | None
) -> jax.Array:
    """Return the gradient that a score reads; see ``DeclaredScore.seen``."""
    look = getattr(score, "seen", None)
    return grad if look is None else look(grad, mask, axes)


def of_units(
    score: Score, units: Units, key: jax.Array, param: jax.Array, grad: jax.Array
) -> jax.Array:
    """Return the score of each unit: the sum over its weights.

    A random score is drawn for the unit itself, which is as random as a sum.

    Args:
      score: the score of single weights.
      units: the units in which weights are switched.
      key: typed PRNG key.
      param: the weights.
      grad: their gradients.

    Returns:
      float32 array of units.
    """
    if is_drawn(score):
        like = units.sum(param)  # only its shape and sharding are used
        return score(key, like, like)
    return units.sum(score(key, param, grad))

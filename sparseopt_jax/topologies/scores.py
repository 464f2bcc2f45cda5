"""What a topology drops and grows by: one number per weight, the largest win.

A score is a function of a PRNG key, a parameter and its dense gradient that returns
float32 scores of the parameter's shape. Any function of that kind will do; where a
structure switches several weights as one, their scores are added.

What a score needs it says itself, as ``DeclaredScore`` has it. A plain function is
taken to need the key and the gradient, and to score weights.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.sharding_types import explicit_sharding
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
"""From a key, a parameter and its dense gradient to float32 scores of its shape."""


@dataclasses.dataclass(frozen=True, repr=False)
class DeclaredScore(abc.ABC):
    """A score that says what it needs; scores of one kind and weight are equal.

    Attributes:
      needs_gradient: whether it reads the gradient.
      needs_weight: whether it reads the weight.
      needs_key: whether it reads the key.
      is_drawn: whether it is a random number, whatever the weight: it is drawn for a
        block as it is for a weight.
      is_elementwise: whether a weight's score depends on nothing but that weight and
        its gradient.
    """

    needs_gradient: ClassVar[bool] = True
    needs_weight: ClassVar[bool] = True
    needs_key: ClassVar[bool] = False
    is_drawn: ClassVar[bool] = False
    is_elementwise: ClassVar[bool] = False

    def seen(self, grad: jax.Array, mask: jax.Array, axes: Axes | None) -> jax.Array:
        """Return the gradient as the score is to see it; by default as it is.

        Args:
          grad: the dense gradient, or what is remembered of it.
          mask: the leaf's present mask.
          axes: the leaf's axes; None if it has no neurons.
        """
        del mask, axes
        return grad

    @abc.abstractmethod
    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """The scores: float32 of the parameter's shape."""

    @property
    def record(self) -> Any:
        """What stands for it in a checkpoint's record."""
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
      arXiv 2605.27541, figures 5 and 10: it explores less than the gradient itself.
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
    """The weight times its gradient: to first order, what the loss changes without it.

    References:
      Molchanov et al., Pruning convolutional neural networks for resource efficient
      inference, 2017 (arXiv 1611.06440).
    """

    is_elementwise = True

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        del key
        return jnp.abs(param.astype(jnp.float32) * grad.astype(jnp.float32))


class Random(DeclaredScore):
    """Independent uniform numbers in [0, 1), however the weights are sharded."""

    needs_gradient = False
    needs_key = True
    is_drawn = True

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        del grad
        # Each device draws its own part; without types the compiler finds that by
        # itself.
        return jax.random.uniform(
            key, param.shape, jnp.float32, out_sharding=explicit_sharding(param)
        )


@dataclasses.dataclass(frozen=True, repr=False)
class MagnitudeAndGradient(DeclaredScore):
    """|w| + weight |gradient|; build it with ``magnitude_and_gradient``.

    Attributes:
      weight: what the gradient counts for.
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
    """|w| + weight |gradient|, the score of MEST.

    References:
      Yuan et al., MEST, 2021 (arXiv 2110.14032).
    """
    return MagnitudeAndGradient(float(weight))


def needs_gradient(score: Score) -> bool:
    """Return whether a score reads the gradient; one that does not say is taken to.

    >>> needs_gradient(magnitude), needs_gradient(lambda key, param, grad: param)
    (False, True)
    """
    return getattr(score, "needs_gradient", True)


def needs_weight(score: Score) -> bool:
    """Return whether a score reads the weight; one that does not say is taken to."""
    return getattr(score, "needs_weight", True)


def needs_key(score: Score) -> bool:
    """Return whether a score reads its key; one that does not say is taken to."""
    return getattr(score, "needs_key", True)


def is_drawn(score: Score) -> bool:
    """Return whether a score is a random number for each unit."""
    return getattr(score, "is_drawn", False)


def is_elementwise(score: Score) -> bool:
    """Return whether a weight's score depends on that weight and its gradient alone."""
    return getattr(score, "is_elementwise", False)


def seen(
    score: Score, grad: jax.Array, mask: jax.Array, axes: Axes | None
) -> jax.Array:
    """Return the gradient as a score sees it: as ``DeclaredScore.seen``."""
    look = getattr(score, "seen", None)
    return grad if look is None else look(grad, mask, axes)


def of_units(
    score: Score, units: Units, key: jax.Array, param: jax.Array, grad: jax.Array
) -> jax.Array:
    """Return the score of each unit: the sum over its weights.

    A random one is drawn for the unit itself, which is as random as a sum.

    Args:
      score: what scores a weight.
      units: how the weights are switched.
      key: typed PRNG key.
      param: the weights.
      grad: their gradients.

    Returns:
      float32 array of units.
    """
    if is_drawn(score):
        like = units.sum(param)  # of which no number is used
        return score(key, like, like)
    return units.sum(score(key, param, grad))

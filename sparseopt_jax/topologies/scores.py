"""What a topology drops and grows by: one number per weight, the largest win.

A score is a function of a PRNG key, a parameter and its dense gradient that returns
float32 scores of the parameter's shape. Any function of that kind will do; where a
structure switches several weights as one, their scores are added.

What a score needs it says itself, by two attributes: ``needs_gradient`` (whether it
reads the gradient) and ``is_drawn`` (whether it is a random number, which is drawn for
a block as it is for a weight). A function without them is taken to need the gradient,
and to score weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.sharding_types import explicit_sharding
from sparseopt_jax.arrays.units import Units

Score = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, repr=False)
class DeclaredScore:
    """A score that says what it needs; scores of one kind and weight are equal.

    Attributes:
      needs_gradient: whether it reads the gradient.
      is_drawn: whether it is a random number, whatever the weight.
    """

    needs_gradient: ClassVar[bool] = True
    is_drawn: ClassVar[bool] = False

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """The scores: float32 of the parameter's shape."""
        raise NotImplementedError

    @property
    def record(self) -> Any:
        """What stands for it in a checkpoint's record."""
        return type(self).__name__.lower()

    def __repr__(self) -> str:
        return f"scores.{self.record}"


class Magnitude(DeclaredScore):
    """The weight's absolute value."""

    needs_gradient = False

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """The scores: float32 of the parameter's shape."""
        del key, grad
        return jnp.abs(param).astype(jnp.float32)


class Gradient(DeclaredScore):
    """The dense gradient's absolute value."""

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """The scores: float32 of the parameter's shape."""
        del key, param
        return jnp.abs(grad).astype(jnp.float32)


class Saliency(DeclaredScore):
    """The weight times its gradient: to first order, what the loss changes without it.

    References:
      Molchanov et al., Pruning convolutional neural networks for resource efficient
      inference, 2017 (arXiv 1611.06440).
    """

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """The scores: float32 of the parameter's shape."""
        del key
        return jnp.abs(param.astype(jnp.float32) * grad.astype(jnp.float32))


class Random(DeclaredScore):
    """Independent uniform numbers in [0, 1), however the weights are sharded."""

    needs_gradient = False
    is_drawn = True

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """The scores: float32 of the parameter's shape."""
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

    weight: float

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """The scores: float32 of the parameter's shape."""
        return magnitude(key, param, grad) + self.weight * gradient(key, param, grad)

    @property
    def record(self) -> Any:
        """What stands for it in a checkpoint's record."""
        return ["_magnitude_and_gradient", self.weight]

    def __repr__(self) -> str:
        return f"scores.magnitude_and_gradient({self.weight})"


magnitude = Magnitude()
gradient = Gradient()
saliency = Saliency()
random = Random()


def magnitude_and_gradient(weight: float) -> Score:
    """|w| + weight |gradient|, the score of MEST.

    References:
      Yuan et al., MEST, 2021 (arXiv 2110.14032).
    """
    return MagnitudeAndGradient(float(weight))


def needs_gradient(score: Score) -> bool:
    """Whether a score reads the gradient; one that does not say is taken to.

    >>> needs_gradient(magnitude), needs_gradient(lambda key, param, grad: param)
    (False, True)
    """
    return getattr(score, "needs_gradient", True)


def is_drawn(score: Score) -> bool:
    """Whether a score is a random number for each unit."""
    return getattr(score, "is_drawn", False)


def of_units(
    score: Score, units: Units, key: jax.Array, param: jax.Array, grad: jax.Array
) -> jax.Array:
    """The score of each unit: the sum over its weights.

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

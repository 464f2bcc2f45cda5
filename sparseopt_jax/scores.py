"""What a topology drops and grows by: one number per weight, the largest win.

A score is a function of a PRNG key, a parameter and its dense gradient that returns
float32 scores of the parameter's shape. Any function of that kind will do; where a
structure switches several weights as one, their scores are added.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparseopt_jax.sharding_types import explicit_sharding
from sparseopt_jax.units import Units

Score = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def magnitude(key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
    """The weight's absolute value."""
    del key, grad
    return jnp.abs(param).astype(jnp.float32)


def gradient(key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
    """The dense gradient's absolute value."""
    del key, param
    return jnp.abs(grad).astype(jnp.float32)


def saliency(key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
    """The weight times its gradient: to first order, what the loss changes without it.

    References:
      Molchanov et al., Pruning convolutional neural networks for resource efficient
      inference, 2017 (arXiv 1611.06440).
    """
    del key
    return jnp.abs(param.astype(jnp.float32) * grad.astype(jnp.float32))


def magnitude_and_gradient(weight: float) -> Score:
    """|w| + weight |gradient|, the score of MEST.

    References:
      Yuan et al., MEST, 2021 (arXiv 2110.14032).
    """
    return functools.partial(_magnitude_and_gradient, weight)


def _magnitude_and_gradient(
    weight: float, key: jax.Array, param: jax.Array, grad: jax.Array
) -> jax.Array:
    return magnitude(key, param, grad) + weight * gradient(key, param, grad)


def random(key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
    """Independent uniform numbers in [0, 1), however the weights are sharded."""
    del grad
    # Each device draws its own part; without types the compiler finds that by itself.
    return jax.random.uniform(
        key, param.shape, jnp.float32, out_sharding=explicit_sharding(param)
    )


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
    if score is random:
        like = units.sum(param)  # of which no number is used
        return random(key, like, like)
    return units.sum(score(key, param, grad))

"""Corrections of gradients that were tried beside those of the library.

All are to stand inside ``sparsify``, in front of SGD, in networks whose kernels have
their neurons along the last axis. Each gives the neurons of a sparse layer factors that
are 1 in the mean, or nearly:

- by a power of the variance that Batch Normalization measured: 1/2 is
  ``scale_by_batch_variance``, 1 takes the skew of step over weight away too;
- by the norm of the neuron's weights, which is what the variance comes to where inputs
  are independent and alike; it needs no statistics and does not lag;
- by fan-in right after a change of the masks, and by the variance once that has had the
  time to follow.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs as Transformation

import sparseopt_jax as so
from sparseopt_jax.trees import paths

EPS = 1e-5

# From a kernel's path, its weights and the statistics to a number for each neuron.
Factor = Callable[[str, jax.Array, Mapping[str, jax.Array]], jax.Array | None]


def not_head(params: optax.Params) -> Any:
    """A tree of bools: False in the classifier, which no normalisation follows."""
    return paths.map_with_paths(lambda path, _: not path.startswith("head"), params)


def variance_power(links: Mapping[str, str], power: float) -> Transformation:
    """Factors (var_i / mean_j var_j) ** power, of layers that a normalisation follows.

    Args:
      links: from kernels to normalisations, as ``so.infer_norm_links`` gives them.
      power: 1/2 is the square root that ``so.scale_by_batch_variance`` takes.

    Returns:
      A transformation that needs ``batch_stats=``.
    """

    def factor(path, weights, variances):
        del weights
        if path not in links:
            return None
        variance = variances[f"{links[path]}/var"] + EPS
        return (variance / jnp.mean(variance)) ** power

    return _by_neuron(factor)


def floored_fan_in(least: float) -> Transformation:
    """SparseOpt's factors, none of them below a floor.

    Args:
      least: the floor.

    Returns:
      A transformation that takes what ``so.scale_by_sparseopt`` takes.
    """
    correction = so.scale_by_sparseopt()

    def update_fn(updates, state, params=None, **extra_args):
        ones = jax.tree.map(jnp.ones_like, updates)
        factors, state = correction.update(ones, state, params, **extra_args)
        floored = jax.tree.map(lambda x: jnp.maximum(x, least), factors)
        return jax.tree.map(jnp.multiply, updates, floored), state

    return Transformation(correction.init, update_fn)


def weight_norm() -> Transformation:
    """Factors |w_i| / sqrt(mean_j |w_j|^2), of every sparse layer."""

    def factor(path, weights, variances):
        del path, variances
        squares = jnp.sum(weights**2, axis=range(weights.ndim - 1))
        return jnp.sqrt(squares / jnp.mean(squares))

    return _by_neuron(factor)


def fan_in_then_variance(
    links: Mapping[str, str], every: int, memory: float
) -> Transformation:
    """Geometric mean of both factors, all of it fan-in's right after a change.

    Args:
      links: from kernels to normalisations.
      every: steps from one change of the masks to the next.
      memory: steps in which the share of fan-in falls to 1/e; that of the running
        variance is 1 / (1 - its momentum).

    Returns:
      A transformation that needs ``batch_stats=``.
    """
    corrections = so.scale_by_sparseopt(), so.scale_by_batch_variance(links)

    def init_fn(params):
        return jnp.int32(0), tuple(each.init(params) for each in corrections)

    def update_fn(updates, state, params=None, **extra_args):
        step, states = state
        share = jnp.exp(-(step % every) / memory)
        (by_fan_in, first), (by_variance, second) = (
            each.update(updates, kept, params, **extra_args)
            for each, kept in zip(corrections, states, strict=True)
        )

        def between(fan_in, variance):
            # Both are the gradient times a factor of at least 0, so that signs agree.
            size = jnp.abs(fan_in) ** share * jnp.abs(variance) ** (1.0 - share)
            return jnp.sign(fan_in) * size

        mixed = jax.tree.map(between, by_fan_in, by_variance)
        return mixed, (step + 1, (first, second))

    return Transformation(init_fn, update_fn)


def keeping_norms(correction: optax.GradientTransformation) -> Transformation:
    """A correction that leaves each layer's gradient as long as it was.

    Args:
      correction: what is left of it is the direction.

    Returns:
      A transformation that takes what the correction takes.
    """
    correction = optax.with_extra_args_support(correction)

    def update_fn(updates, state, params=None, *, masks=None, **extra_args):
        corrected, state = correction.update(
            updates, state, params, masks=masks, **extra_args
        )

        def at_leaf(before, after, mask):
            if paths.is_hole(mask):
                return after
            # Masked gradients do not count.
            active = jnp.linalg.norm(jnp.where(mask, before, 0.0))
            norm = jnp.linalg.norm(jnp.where(mask, after, 0.0))
            return after * jnp.where(norm > 0.0, active / norm, 1.0)

        return jax.tree.map(at_leaf, updates, corrected, masks), state

    return Transformation(correction.init, update_fn)


def _by_neuron(factor: Factor) -> Transformation:
    def update_fn(
        updates, state, params=None, *, masks=None, batch_stats=None, **extra_args
    ):
        del extra_args
        weights = dict(paths.flatten_with_paths(params))
        sparse = dict(paths.flatten_with_paths(masks))
        variances = dict(paths.flatten_with_paths(batch_stats or {}))

        def at_leaf(path, update):
            if paths.is_hole(sparse[path]):
                return update
            scale = factor(path, weights[path], variances)
            return update if scale is None else update * scale

        return paths.map_with_paths(at_leaf, updates), state

    return Transformation(lambda params: optax.EmptyState(), update_fn)

"""Gradient corrections that were tried in addition to the library's.

All of them belong inside ``sparsify``, before SGD, in networks whose kernels have their
neurons along the last axis. Each gives the neurons of a sparse layer factors with a
mean of about 1:

- by a power of the variance that Batch Normalization measures: 1/2 is
  ``scale_by_batch_variance``, 1 also removes the skew of the step relative to the
  weight;
- by the norm of the neuron's weights, which is proportional to the deviation if inputs
  are independent and identically distributed; it needs no statistics and does not lag;
- by fan-in right after an update of the masks, and by the variance once the running
  variance has had time to follow.
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

# Maps a kernel's path, its weights and the statistics to a number for each neuron.
Factor = Callable[[str, jax.Array, Mapping[str, jax.Array]], jax.Array | None]


def not_head(params: optax.Params) -> Any:
    """Return a tree of bools: False in the classifier, which has no normalisation."""
    return paths.map_with_paths(lambda path, _: not path.startswith("head"), params)


def variance_power(links: Mapping[str, str], power: float) -> Transformation:
    """Scale by (var_i / mean_j var_j) ** power in layers that a normalisation follows.

    Args:
      links: from kernels to normalisations, from ``so.infer_norm_links``.
      power: 1/2 is the square root used by ``so.scale_by_batch_variance``.

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
    """Scale by SparseOpt's factors, none of them below a floor.

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
    """Scale by |w_i| / sqrt(mean_j |w_j|^2) in every sparse layer."""

    def factor(path, weights, variances):
        del path, variances
        squares = jnp.sum(weights**2, axis=range(weights.ndim - 1))
        return jnp.sqrt(squares / jnp.mean(squares))

    return _by_neuron(factor)


def fan_in_then_variance(
    links: Mapping[str, str], every: int, memory: float
) -> Transformation:
    """Scale by a geometric mean of both factors; right after an update it is fan-in's.

    Args:
      links: from kernels to normalisations.
      every: steps between updates of the masks.
      memory: steps in which the weight of fan-in falls to 1/e; for the running variance
        it is 1 / (1 - its momentum).

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
            # Both are the gradient times a factor of at least 0, so their signs agree.
            size = jnp.abs(fan_in) ** share * jnp.abs(variance) ** (1.0 - share)
            return jnp.sign(fan_in) * size

        mixed = jax.tree.map(between, by_fan_in, by_variance)
        return mixed, (step + 1, (first, second))

    return Transformation(init_fn, update_fn)


def keeping_norms(correction: optax.GradientTransformation) -> Transformation:
    """Rescale a correction so that it preserves the norm of each layer's gradient.

    Args:
      correction: the correction, of which only the direction is used.

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

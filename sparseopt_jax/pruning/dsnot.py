"""DSnoT: improves the masks of a pruned network without training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.arguments.checks import check_choice, chosen, integer, number
from sparseopt_jax.arrays.library import library
from sparseopt_jax.arrays.sharding_types import placed_like, replicated
from sparseopt_jax.layers.eligibility import Where
from sparseopt_jax.masks.state import apply_masks, map_masked_with_path, zero_masked
from sparseopt_jax.pruning.calibration import Calibration
from sparseopt_jax.pruning.calibration_fit import kernel_name
from sparseopt_jax.pruning.input_statistics import Inputs, check_inputs, check_numbers
from sparseopt_jax.pruning.prune import Pruned
from sparseopt_jax.trees import paths


def dsnot(
    params: Any,
    masks: Any,
    calibration: Calibration,
    dense_params: Any,
    *,
    cycles: int = 50,
    threshold: float = 0.0,
    where: Where | None = None,
) -> Pruned:
    """Refine the masks of a pruned network to reduce the mean error of its neurons.

    Pruning shifts the mean output of neuron r by e_r = E[sum_k (w_k - w'_k) x_k], with
    w the dense and w' the pruned weights. In every cycle each neuron exchanges one
    weight. It grows the weight whose contribution w_k E[x_k] has the sign of e_r and is
    largest relative to the variance, w_k E[x_k] / Var[x_k]. Of the weights whose
    removal also moves e_r towards zero, it drops the one with the smallest
    |w_k| ||x_k||. Every neuron keeps its number of active weights; grown weights get
    their dense values.

    Args:
      params: the pruned parameters, as ``prune`` returns them.
      masks: their masks.
      calibration: the result of ``calibrate`` for the dense model.
      dense_params: the parameters before pruning, a tree like ``params``.
      cycles: maximum number of exchanges of a neuron.
      threshold: a neuron with ``|e_r|`` at or below this makes no more exchanges.
      where: ``where(path, leaf) -> bool``; False leaves a kernel and its mask
        unchanged, and no statistics of it are needed.

    Returns:
      The refined parameters, in a container like that of ``params``, and masks.

    Raises:
      ValueError: if masks, dense parameters or statistics of a kernel are missing or
        have another shape, statistics are not finite, ``cycles`` is below 1, or
        ``threshold`` is negative.
      TypeError: if ``calibration`` is not the result of ``calibrate``.

    Note:
      The published code stops a neuron after ``cycles``, when ``|e_r|`` is below 0.1,
      or when e_r changes its sign. Here the sign does not matter; instead, a neuron
      stops at the first exchange that would not reduce ``|e_r|``, which therefore never
      grows. In the published code E[x] is a sum over the positions of a sequence; here
      it is a mean over all samples, hence the other threshold. In both, a weight is
      exchanged at most once. A neuron with a NaN weight makes no exchanges. Any
      weight of a neuron may be exchanged for any other: patterns such as N:M are not
      preserved.

    References:
      Zhang et al., Dynamic sparse no training: training-free fine-tuning for sparse
      LLMs, ICLR 2024 (arXiv 2310.08915).

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.array([[3.0], [-2.0], [1.0]])}
      >>> x = jnp.array([[1.0, 1.0, 9.0], [1.0, 0.9, 11.0]])
      >>> calibration = so.calibrate(lambda p, x: x @ p["kernel"], params, [x])
      >>> pruned = so.prune(params, sparsity=0.3)
      >>> refined = so.dsnot(*pruned, calibration, params)
      >>> print(pruned.masks["kernel"][:, 0], refined.masks["kernel"][:, 0])
      [ True  True False] [ True False  True]
    """
    if not isinstance(calibration, Calibration):
        raise TypeError(
            f"calibration must be the result of so.calibrate, got {calibration!r}"
        )
    check_choice("where", where)
    cycles = integer("cycles", cycles, 1)
    number("threshold", threshold, 0)
    params = apply_masks(params, masks)
    dense = dict(paths.flatten_with_paths(dense_params))
    refined = {}
    for path, mask, param in _sparse_leaves(masks, params):
        if where is not None and not chosen("where", where, path, param):
            continue
        if getattr(dense.get(path), "shape", None) != param.shape:
            raise ValueError(
                f"dense_params must have the structure of params: at {path!r} with "
                f"shape {tuple(param.shape)} they hold {dense.get(path)!r}"
            )
        inputs = calibration.need(kernel_name(path, params), "dsnot")
        check_inputs(path, param, inputs)
        check_numbers(path, inputs, "dsnot")
        xp = library(param)
        original = placed_like(xp.asarray(dense[path]).astype(param.dtype), param)
        new = replicated(
            functools.partial(_refine_leaf, cycles=cycles, threshold=threshold),
            inputs,
            param,
            mask,
            original,
        )
        refined[path] = xp.where(mask, param, original), placed_like(new, param)
    masks = paths.map_with_paths(
        lambda path, mask: refined[path][1] if path in refined else mask, masks
    )
    params = paths.map_with_paths(
        lambda path, param: refined[path][0] if path in refined else param, params
    )
    return Pruned(zero_masked(masks, params), masks)


def _sparse_leaves(masks: Any, params: Any) -> list[tuple[str, Any, Any]]:
    leaves = []
    map_masked_with_path(lambda *leaf: leaves.append(leaf), masks, params)
    return leaves


@jax.jit
def _refine_leaf(
    inputs: Inputs,
    param: jax.Array,
    mask: jax.Array,
    dense: jax.Array,
    *,
    cycles: int,
    threshold: float,
) -> jax.Array:
    """Return the new mask of one kernel, separately for each set of inputs."""
    matrices = tuple(map(inputs.matrices, (param, mask, dense)))
    vectors = tuple(map(inputs.flat, (inputs.mean, inputs.variance, inputs.norm)))
    refine = functools.partial(_refine, cycles=cycles, threshold=threshold)
    masks = jax.lax.map(lambda one_set: refine(*one_set), (*matrices, *vectors))
    return inputs.from_matrices(masks)


def _refine(
    params: jax.Array,
    mask: jax.Array,
    dense: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    norm: jax.Array,
    *,
    cycles: Any,
    threshold: Any,
) -> jax.Array:
    """Exchange weights of one matrix.

    Args:
      params: (fan_in, neurons), the pruned weights.
      mask: (fan_in, neurons) bool.
      dense: (fan_in, neurons), the dense weights.
      mean: (fan_in,) float32, the mean of each input.
      variance: (fan_in,) float32, the variance of each input.
      norm: (fan_in,) float32, the Euclidean norm of each input.
      cycles: as in ``dsnot``.
      threshold: as in ``dsnot``.

    Returns:
      The new mask.
    """
    pruned = params.astype(jnp.float32)
    # What each weight adds to the mean output: its dense value, and its current one.
    gain = dense.astype(jnp.float32) * mean[:, None]
    loss = pruned * mean[:, None]
    # Without overflow, the largest gain comes first among inputs of zero variance.
    largest = jnp.max(jnp.abs(gain), 0)
    least = jnp.finfo(jnp.float32).tiny * jnp.maximum(largest, 1.0)
    gain_by_variance = gain / jnp.maximum(variance[:, None], least)
    cost = jnp.abs(pruned) * norm[:, None]
    neurons = jnp.arange(mask.shape[1])

    def unfinished(state):
        cycle, _, _, _, is_open = state
        return (cycle < cycles) & jnp.any(is_open)

    def exchange(state):
        cycle, now, moved, error, is_open = state
        sign = jnp.sign(error)
        may_grow = ~now & ~moved & (sign * gain > 0)
        may_drop = now & ~moved & (sign * loss < 0)
        grown = jnp.argmax(jnp.where(may_grow, sign * gain_by_variance, -jnp.inf), 0)
        dropped = jnp.argmin(jnp.where(may_drop, cost, jnp.inf), 0)
        after = error - gain[grown, neurons] + loss[dropped, neurons]
        is_open &= jnp.any(may_grow, 0) & jnp.any(may_drop, 0)
        is_open &= (jnp.abs(error) > threshold) & (jnp.abs(after) < jnp.abs(error))
        for place, active in ((grown, True), (dropped, False)):
            was = now[place, neurons]
            now = now.at[place, neurons].set(jnp.where(is_open, active, was))
            was = moved[place, neurons]
            moved = moved.at[place, neurons].set(was | is_open)
        return cycle + 1, now, moved, jnp.where(is_open, after, error), is_open

    start = (
        jnp.int32(0),
        mask,
        jnp.zeros_like(mask),
        jnp.sum(gain - loss, 0),
        jnp.ones(mask.shape[1], bool),
    )
    _, new, _, _, _ = jax.lax.while_loop(unfinished, exchange, start)
    return new

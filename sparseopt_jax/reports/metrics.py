"""Numbers to log while a sparse network trains."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.arguments.checks import check_single
from sparseopt_jax.layers.neurons import (
    Axes,
    Dims,
    correction_factor,
    fan_in,
    resolve_axes,
)
from sparseopt_jax.masks.compact_kernel import dense_arrays
from sparseopt_jax.masks.packing import unpack
from sparseopt_jax.masks.state import (
    check_order,
    find_states,
    get_masks,
    map_masked_with_path,
    unbox,
)
from sparseopt_jax.reports import skew
from sparseopt_jax.trees import paths


def metrics(
    params: Any, opt_state: Any, *, dims: Dims = None, grads: Any = None
) -> dict[str, jax.Array]:
    """Return scalars that describe the masks, for any logger; works under jit.

    Args:
      params: the weights, dense or compact.
      opt_state: an optimizer state that holds masks.
      dims: the axes of kernels that do not follow the Flax convention, as given to the
        topology.
      grads: a gradient, a tree like ``params``, dense or masked, for ``skew_angle``.

    Returns:
      A flat dictionary of scalars. Over all sparse layers:

      - ``density``: fraction of active weights (float32);
      - ``inactive_nonzero``: inactive weights that are not zero (int32); 0 unless
        ``apply_masks`` was forgotten, something follows ``sparsify``, or the topology
        keeps the weights dense, as ``ste`` does;
      - ``churn``: weights activated by the last update, as a fraction of the active
        ones (float32); 0 before the first update;
      - ``collapsed``: layers without any active weight (int32), each layer of a stack
        counted;
      - ``dead_fraction``: fraction of dead neurons, without active inputs (float32);
        ``summary`` warns from 0.2 in a layer, and names the remedy;
      - ``explored``: fraction of weights that have ever been active (float32), for a
        topology with ``track_explored``;
      - ``skew_angle``: with ``grads``, the angle in degrees between the active entries
        of the gradient before and after SparseOpt (float32), 0 for a zero gradient.

      And for each sparse leaf, followed by ``/`` and its path:

      - ``density``, ``churn``, ``explored`` and ``skew_angle``;
      - ``dead_neurons``: neurons without active inputs (int32), and ``dead_fraction``:
        their fraction (float32);
      - ``dead_inputs``: input channels, positions along the last reduction axis,
        without any active weight (int32);
      - ``fan_in_min`` and ``fan_in_max``: range of fan-ins (int32);
      - ``fan_in_mean`` and ``fan_in_cv``: mean fan-in and its coefficient of variation
        over the neurons (float32);
      - ``factor_min`` and ``factor_max``: range of SparseOpt's factors (float32).

    Raises:
      TypeError: if the arguments are swapped.
      ValueError: if ``opt_state`` holds no masks, or the stacked states of several
        replicas, for which use ``jax.vmap`` of this function.

    References:
      Liu et al., Do we actually need dense over-parameterization? In-time
      over-parameterization in sparse training, 2021: ``explored``.
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541): the factors, and the skew that
      they undo.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> tx = so.sparsify(optax.sgd(0.1), so.static(0.75))
      >>> state = tx.init(params)
      >>> numbers = so.metrics(so.apply_masks(params, state), state, grads=params)
      >>> float(numbers["density"]), int(numbers["inactive_nonzero"])
      (0.25, 0)
      >>> 0 < float(numbers["skew_angle"]) < 90
      True
    """
    check_order("metrics(params, opt_state)", params, opt_state)
    check_single(find_states(opt_state))
    if grads is not None:
        grads = dense_arrays(grads, params)
    params = dense_arrays(params, params)
    masks = get_masks(opt_state)
    grown = _kept(opt_state, lambda state: state.grown)
    explored = _kept(opt_state, lambda state: state.explored)
    numbers: dict[str, jax.Array] = {}
    leaves: list[jax.Array] = []
    active: list[jax.Array] = []
    leaks: list[jax.Array] = []
    collapsed: list[jax.Array] = []
    skews: list[skew.Skew] = []
    neurons: list[tuple[jax.Array, int]] = []

    def at_leaf(path, mask, param, grad=None):
        axes = resolve_axes(dims, path, mask)
        leaves.append(mask)
        # In float32, because counts of a large network overflow int32.
        active.append(jnp.sum(mask, dtype=jnp.float32))
        leaks.append(jnp.sum(~mask & (param != 0), dtype=jnp.int32))
        alive = jnp.any(mask, axis=None if axes is None else axes.layer)
        collapsed.append(jnp.sum(~alive, dtype=jnp.int32))
        layer = {
            "density": jnp.mean(mask, dtype=jnp.float32),
            "churn": _ratio(grown[path].astype(jnp.float32), active[-1]),
        }
        if path in explored:
            layer["explored"] = jnp.mean(explored[path], dtype=jnp.float32)
        if axes is not None:
            layer |= _neuron_metrics(mask, axes)
            count = math.prod(mask.shape[a] for a in (*axes.batch, *axes.output))
            neurons.append((layer["dead_neurons"], count))
            layer["dead_fraction"] = _dead_fraction(neurons[-1:])
        if grad is not None:
            skews.append(skew.measure(mask, grad, axes))
            layer["skew_angle"] = skew.angle(skews[-1:])
        numbers.update({f"{name}/{path}": value for name, value in layer.items()})
        return param

    map_masked_with_path(at_leaf, masks, params, *([] if grads is None else [grads]))
    total = {
        "density": _fraction(leaves),
        "inactive_nonzero": jnp.sum(jnp.stack(leaks), dtype=jnp.int32),
        "churn": _ratio(
            jnp.sum(jnp.stack(list(grown.values())), dtype=jnp.float32),
            jnp.sum(jnp.stack(active)),
        ),
        "collapsed": jnp.sum(jnp.stack(collapsed), dtype=jnp.int32),
        "dead_fraction": _dead_fraction(neurons),
    }
    if explored:
        total["explored"] = _fraction(explored.values())
    if skews:
        total["skew_angle"] = skew.angle(skews)
    return total | numbers


def _kept(opt_state: Any, choose: Callable[[Any], Any]) -> dict[str, jax.Array]:
    """Return what the topologies in a state keep for their sparse leaves, by path."""
    return {
        path: leaf
        for state in find_states(opt_state)
        if state.topology_state
        for path, leaf in paths.leaves_by_path(
            unpack(unbox(choose(state.topology_state)))
        ).items()
    }


def _neuron_metrics(mask: jax.Array, axes: Axes) -> dict[str, jax.Array]:
    fan_ins = fan_in(mask, axes)
    factors = correction_factor(fan_ins, axes)
    mean = jnp.mean(fan_ins, dtype=jnp.float32)
    deviation = jnp.std(fan_ins.astype(jnp.float32))
    to_outputs = (*axes.reduction[:-1], *axes.output)
    return {
        "dead_neurons": jnp.sum(fan_ins == 0, dtype=jnp.int32),
        "dead_inputs": jnp.sum(~jnp.any(mask, axis=to_outputs), dtype=jnp.int32),
        "fan_in_min": jnp.min(fan_ins),
        "fan_in_max": jnp.max(fan_ins),
        "fan_in_mean": mean,
        "fan_in_cv": _ratio(deviation, mean),
        "factor_min": jnp.min(factors),
        "factor_max": jnp.max(factors),
    }


def _dead_fraction(neurons: list[tuple[jax.Array, int]]) -> jax.Array:
    """Return the fraction of dead neurons from the numbers dead and in all per leaf."""
    total = sum(count for _, count in neurons)
    dead = [jnp.asarray(number, jnp.float32) for number, _ in neurons]
    return sum(dead, jnp.float32(0)) / max(total, 1)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Divide in float32; return 0 where the whole is 0."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0.0)


def _fraction(masks: Iterable[jax.Array]) -> jax.Array:
    # Counts of a large network overflow int32: add densities weighted by exact sizes.
    leaves = list(masks)
    total = sum(leaf.size for leaf in leaves)
    parts = [jnp.mean(leaf, dtype=jnp.float32) * (leaf.size / total) for leaf in leaves]
    return jnp.sum(jnp.stack(parts))

"""Numbers to log while a sparse network trains."""

from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax import paths
from sparseopt_jax.masks import find_states, get_masks, map_masked_with_path
from sparseopt_jax.neurons import Dims, correction_factor, fan_in, resolve_axes
from sparseopt_jax.packing import unpack


def metrics(params: Any, opt_state: Any, *, dims: Dims = None) -> dict[str, jax.Array]:
    """Scalars that tell what the masks are, for any logger; works under jit.

    Args:
      params: the weights.
      opt_state: an optimizer state that holds masks.
      dims: the axes of kernels that do not follow the Flax convention, as given to the
        topology.

    Returns:
      A flat dictionary of scalars. Over all sparse layers:

      - ``density``: fraction of active weights (float32);
      - ``inactive_nonzero``: inactive weights that are not zero (int32), which is 0
        unless ``apply_masks`` was forgotten or something follows ``sparsify``;
      - ``explored``: fraction of weights that have ever been active (float32), for a
        topology with ``track_explored``.

      And for each sparse layer, followed by ``/`` and its path:

      - ``density``;
      - ``dead_neurons``: neurons without inputs (int32);
      - ``fan_in_mean`` and ``fan_in_cv``: mean fan-in and its coefficient of variation
        over the neurons (float32);
      - ``factor_min`` and ``factor_max``: range of SparseOpt's factors (float32).

    Raises:
      ValueError: if ``opt_state`` holds no masks.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> tx = so.sparsify(optax.sgd(0.1), so.static(0.75))
      >>> state = tx.init(params)
      >>> numbers = so.metrics(so.apply_masks(params, state), state)
      >>> float(numbers["density"]), int(numbers["inactive_nonzero"])
      (0.25, 0)
    """
    masks = get_masks(opt_state)
    leaks: list[jax.Array] = []
    numbers: dict[str, jax.Array] = {}

    def at_leaf(path, mask, param):
        leaks.append(jnp.sum(~mask & (param != 0), dtype=jnp.int32))
        axes = resolve_axes(dims, path, mask)
        layer = {"density": jnp.mean(mask, dtype=jnp.float32)}
        if axes is not None:
            layer |= _neuron_metrics(fan_in(mask, axes), axes)
        numbers.update({f"{name}/{path}": value for name, value in layer.items()})
        return param

    map_masked_with_path(at_leaf, masks, params)
    total = {
        "density": _fraction(masks),
        "inactive_nonzero": jnp.sum(jnp.stack(leaks)),
    }
    explored = [
        unpack(state.topology_state.explored)
        for state in find_states(opt_state)
        if state.topology_state and jax.tree.leaves(state.topology_state.explored)
    ]
    if explored:
        total["explored"] = _fraction(explored)
    return total | numbers


def _neuron_metrics(fan_ins: jax.Array, axes: Any) -> dict[str, jax.Array]:
    factors = correction_factor(fan_ins, axes)
    mean = jnp.mean(fan_ins, dtype=jnp.float32)
    deviation = jnp.std(fan_ins.astype(jnp.float32))
    return {
        "dead_neurons": jnp.sum(fan_ins == 0, dtype=jnp.int32),
        "fan_in_mean": mean,
        "fan_in_cv": jnp.where(mean > 0, deviation / jnp.where(mean > 0, mean, 1), 0.0),
        "factor_min": jnp.min(factors),
        "factor_max": jnp.max(factors),
    }


def _fraction(masks: Any) -> jax.Array:
    # Counts of a large network overflow int32: add densities, weighted by exact sizes.
    leaves = [
        leaf for _, leaf in paths.flatten_with_paths(masks) if hasattr(leaf, "size")
    ]
    total = sum(leaf.size for leaf in leaves)
    parts = [jnp.mean(leaf, dtype=jnp.float32) * (leaf.size / total) for leaf in leaves]
    return jnp.sum(jnp.stack(parts))

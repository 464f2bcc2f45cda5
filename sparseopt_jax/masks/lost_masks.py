"""Masks that have been wiped: an eager step tells it before it wipes the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.packing import is_packed
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.boxes import unbox_tree


def check_not_lost(topology: Any, state: Any, params: Any) -> None:
    """Raise if a layer has no active weight left that its topology gives some.

    ``optax.tree.map_params(tx, jnp.zeros_like, opt_state)``, by which moments are
    restarted, takes masks for parameters, too: all False, the next step would set every
    weight to zero. Inside of ``jit`` values are not known; nothing is added there.

    Args:
      topology: what made the masks.
      state: a ``SparseState``.
      params: the weights.

    Raises:
      ValueError: with the leaf's path, and what restarts moments alone.
    """
    by_path = _flags(state)
    if any(isinstance(x, Tracer) for x in by_path.values()):
        return
    found = _any_of_each(tuple(by_path.values())) if by_path else ()
    if isinstance(found, Tracer):
        return  # only the state is known, the rest of the step is being traced
    flags = zip(by_path, np.asarray(found), strict=True)
    lost = {path for path, flag in flags if not flag}
    if not lost or (topology.may_empty_layers and len(lost) < len(by_path)):
        return
    for plan in topology.leaves(params):
        if plan.path in lost and plan.active:
            raise ValueError(
                f"no weight of {plan.path!r} is active, though {topology.name} gives "
                "it some: the masks in opt_state have been lost, as "
                "optax.tree.map_params(tx, jnp.zeros_like, opt_state) loses them. To "
                "restart the moments, call so.reset_inner(tx, params, opt_state), "
                "which keeps the masks"
            )


def _flags(state: Any) -> dict[str, Any]:
    """What is not all zero in a layer that has active weights, by the layer's path."""
    counts = paths.leaves_by_path(unbox_tree(state.topology_state.fan_ins))
    if isinstance(state.masks, ActiveIndices):
        return counts
    masks = jax.tree.map(
        lambda x: x.bits if is_packed(x) else x, state.masks, is_leaf=is_packed
    )
    return counts | paths.leaves_by_path(unbox_tree(masks))


@jax.jit
def _any_of_each(leaves: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack([jnp.any(x.astype(bool)) for x in leaves])

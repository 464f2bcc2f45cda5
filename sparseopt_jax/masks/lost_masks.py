"""Detection of wiped masks: an eager step raises before it wipes the weights."""

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
    """Raise if a layer that should have active weights has none.

    ``optax.tree.map_params(tx, jnp.zeros_like, opt_state)``, a common way to reset
    moments, also maps the masks. They become all False, and the next step would set
    every weight to zero. Inside ``jit`` the values are unknown, so nothing is checked
    and nothing is added to the program.

    Args:
      topology: the topology that made the masks.
      state: a ``SparseState``.
      params: the weights.

    Raises:
      ValueError: with the leaf's path, and a call that resets only the moments.
    """
    by_path = _flags(state)
    if any(isinstance(x, Tracer) for x in by_path.values()):
        return
    found = _any_of_each(tuple(by_path.values())) if by_path else ()
    if isinstance(found, Tracer):
        return  # the state is concrete, but the rest of the step is being traced
    flags = zip(by_path, np.asarray(found), strict=True)
    lost = {path for path, flag in flags if not flag}
    if not lost or (topology.may_empty_layers and len(lost) < len(by_path)):
        return
    for plan in topology.leaves(params):
        if plan.path in lost and plan.active:
            raise ValueError(
                f"no weight of {plan.path!r} is active, but {topology.name} keeps some "
                "active: the masks in opt_state were overwritten, for example by "
                "optax.tree.map_params(tx, jnp.zeros_like, opt_state). To reset the "
                "moments, call so.reset_inner(tx, params, opt_state), which keeps the "
                "masks"
            )


def _flags(state: Any) -> dict[str, Any]:
    """Return, by path, an array per layer that is all zero if no weight is active."""
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

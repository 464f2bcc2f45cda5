"""What a compact ``sparsify`` has besides: its gradients, and what does not fit it."""

from typing import Any

import optax

from sparseopt_jax.engine.compact_inner import check_inner
from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.compact_storage import active_entries
from sparseopt_jax.masks.state import check_order, find_states
from sparseopt_jax.topologies.base import Topology


def compact_gradients(grads: Any, opt_state: Any) -> Any:
    """Return the gradients of the active weights alone, for a compact ``sparsify``.

    Sum these over micro-batches instead of the gradients: what is summed then has the
    size of the active weights, and ``tx.update`` takes it in place of the gradients.
    A topology that scores inactive weights by their gradients (RigL) needs those; one
    that grows at random (SET, SMET) does not.

    Args:
      grads: tree like the parameters.
      opt_state: any pytree that holds the state of a compact ``sparsify``.

    Returns:
      A tree like ``grads``, what is sparse replaced by its active entries.

    Raises:
      ValueError: if ``opt_state`` holds no such state.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> tx = so.sparsify(optax.adam(1e-3), so.static(0.75), compact=True)
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> state = tx.init(params)
      >>> grads = so.compact_gradients(params, state)
      >>> grads["kernel"].shape, grads["bias"].shape
      ((1, 8), (8,))
      >>> updates, state = tx.update(grads, state, params)
    """
    check_order("compact_gradients(grads, opt_state)", grads, opt_state)
    found = [
        state.masks
        for state in find_states(opt_state)
        if isinstance(state.masks, ActiveIndices)
    ]
    if not found:
        raise ValueError(
            "opt_state holds no active weights: build the optimizer with "
            "sparsify(..., compact=True)"
        )
    for indices in found:
        grads = active_entries(indices, grads)
    return grads


def check_compact(inner: optax.GradientTransformation, topology: Topology) -> None:
    """Raise where active weights alone do not do.

    Args:
      inner: the optimizer, which is to see no others.
      topology: decides how many there are.

    Raises:
      TypeError: if weights stay dense behind the masks.
      ValueError: if the topology changes how many weights a layer has, or the optimizer
        would give them other updates.
    """
    if topology.stays_dense:
        raise TypeError(
            f"{topology.name} keeps the weights behind its masks dense, so there are "
            "no active weights alone: leave compact out"
        )
    if not topology.keeps_counts:
        raise ValueError(
            f"{topology.name} changes how many weights a layer has, but compact=True "
            "has room for one number: leave compact out, or use a topology that keeps "
            "the number, such as set_ or rigl"
        )
    check_inner(inner, "compact=True shows", "leave compact out")

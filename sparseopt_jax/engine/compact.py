"""Gradients of a compact ``sparsify``, and checks of what it supports."""

from typing import Any

import optax

from sparseopt_jax.engine.compact_inner import check_inner
from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.compact_storage import active_entries
from sparseopt_jax.masks.state import check_order, find_states
from sparseopt_jax.topologies.base import Topology


def compact_gradients(grads: Any, opt_state: Any) -> Any:
    """Return the gradients of the active weights only, for a compact ``sparsify``.

    Sum them over micro-batches instead of the dense gradients: the sums have the size
    of the active weights, and ``tx.update`` accepts them in place of gradients. A
    topology that scores inactive weights by their gradients (RigL) needs the dense
    gradients; one that grows at random (SET, SMET) does not.

    Args:
      grads: tree like the parameters.
      opt_state: any pytree that holds the state of a compact ``sparsify``.

    Returns:
      A tree like ``grads``, with sparse leaves replaced by their active entries.

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
    """Raise if an optimizer and a topology need more than the active weights.

    Args:
      inner: the optimizer, which will see only active weights.
      topology: decides how many weights are active.

    Raises:
      TypeError: if the topology keeps the weights dense.
      ValueError: if the topology changes the number of active weights of a layer, or
        the optimizer would give them different updates.
    """
    if topology.stays_dense:
        raise TypeError(
            f"{topology.name} keeps the weights behind its masks dense, but "
            "compact=True keeps only active weights: omit compact=True"
        )
    if not topology.keeps_counts:
        raise ValueError(
            f"{topology.name} changes how many weights of a layer are active, but "
            "compact=True needs a fixed number: omit compact=True, or use a topology "
            "that keeps the number, such as set_ or rigl"
        )
    check_inner(inner, "compact=True shows", "omit compact=True")

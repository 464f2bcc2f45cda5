"""Changing masks from the host, outside of the compiled step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.arrays.sharding_types import typed_like
from sparseopt_jax.engine.compact import (
    active_entries,
    in_types_of,
    masks_like,
    refreshed,
)
from sparseopt_jax.engine.frozen_leaves import frozen_leaves
from sparseopt_jax.engine.inner_state import refresh
from sparseopt_jax.engine.straight_through import with_chosen_masks
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.owners import Owner, find_owners, structure_of
from sparseopt_jax.masks.state import (
    ForwardMaskState,
    SparseState,
    check_order,
    find_states,
    is_sparse_state,
    map_masked,
    zero_masked,
)
from sparseopt_jax.masks.stored_masks import filled, loaded, stored, whole, without
from sparseopt_jax.trees.evened_boxes import evened
from sparseopt_jax.trees.prng_keys import load_key


def update_topology(
    tx: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """Changes the masks from the host, for ``sparsify(..., host_updates=True)``.

    Compile it once and call it when ``topology.due(step)``: for a topology that
    replaces the gradient step (RigL) before ``tx.update`` of that step, which then
    moves no weight and only advances counters and schedules; for one that follows it
    (SET) after the weights have been updated. The change is then the one within the
    step, up to the rounding of another compiled program.

    Args:
      tx: the transformation, or anything in optax around it.
      grads: the dense gradient of the step, tree like ``params``.
      opt_state: the state of ``tx``.
      params: the weights.

    Returns:
      The new optimizer state, and the weights with what was dropped or grown at zero.

    Raises:
      ValueError: if ``opt_state`` holds no masks, or they were made by a topology that
        never changes or by another ``tx``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> topology = so.rigl(0.75, every=100, stop=1000)
      >>> tx = so.sparsify(optax.sgd(0.1), topology, host_updates=True)
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> state = tx.init(params)
      >>> change = jax.jit(lambda g, s, p: so.update_topology(tx, g, s, p))
      >>> if topology.due(0):
      ...     state, params = change(params, state, params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
    """
    call = "update_topology(tx, grads, opt_state, params)"
    if not callable(getattr(tx, "init", None)):
        raise TypeError(
            f"tx must be the transformation, got {described(tx)}: call so.{call}"
        )
    check_order(call, params, opt_state)
    check_order(call, grads, opt_state)
    if not find_states(opt_state):
        raise ValueError(
            f"opt_state holds no SparseState, got {described(opt_state)}; pass the "
            "state of a transformation built with sparsify"
        )

    def change(grads, opt_state, params):
        return _all_changed(tx, grads, opt_state, params)

    params, opt_state = evened(change)(grads, opt_state, params)
    return opt_state, params


def _all_changed(
    tx: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """The parameters and the state after a change by every owner in it."""
    owners = find_owners(tx, params)
    by_structure = {owner.structure: owner for owner in owners}

    def change(node):
        nonlocal params
        if not is_sparse_state(node):
            return node
        old = node = whole(node)
        owner = by_structure.get(structure_of(node.masks))
        if owner is None:
            raise ValueError("opt_state was not made by this tx: other masks")
        if not owner.topology.moves:
            raise ValueError("a static topology never changes; use set_ or rigl")
        seen = owner.seen(params)
        if isinstance(node, ForwardMaskState):
            new = with_chosen_masks(
                owner.topology, node, node.count - 1, seen, owner.packed
            )
            return typed_like(old, new)
        node, zeros = _changed(owner, node, seen, grads)
        params = zero_masked(zeros, params)
        return typed_like(old, node)

    opt_state = jax.tree.map(change, opt_state, is_leaf=is_sparse_state)
    return params, opt_state


def _changed(
    owner: Owner, node: SparseState, params: Any, grads: Any
) -> tuple[SparseState, Any]:
    """The state after a change, and the masks of what is to be kept of the weights."""
    topology, topology_state = owner.topology, node.topology_state
    # A change that follows the gradient step belongs to the step just taken.
    step = node.count if topology.replaces_step else node.count - 1
    if topology.replaces_step:
        # The step's own gradient counts, but the step itself will remember it.
        topology_state = topology.observe(step, topology_state, grads)
    is_compact = isinstance(node.masks, ActiveIndices)
    if is_compact:
        masks, inner_state = in_types_of(
            params, owner.inner, node.masks, node.inner_state
        )
        node = node._replace(masks=masks, inner_state=inner_state)
    masks = masks_like(node.masks, params) if is_compact else node.masks
    old, topology_state = loaded(masks, topology_state, params)
    told = environment.of_masks(
        node.masks.weights() if is_compact else old,
        topology_state.fan_ins,
        topology.dims,
    )
    seen = active_entries(node.masks, params) if is_compact else params
    frozen = frozen_leaves(owner.inner, told, node.inner_state, seen)
    new, topology_state = topology.update(
        *(jax.random.fold_in(load_key(node.key, owner.key), step), step),
        *(without(frozen, old), topology_state, params, grads),
    )
    new = filled(new, old)
    topology_state = topology_state._replace(memory=node.topology_state.memory)
    masks, topology_state = stored(owner.packed, (new, topology_state))
    kept = map_masked(jnp.logical_and, old, new)
    if is_compact:
        masks = node.masks.moved(new)
        inner_state = refreshed(
            *(owner.inner, node.masks, masks, node.inner_state),
            zero_masked(kept, params),
        )
    else:
        inner_state = refresh(owner.inner, new, node.inner_state, params, changed=True)
    node = node._replace(
        masks=masks, topology_state=topology_state, inner_state=inner_state
    )
    return node, kept

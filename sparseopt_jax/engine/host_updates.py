"""Updates of the masks from the host, outside of the compiled step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.arrays.conditions import if_due
from sparseopt_jax.arrays.sharding_types import typed_like
from sparseopt_jax.engine.compact_host import (
    check_gradients,
    compact_owner,
    updated_compact,
)
from sparseopt_jax.engine.compact_step import check_dense
from sparseopt_jax.engine.frozen_leaves import frozen_leaves
from sparseopt_jax.engine.inner_state import in_types_of, reset
from sparseopt_jax.engine.mask_update import MaskUpdate
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.compact_kernel import holds_compact
from sparseopt_jax.masks.owners import Owner, find_owners, structure_of
from sparseopt_jax.masks.state import (
    SparseState,
    check_order,
    find_states,
    is_sparse_state,
)
from sparseopt_jax.masks.storage import filled, whole
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.topologies.schedules import FOREVER
from sparseopt_jax.trees.evened_boxes import evened


def update_topology(
    tx: optax.GradientTransformation,
    grads: Any | None,
    opt_state: Any,
    params: Any,
    **extra_args: Any,
) -> tuple[Any, Any]:
    """Update the masks from the host, for ``sparsify(..., host_updates=True)``.

    Compile it once and call it at every ``step`` of the loop for which
    ``topology.due(step)``, and at no other. If the topology replaces the gradient step
    (RigL), call it before ``tx.update`` of that step, which then changes no weights and
    only advances counters and schedules. If the topology follows the gradient step
    (SET), call it after the weights have been updated. The update then equals the one
    within the step, up to rounding in a different program.

    Args:
      tx: the transformation, or any optax wrapper around it.
      grads: the dense gradient of the step, tree like ``params``; with compact
        parameters, the result of ``dense_gradient``. It may be None if the topology
        reads no gradients (SET), and the compact gradient of compact parameters if the
        topology reads only the gradients of active weights (MEST).
      opt_state: the state of ``tx``.
      params: the weights, dense or compact.
      **extra_args: keyword arguments of ``tx.update``, to find leaves that ``inner``
        never changes. They are needed only if a transformation of your own asks for
        arguments that those of Optax do not ask for.

    Returns:
      The new optimizer state, and the weights, with zeros where dropped or grown.

    Raises:
      TypeError: if ``tx`` is not a transformation, or arguments are swapped.
      ValueError: if ``opt_state`` holds no masks, or masks of a static topology or of
        another ``tx``; if ``grads`` is None although the topology reads gradients, or,
        with compact parameters, omits entries that it reads; if an update of compact
        parameters changes the number of active blocks; if ``inner`` needs further
        ``extra_args``; outside of ``jit``, if the topology has no update left.

    Note:
      A wrapper may reject steps (``optax.apply_if_finite``), and the step count of the
      state then lags behind the loop. Every call therefore makes the next update of the
      schedule, from the state's step and its last update on, and moves the count to the
      step of that update. If the rejected step is the one of an update that reads
      gradients, postpone the call to the next step whose gradient is finite, as
      happens without ``host_updates``. If ``tx`` holds several topologies, a call
      updates the masks of those that are due first.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> topology = so.rigl(0.75, every=100, stop=1000)
      >>> tx = so.sparsify(optax.sgd(0.1), topology, host_updates=True)
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> state = tx.init(params)
      >>> update_masks = jax.jit(lambda g, s, p: so.update_topology(tx, g, s, p))
      >>> if topology.due(0):
      ...     state, params = update_masks(params, state, params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
    """
    call = "update_topology(tx, grads, opt_state, params)"
    if not callable(getattr(tx, "init", None)):
        raise TypeError(
            f"tx must be a transformation, got {described(tx)}: call so.{call}"
        )
    check_order(call, params, opt_state)
    if grads is not None:
        check_order(call, grads, opt_state)
    if not find_states(opt_state):
        raise ValueError(
            f"opt_state holds no SparseState, got {described(opt_state)}; pass the "
            "state of a transformation built with sparsify"
        )

    owners = {owner.structure: owner for owner in find_owners(tx, params)}

    def owner_of(state):
        owner = owners.get(structure_of(state.masks))
        if owner is None:
            raise ValueError(
                "opt_state was not made by this tx: its masks are for other leaves. "
                "Pass the state of tx.init(params)"
            )
        if not owner.topology.moves:
            raise ValueError("a static topology never changes: use set_ or rigl")
        check_gradients(owner.topology, grads)
        if holds_compact(params):
            return compact_owner(owner, state, grads, params)
        check_dense(owner.storage, grads, state)
        return owner

    def change(grads, opt_state, params):
        return _all_updated(owner_of, grads, opt_state, params, extra_args)

    if holds_compact(params):
        params, opt_state = updated_compact(change, grads, opt_state, params)
    else:
        seen = optax.tree.zeros_like(params) if grads is None else grads
        params, opt_state = evened(change)(seen, opt_state, params)
    return opt_state, params


def _all_updated(
    owner_of: Callable[[SparseState], Owner],
    grads: Any,
    opt_state: Any,
    params: Any,
    extra_args: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Return the parameters and the state after the owners that are due are updated."""
    nodes = jax.tree.leaves(opt_state, is_leaf=is_sparse_state)
    states = [whole(node) for node in nodes if is_sparse_state(node)]
    owners = [owner_of(state) for state in states]
    steps = [
        _next_due(owner, state) for owner, state in zip(owners, states, strict=True)
    ]
    first = functools.reduce(jnp.minimum, steps)
    if not isinstance(first, Tracer) and (first == FOREVER).any():
        raise ValueError(
            f"no update of the masks is left after step {int(states[0].count.max())}: "
            "call so.update_topology only if topology.due(step)"
        )
    parts = iter(zip(states, owners, steps, strict=True))

    def update(node):
        nonlocal params
        if not is_sparse_state(node):
            return node
        state, owner, step = next(parts)

        def change(kept, grads, step):
            state, weights = kept
            return _updated(owner, state, weights, grads, step, extra_args)

        kept = (state, owner.seen(params))
        due = True if len(states) == 1 else step == first
        new, weights = if_due(due, change, kept, grads, step)
        if not owner.topology.stays_dense:
            params = filled(weights, params)
        return typed_like(state, new)

    opt_state = jax.tree.map(update, opt_state, is_leaf=is_sparse_state)
    return params, opt_state


def _current(topology: Topology, state: SparseState) -> jax.Array:
    """Return the step to which an update belongs according to the state's count."""
    # An update after the gradient step belongs to the step just taken.
    return state.count if topology.replaces_step else state.count - 1


def _next_due(owner: Owner, state: SparseState) -> jax.Array:
    """Return the step of the next update; ``FOREVER`` if none is left.

    The count of the state may lag behind the host's loop, because wrappers reject
    steps, so the schedule decides which update this is.
    """
    topology, last = owner.topology, state.topology_state.updated_at
    return topology.next_due(jnp.maximum(_current(topology, state), last + 1))


def _updated(
    owner: Owner,
    state: SparseState,
    params: Any,
    grads: Any,
    step: jax.Array,
    extra_args: Mapping[str, Any],
) -> tuple[SparseState, Any]:
    """Return the updated state, and the weights, with zeros where dropped or grown."""
    topology, storage = owner.topology, owner.storage
    state = in_types_of(params, owner.inner, storage, state)
    topology_state = state.topology_state
    step = jnp.where(step == FOREVER, _current(topology, state), step)
    if topology.replaces_step:
        # The update uses this step's gradient, but only the step itself remembers it.
        topology_state = topology.observe(step, topology_state, grads)
    old = storage.view(state.masks, topology_state, params)
    fan_ins = topology_state.fan_ins
    values = environment.of_view(storage, old, fan_ins, topology.dims)
    alone = topology.full_leaves(storage.planned(state.masks, params))
    if not topology.stays_dense:
        seen = storage.weights(old, params)
        alone |= frozen_leaves(owner.inner, values, state.inner_state, seen, extra_args)
    update = MaskUpdate.of(topology, storage, state, owner.key, step, alone)
    masks, topology_state = update(state.masks, topology_state, params, grads)
    new = storage.view(masks, topology_state, params)
    weights = storage.with_kept(state.masks, masks, params)
    inner_state = reset(
        owner.inner,
        storage,
        old,
        new,
        state.inner_state,
        weights,
        updated=True,
    )
    state = state._replace(
        # The gradient step that is replaced is the next one that no wrapper rejects.
        count=step if topology.replaces_step else step + 1,
        masks=masks,
        topology_state=topology_state._replace(memory=state.topology_state.memory),
        inner_state=inner_state,
    )
    return state, weights

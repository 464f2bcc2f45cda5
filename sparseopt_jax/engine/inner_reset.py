"""Reset of the inner optimizer in the middle of a run, with the same masks."""

from typing import Any

import jax
import optax

from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.compact_kernel import active_arrays
from sparseopt_jax.masks.compact_storage import CompactStorage
from sparseopt_jax.masks.owners import find_owners, structure_of
from sparseopt_jax.masks.state import (
    find_states,
    get_masks,
    is_sparse_state,
    unbox,
    zero_masked,
)
from sparseopt_jax.masks.storage import whole
from sparseopt_jax.masks.zero_weights import weight_masks


def reset_inner(tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """Reset the moments and counters of the inner optimizer, but keep the masks.

    ``optax.tree.map_params(tx, jnp.zeros_like, opt_state)``, which resets the moments
    of a dense optimizer, also maps the masks and makes them all False.

    Args:
      tx: the transformation, or any optax wrapper around it.
      params: the weights.
      opt_state: the state of ``tx``.

    Returns:
      The optimizer state in which every ``sparsify`` has the inner state that
      ``inner.init`` returns for these weights. Masks, topology state, step count and
      key are those of ``opt_state``, and so is the state of wrappers around
      ``sparsify``: the hyperparameters of ``inject_hyperparams``, the gradients of
      ``MultiSteps``. If masks come from ``sparseopt``, which has no inner optimizer,
      everything else in the state is as returned by ``tx.init``.

    Raises:
      ValueError: if ``opt_state`` holds no masks, or they were made by another ``tx``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> tx = so.sparsify(optax.adam(1e-3), so.rigl(0.75, every=100, stop=1000))
      >>> state = tx.init(params)
      >>> params = so.apply_masks(params, state)
      >>> updates, state = tx.update(params, state, params)
      >>> state = so.reset_inner(tx, params, state)
      >>> int(state.count), int(state.inner_state[0].count)
      (1, 0)
      >>> int(so.get_masks(state)["kernel"].sum())
      8
    """
    if not find_states(opt_state):
        get_masks(opt_state)  # raises, and says how to build a state with masks
    pure, params = unbox(opt_state), unbox(params)
    owners = find_owners(tx, params)
    params = active_arrays(params)
    by_structure = {owner.structure: owner for owner in owners}

    def fresh(node):
        if not is_sparse_state(node):
            return node
        state = whole(node)
        owner = by_structure.get(structure_of(state.masks))
        if owner is None:
            raise ValueError(
                "opt_state was not made by this tx: its masks are for other leaves. "
                "Pass the state of tx.init(params)"
            )
        seen = owner.seen(params)
        is_compact = isinstance(state.masks, ActiveIndices)
        storage = CompactStorage() if is_compact else owner.storage
        view = storage.view(state.masks, state.topology_state, seen)
        inner_state = owner.inner.init(storage.take(view, seen))
        return node._replace(inner_state=inner_state)

    if any(owner.is_link for owner in owners):
        seen = zero_masked(weight_masks(pure), params)
        pure = jax.tree.map(
            lambda new, old: old if is_sparse_state(old) else new,
            tx.init(seen),
            pure,
            is_leaf=is_sparse_state,
        )
    pure = jax.tree.map(fresh, pure, is_leaf=is_sparse_state)
    return jax.tree.map(
        lambda old, new: old.replace(new) if _is_variable(old) else new,
        opt_state,
        pure,
        is_leaf=_is_variable,
    )


def _is_variable(x: Any) -> bool:
    # ``nnx.Optimizer`` wraps every leaf in a variable.
    return hasattr(x, "get_value")

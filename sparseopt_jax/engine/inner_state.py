"""The state of any inner optimizer, read and modified from outside."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arrays.conditions import chosen
from sparseopt_jax.arrays.shapes import leading_axes
from sparseopt_jax.arrays.sharding_types import typed_like
from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.masks.state import SparseState
from sparseopt_jax.masks.storage import MaskStorage, View
from sparseopt_jax.trees import paths


def map_weight_state(
    function: Callable[[jax.Array, Any, Any], Any], masks: Any, state: Any, other: Any
) -> Any:
    """Map ``function(mask, leaf, other)`` over a state's leaves of sparse parameters.

    A leaf belongs to a parameter if its path ends in the parameter's path and its shape
    ends in the mask's: momentum, second moments, copies of the weights, accumulated
    gradients, and the memory of L-BFGS, which has a further axis in front. This works
    for every optax optimizer and wrapper, because all of them keep these arrays in
    trees like the parameters. Values that they cache for the network as a whole, as
    line searches do, are skipped.

    Args:
      function: called at these leaves only.
      masks: tree of masks.
      state: an optimizer state.
      other: a tree with the structure of ``state``.

    Returns:
      A tree like ``state``.
    """
    by_parts = {
        paths.path_parts(key_path): mask
        for key_path, mask in paths.leaves_with_path(masks, is_leaf=paths.is_hole)
    }

    def at_leaf(key_path, leaf, other_leaf):
        mask = paths.longest_ending(paths.path_parts(key_path), by_parts)
        if mask is None or paths.is_hole(mask) or _is_cache(leaf):
            return leaf
        leading = leading_axes(jnp.shape(leaf), mask.shape)
        if leading is None:
            return leaf
        if leading:
            mask = jnp.broadcast_to(mask, jnp.shape(leaf))
        return function(mask, leaf, other_leaf)

    return paths.map_with_key_paths(at_leaf, state, other, is_leaf=_is_cache)


def reset(
    inner: optax.GradientTransformation,
    storage: MaskStorage,
    old: View,
    new: View,
    inner_state: Any,
    params: Any,
    updated: Any,
) -> Any:
    """Return the inner state with initial values in all entries that are not kept.

    Args:
      inner: the transformation.
      storage: decides what it sees of the weights.
      old: the masks for which the state was computed.
      new: the masks for which it will be used.
      inner_state: its state.
      params: the weights.
      updated: whether the masks were updated, a bool or bool scalar: cached values and
        gradients are then of a different network and must not be used.

    Returns:
      A tree like ``inner_state``.
    """
    entries = storage.kept_entries(old, new)
    if not entries and not _holds_caches(inner_state):
        return inner_state
    fresh = initial_state(inner, storage.take(new, params))

    def keep(mask, state, fresh):
        return chosen(mask, state, fresh).astype(state.dtype)

    for masks in entries:
        inner_state = map_weight_state(keep, masks, inner_state, fresh)
    return _without_caches(updated, inner_state, fresh)


def in_types_of(
    params: Any,
    inner: optax.GradientTransformation,
    storage: MaskStorage,
    state: SparseState,
) -> SparseState:
    """Return a state whose arrays have the explicit shardings of their weights.

    Args:
      params: the weights.
      inner: the inner transformation.
      storage: how the masks are stored.
      state: the state of an owner.

    Returns:
      The state; it is unchanged if no mesh is explicit.
    """
    masks = storage.typed(state.masks, params)
    if masks is state.masks:
        return state
    fresh = initial_state(inner, storage.take(masks, params))
    inner_state = typed_like(fresh, state.inner_state)
    return state._replace(masks=masks, inner_state=inner_state)


def initial_state(inner: optax.GradientTransformation, params: Any) -> Any:
    """Compute ``inner.init(params)`` again, without its side effects."""
    program = InnerProgram.of(lambda params: (inner.init(params), ()), params)
    return program.updates_only(params)


def _without_caches(updated: Any, state: Any, fresh: Any) -> Any:
    """Return the state with the initial value in every cache, if ``updated``.

    Line searches keep the last value and gradient for
    ``optax.value_and_grad_from_state``, which uses them unless the value is infinite,
    as it is initially.

    Args:
      updated: a bool or bool scalar.
      state: an optimizer state.
      fresh: the initial state.

    Returns:
      A tree like ``state``.
    """
    if updated is False:
        return state

    def at_node(node, first):
        if not _is_cache(node):
            return node
        value = jnp.where(updated, first.value, node.value)
        return node._replace(value=value.astype(jnp.result_type(node.value)))

    return jax.tree.map(at_node, state, fresh, is_leaf=_is_cache)


def _holds_caches(state: Any) -> bool:
    return any(map(_is_cache, jax.tree.leaves(state, is_leaf=_is_cache)))


def _is_cache(node: Any) -> bool:
    """Tell whether a node is a line search's state, with a value and its gradient.

    Parameters with these names are keys of a dictionary, not fields.
    """
    if not {"value", "grad"} <= set(getattr(node, "_fields", ())):
        return False
    is_scalar = [jnp.ndim(x) for x in jax.tree.leaves(node.value)] == [0]
    return is_scalar and node.grad is not None


def hold(condition: Any, advances: list[bool], old: Any, new: Any) -> Any:
    """Return the old state if the condition holds, except for leaves that advance.

    Args:
      condition: a bool or bool scalar.
      advances: a bool for each leaf.
      old: the state before a step.
      new: the state after it.

    Returns:
      A tree like ``new``.
    """

    def at_leaf(advances, old, new):
        if advances:
            return new
        # Some optimizers keep a Python bool where others keep an array.
        held, dtype = chosen(condition, old, new), jnp.result_type(new)
        return held if held.dtype == dtype else held.astype(dtype)

    structure = jax.tree.structure(new)
    return jax.tree.map(at_leaf, structure.unflatten(advances), old, new)


def nothing_where(condition: Any, updates: Any) -> Any:
    """Return updates of zero if the condition holds, a bool or bool scalar."""
    if condition is False:
        return updates
    return jax.tree.map(lambda u: chosen(condition, jnp.zeros_like(u), u), updates)

"""Conversion of a state, in the middle of a run, to another form of its optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arrays.shapes import leading_axes
from sparseopt_jax.engine.inner_state import reset
from sparseopt_jax.masks.active_weights import ActiveIndices, Places
from sparseopt_jax.masks.compact_kernel import CompactKernel, is_compact
from sparseopt_jax.masks.layouts import Layout, in_each
from sparseopt_jax.masks.owners import Owner, find_owners, structure_of
from sparseopt_jax.masks.packing import unpack
from sparseopt_jax.masks.state import (
    find_states,
    get_masks,
    is_sparse_state,
    places_of,
    stays_dense,
)
from sparseopt_jax.masks.storage import whole
from sparseopt_jax.trees import paths


def convert_state(tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """Convert the state of a dense run, or of another form of storage, for ``tx``.

    A run may start dense, with compact parameters, or with ``compact=False``,
    ``packed=True`` or ``host_updates=True``, and continue in another of these forms.
    Masks, step count and key are those of ``opt_state``, and so is the inner
    optimizer's state of every active weight. State of inactive weights, and any state
    that ``tx`` keeps but ``opt_state`` does not, is that of ``inner.init``.

    Args:
      tx: the transformation to continue with. Its inner optimizer, and the
        transformations around ``sparsify``, must be those of ``opt_state``.
      params: the weights as dense arrays: ``dense_params`` of compact ones.
      opt_state: the state of a transformation with masks; or that of the inner
        optimizer alone, trained dense, for which ``tx`` makes the masks.

    Returns:
      A state of ``tx``. If its masks are new, call ``apply_masks`` on the weights.

    Raises:
      ValueError: if the states hold different entries for the weights, with the path of
        the first difference; if the masks do not fit ``tx``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> dense = optax.adam(1e-3)
      >>> updates, state = dense.update(params, dense.init(params), params)
      >>> tx = so.sparsify(dense, so.set_(0.75, every=10, stop=90), compact=True)
      >>> state = so.convert_state(tx, params, state)
      >>> state.inner_state[0].mu["kernel"].size, int(state.inner_state[0].count)
      (8, 1)
    """
    new: Any = tx.init(params)
    if not find_states(new):
        get_masks(new)  # raises, and says how to build a transformation with masks
    if find_states(opt_state):
        return _converted(tx, params, new, _dense_around(opt_state))
    if not is_sparse_state(new):
        raise ValueError(
            "opt_state holds no masks, so it must be the state of the optimizer inside "
            "sparsify, and tx must be the result of sparsify itself: convert before tx "
            "is put into a chain or wrapper"
        )
    (owner,) = find_owners(tx, params)
    seen, storage = owner.seen(params), owner.storage
    inner_state = _inner_state(new, None, opt_state, seen)
    # In a dense run, weights had a history that are inactive now, and a line search
    # cached the loss of the dense network.
    view = storage.view(new.masks, new.topology_state, seen)
    inner_state = reset(
        owner.inner, storage, view, view, inner_state, seen, updated=True
    )
    return new._replace(inner_state=inner_state)


def _converted(tx: Any, params: Any, new: Any, old: Any) -> Any:
    nodes, structure = jax.tree.flatten(new, is_leaf=is_sparse_state)
    old_nodes, old_structure = jax.tree.flatten(old, is_leaf=is_sparse_state)
    if structure != old_structure:
        raise ValueError(
            "opt_state was made by a transformation that is nested differently from "
            f"tx: {old_structure} instead of {structure}"
        )
    owners = {owner.structure: owner for owner in find_owners(tx, params)}
    found = []
    for node, old_node in zip(nodes, old_nodes, strict=True):
        if is_sparse_state(node) != is_sparse_state(old_node) or (
            is_sparse_state(node) and stays_dense(node) != stays_dense(old_node)
        ):
            raise ValueError(
                f"opt_state holds {_described(old_node)} where tx has "
                f"{_described(node)}, and these cannot be converted to each other"
            )
        if is_sparse_state(node):
            owner = owners[structure_of(node.masks)]
            old_node = _converted_node(owner, node, whole(old_node), params)
        found.append(old_node)
    return structure.unflatten(found)


def _dense_around(opt_state: Any) -> Any:
    """Return a state with dense arrays for compact gradients around ``sparsify``."""
    places = places_of(opt_state)

    def at_leaf(key_path, x):
        if not is_compact(x):
            return x
        layout, index = paths.longest_ending(paths.path_parts(key_path), places)
        return CompactKernel.of(x.active, index, layout).dense()

    return paths.map_with_key_paths(
        at_leaf, opt_state, is_leaf=lambda x: is_compact(x) or is_sparse_state(x)
    )


def _described(node: Any) -> str:
    if not is_sparse_state(node):
        return type(node).__name__
    if stays_dense(node):
        return "masks of the forward pass only (ste)"
    return "masks of the weights"


def _converted_node(owner: Owner, node: Any, old: Any, params: Any) -> Any:
    """Return a new state with the masks and all other contents of an old one."""
    kept = {
        name: owner.storage.pack(unpack(getattr(old.topology_state, name)))
        for name in node.topology_state._fields
        # Fields that one of the two does not keep start with their initial values.
        if jax.tree.leaves(getattr(old.topology_state, name))
        and jax.tree.leaves(getattr(node.topology_state, name))
    }
    masks = old.masks  # in the order of the moments
    if jax.tree.structure(masks) != jax.tree.structure(node.masks):
        masks = owner.storage.converted(node.masks, get_masks(old))
    node = node._replace(
        count=old.count,
        key=old.key,
        masks=masks,
        topology_state=node.topology_state._replace(**kept),
    )
    seen = owner.seen(params)
    inner_state = _inner_state(node, old.masks, old.inner_state, seen)
    return node._replace(inner_state=inner_state)


def _inner_state(node: Any, old_masks: Any, old: Any, params: Any) -> Any:
    """Return the state of the inner optimizer in the form of a new state."""
    new_layouts, old_layouts = _places(node.masks), _places(old_masks)
    params = [
        paths.path_parts(key_path) for key_path, _ in paths.leaves_with_path(params)
    ]
    of_params = dict(zip(params, params, strict=True))
    given = {
        paths.path_parts(key_path): x for key_path, x in paths.leaves_with_path(old)
    }

    def at_leaf(key_path, fresh):
        parts = paths.path_parts(key_path)
        if parts not in given:
            raise ValueError(
                f"opt_state holds nothing at {'/'.join(parts)!r}, but the inner "
                "optimizer of tx does: pass the state of the same optimizer"
            )
        found = given.pop(parts)
        shape = jnp.shape(fresh)
        param = paths.longest_ending(parts, of_params)
        after, before = new_layouts.get(param), old_layouts.get(param)
        if jnp.shape(found) == shape and not _differ(after, before):
            return found
        if before is not None and jnp.ndim(found):
            layout, index = before
            found = _put(found, index, layout, fresh if after is None else 0)
        if after is not None:
            layout, index = after
            found = _taken(found, index, layout)
        if found.ndim == len(shape) and found.ndim and shape[-1] == 1:
            found = found[..., :1]  # one entry per block
        if jnp.shape(found) != shape:
            raise ValueError(
                f"opt_state has shape {jnp.shape(found)} at {'/'.join(parts)!r}, but "
                f"the inner optimizer of tx has shape {shape}: pass the state of the "
                "same optimizer"
            )
        return found

    converted = paths.map_with_key_paths(at_leaf, node.inner_state)
    if given:
        raise ValueError(
            f"opt_state holds {'/'.join(next(iter(given)))!r}, which the inner "
            "optimizer of tx does not keep: pass the state of the same optimizer"
        )
    return converted


def _put(active: Any, index: Any, layout: Layout, others: Any) -> jax.Array:
    """Return an array of state, dense, from that of the active weights.

    Axes in front of the weights' own, as in L-BFGS's memory, are kept.
    """
    leading = jnp.shape(active)[: max(0, jnp.ndim(active) - len(layout.shape))]
    others = jnp.broadcast_to(others, (*leading, *layout.units.shape))
    index = jnp.broadcast_to(index, (*leading, *layout.index_shape))
    active = jnp.broadcast_to(active, (*leading, *layout.shape))
    return in_each(layout.put, leading)(others.astype(active.dtype), index, active)


def _taken(x: Any, index: Any, layout: Layout) -> Any:
    """Return the active weights' entries of an array of state, if it is dense."""
    leading = leading_axes(jnp.shape(x), layout.units.shape)
    if leading is None:
        return x
    index = jnp.broadcast_to(index, (*leading, *layout.index_shape))
    return in_each(layout.take, leading)(x, index)


def _places(masks: Any) -> Places:
    """Return layout and index of leaves with state for the active weights only."""
    return masks.places() if isinstance(masks, ActiveIndices) else {}


def _differ(after: Any, before: Any) -> bool:
    """Return whether a leaf's active weights are arranged differently than before."""
    if after is None or before is None:
        return after is not before
    return after[0] != before[0]

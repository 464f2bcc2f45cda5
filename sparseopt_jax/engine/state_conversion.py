"""A state that another form of the same optimizer takes over in the middle of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparseopt_jax.engine.compact import first_indices
from sparseopt_jax.masks.active_weights import ActiveIndices, Layout
from sparseopt_jax.masks.owners import find_owners, structure_of
from sparseopt_jax.masks.packing import unpack
from sparseopt_jax.masks.state import (
    ForwardMaskState,
    find_states,
    get_masks,
    is_sparse_state,
)
from sparseopt_jax.masks.stored_masks import stored, whole
from sparseopt_jax.trees import paths

Layouts = dict[tuple[str, ...], tuple[Layout, Any]]


def convert_state(tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """Converts the state of a dense run, or of another form of storage, for ``tx``.

    A run may begin dense, or with ``compact=False``, ``packed=True`` or
    ``host_updates=True``, and go on in another of these forms: masks, steps and key are
    those of ``opt_state``, and so is what the inner optimizer keeps for every weight
    that is active. For weights that ``tx`` keeps and ``opt_state`` does not, it is what
    ``inner.init`` gives.

    Args:
      tx: the transformation to go on with. Its inner optimizer, and what is around
        ``sparsify``, is that of ``opt_state``.
      params: the weights.
      opt_state: the state of a transformation with masks; or that of the inner
        optimizer alone, trained dense, for which ``tx`` makes the masks.

    Returns:
      A state of ``tx``. Where masks are new, ``apply_masks`` the weights by it.

    Raises:
      ValueError: if the states do not hold the same things for the same weights, with
        the path of the first that differs; if the masks do not fit ``tx``.

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
        return _converted(tx, params, new, opt_state)
    if not is_sparse_state(new):
        raise ValueError(
            "opt_state holds no masks, so it must be the state of the optimizer inside "
            "of sparsify, and tx that sparsify itself: convert before tx is put into a "
            "chain or wrapper"
        )
    return new._replace(inner_state=_inner_state(new, None, opt_state, params))


def _converted(tx: Any, params: Any, new: Any, old: Any) -> Any:
    nodes, structure = jax.tree.flatten(new, is_leaf=is_sparse_state)
    old_nodes, old_structure = jax.tree.flatten(old, is_leaf=is_sparse_state)
    if structure != old_structure:
        raise ValueError(
            "opt_state was made by another nest of transformations than tx: "
            f"{old_structure} instead of {structure}"
        )
    owners = {owner.structure: owner for owner in find_owners(tx, params)}
    found = []
    for node, old_node in zip(nodes, old_nodes, strict=True):
        if is_sparse_state(node) != is_sparse_state(old_node) or (
            is_sparse_state(node) and type(node) is not type(old_node)
        ):
            raise ValueError(
                f"opt_state holds {type(old_node).__name__} where tx has "
                f"{type(node).__name__}: masks of the forward pass alone (ste) and "
                "masks of the weights do not take each other's place"
            )
        if is_sparse_state(node):
            seen = owners[structure_of(node.masks)].seen(params)
            old_node = _converted_node(node, whole(old_node), seen)
        found.append(old_node)
    return structure.unflatten(found)


def _converted_node(node: Any, old: Any, params: Any) -> Any:
    """A new state with the masks of an old one and all that it keeps besides."""
    packed = _is_packed(node)
    kept = {
        name: stored(packed, unpack(getattr(old.topology_state, name)))
        for name in node.topology_state._fields
        # What one of the two does not keep begins as `init` gives it.
        if jax.tree.leaves(getattr(old.topology_state, name))
        and jax.tree.leaves(getattr(node.topology_state, name))
    }
    node = node._replace(
        count=old.count,
        key=old.key,
        masks=_masks(node.masks, old),
        topology_state=node.topology_state._replace(**kept),
    )
    if isinstance(node, ForwardMaskState):
        trained = stored(packed, unpack(old.trained_masks))
        node = node._replace(trained_masks=trained)
    inner_state = _inner_state(node, old.masks, old.inner_state, params)
    return node._replace(inner_state=inner_state)


def _is_packed(node: Any) -> bool:
    is_compact = isinstance(node.masks, ActiveIndices)
    return is_compact or unpack(node.masks) is not node.masks


def _masks(like: Any, old: Any) -> Any:
    """The masks of an old state in the form of others."""
    masks = get_masks(old)
    if not isinstance(like, ActiveIndices):
        return stored(unpack(like) is not like, masks)
    if isinstance(old.masks, ActiveIndices) and like.layouts == old.masks.layouts:
        return old.masks  # in the order that moments have
    by_path = paths.leaves_by_path(masks)
    for path, layout in like.layouts:
        counts = np.asarray(layout.units.count(layout.units.any(by_path[path])))
        if (counts != layout.per_cell).any():
            raise ValueError(
                f"the masks of opt_state have between {counts.min()} and "
                f"{counts.max()} active units in a layer or neuron of {path!r}, the "
                f"topology of tx {layout.per_cell}: compact=True takes over the masks "
                "of a topology with the same numbers only"
            )
    return first_indices(dict(like.layouts), masks)


def _inner_state(node: Any, old_masks: Any, old: Any, params: Any) -> Any:
    """What the inner optimizer keeps, in the form of a new state."""
    new_layouts, old_layouts = _layouts(node.masks), _layouts(old_masks)
    sizes = {
        paths.path_parts(key_path): jnp.shape(x)
        for key_path, x in paths.leaves_with_path(params)
    }
    given = {
        paths.path_parts(key_path): x for key_path, x in paths.leaves_with_path(old)
    }

    def at_leaf(key_path, fresh):
        parts = paths.path_parts(key_path)
        if parts not in given:
            raise ValueError(
                f"opt_state holds nothing at {'/'.join(parts)!r}, which the inner "
                "optimizer of tx keeps: give the state of the same optimizer"
            )
        found = given.pop(parts)
        shape = jnp.shape(fresh)
        if jnp.shape(found) == shape and not _differ(parts, new_layouts, old_layouts):
            return found
        own = paths.longest_ending(parts, new_layouts)
        before = paths.longest_ending(parts, old_layouts)
        dense = paths.longest_ending(parts, sizes)
        if before is not None and dense is not None:
            base = jnp.zeros(dense, found.dtype)
            if own is None:
                base = jnp.broadcast_to(fresh, dense).astype(found.dtype)
            layout, index = before
            found = layout.put(base, index, jnp.broadcast_to(found, layout.shape))
        if own is not None and jnp.shape(found) == dense:
            layout, index = own
            found = layout.take(found, index)
        if found.ndim == len(shape) and found.ndim and shape[-1] == 1:
            found = found[..., :1]  # one for each block
        if jnp.shape(found) != shape:
            raise ValueError(
                f"opt_state has shape {jnp.shape(found)} at {'/'.join(parts)!r}, the "
                f"inner optimizer of tx {shape}: give the state of the same optimizer"
            )
        return found

    converted = paths.map_with_key_paths(at_leaf, node.inner_state)
    if given:
        raise ValueError(
            f"opt_state holds {'/'.join(next(iter(given)))!r}, which the inner "
            "optimizer of tx does not keep: give the state of the same optimizer"
        )
    return converted


def _layouts(masks: Any) -> Layouts:
    """Layout and index of every leaf of which active weights are kept alone."""
    if not isinstance(masks, ActiveIndices):
        return {}
    layouts = dict(masks.layouts)
    return {
        paths.path_parts(key_path): (layouts[paths.path_string(key_path)], index)
        for key_path, index in paths.leaves_with_path(masks.tree)
    }


def _differ(parts: tuple[str, ...], new: Layouts, old: Layouts) -> bool:
    """Whether a leaf's active weights stand in other places than before."""
    own, before = (paths.longest_ending(parts, layouts) for layouts in (new, old))
    if own is None or before is None:
        return own is not before
    return own[0] != before[0]

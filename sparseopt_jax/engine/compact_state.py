"""Conversion of an optimizer's state from dense to compact parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arrays.shapes import leading_axes
from sparseopt_jax.masks.active_weights import ActiveIndices, Places
from sparseopt_jax.masks.compact_kernel import (
    CompactKernel,
    is_compact,
    parameters_by_path,
    write_places,
)
from sparseopt_jax.masks.compact_storage import layouts_of
from sparseopt_jax.masks.layouts import Layout, in_each
from sparseopt_jax.masks.owners import find_owners, structure_of
from sparseopt_jax.masks.packing import pack, unpack
from sparseopt_jax.masks.state import SparseState, is_sparse_state, unbox
from sparseopt_jax.masks.storage import whole
from sparseopt_jax.trees import paths

# None at leaves that stay dense.
SomePlaces = dict[tuple[str, ...], tuple[Layout, Any] | None]


def compact_state(state: SparseState, indices: ActiveIndices) -> SparseState:
    """Return the state of a compact ``sparsify`` with the same contents.

    Args:
      state: the state of an owner, with masks, moments and counters.
      indices: its masks.

    Raises:
      ValueError: if the state remembers dense gradients.
    """
    kept = state.topology_state
    if jax.tree.leaves(kept.memory):
        raise ValueError(
            "opt_state remembers gradients of all weights, so its topology does not "
            "support compact parameters: use so.rigl, so.set_ or so.static"
        )
    return state._replace(
        masks=indices,
        topology_state=kept._replace(turned=(), explored=pack(unpack(kept.explored))),
        inner_state=map_places(
            lambda x, layout, index, replicas: active_weights(
                x, index, layout, replicas
            ),
            _every_leaf(indices.tree) | indices.places(),
            state.inner_state,
        ),
    )


def compact_around(places: SomePlaces, opt_state: Any) -> Any:
    """Return a state whose dense gradients around ``sparsify`` are made compact.

    Arrays kept around ``sparsify``, as in ``MultiSteps``, are sums of gradients.
    """

    def gradient(x, layout, index, replicas):
        active = active_weights(x, index, layout, replicas)
        return CompactKernel(active, jnp.zeros_like(write_places(index)), layout)

    return map_places(gradient, places, opt_state)


def map_places(function: Callable[..., Any], places: SomePlaces, state: Any) -> Any:
    """Map over the arrays of a state that have entries for every weight of a leaf.

    Args:
      function: ``function(x, layout, index, replicas)``. The index has the leading axes
        of the array, such as that of L-BFGS's memory, and these are the replicas.
      places: layout and index of the leaves to map over, and None for all other leaves,
        whose paths may end in the path of one of them.
      state: any pytree; a ``SparseState`` in it is unchanged.

    Returns:
      A tree like ``state``.
    """

    def at_leaf(key_path, x):
        place = paths.longest_ending(paths.path_parts(key_path), places)
        if place is None or is_sparse_state(x):
            return x
        layout, index = place
        replicas = jnp.shape(index)[: jnp.ndim(index) - len(layout.index_shape)]
        leading = leading_axes(jnp.shape(x), layout.units.shape)
        if leading is None or leading[: len(replicas)] != replicas:
            return x
        index = jnp.expand_dims(index, range(len(replicas), len(leading)))
        index = jnp.broadcast_to(index, (*leading, *layout.index_shape))
        return function(x, layout, index, leading)

    return paths.map_with_key_paths(at_leaf, state, is_leaf=is_sparse_state)


def _every_leaf(tree: Any) -> SomePlaces:
    """Return None for every leaf or hole of a tree, by the parts of its path."""
    leaves = paths.leaves_with_path(tree, is_leaf=paths.is_hole)
    return {paths.path_parts(key_path): None for key_path, _ in leaves}


def state_shapes(tx: optax.GradientTransformation, params: Any) -> Any:
    """Return the shapes of an optimizer's state, for dense or compact parameters.

    Args:
      tx: the transformation.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``; kernels may be compact.

    Returns:
      A tree like ``tx.init(params)``, or, if parameters are compact, like the state
      that ``compact_params`` returns with them.
    """
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params, is_leaf=is_compact
    )
    kernels = {
        path: x.layout
        for path, x in parameters_by_path(params).items()
        if is_compact(x)
    }
    if not kernels:
        return jax.eval_shape(tx.init, shapes)
    owners = {owner.structure: owner for owner in find_owners(tx, shapes)}

    def init(params: Any) -> Any:
        found: Places = {}

        def at_state(node: Any) -> Any:
            if not is_sparse_state(node):
                return node
            state = whole(node)
            indices = state.masks
            if not isinstance(indices, ActiveIndices):
                owner = owners[structure_of(indices)]
                layouts = layouts_of(owner.topology, owner.seen(params))
                taken = {path: kernels[path] for path in layouts if path in kernels}
                indices = _some_indices(layouts | taken, unpack(unbox(indices)))
            chosen = {
                parts: place
                for parts, place in indices.places().items()
                if "/".join(parts) in kernels
            }
            found.update(chosen)
            return compact_state(state, indices) if chosen else node

        opt_state = tx.init(params)
        opt_state = jax.tree.map(at_state, opt_state, is_leaf=is_sparse_state)
        return compact_around(_every_leaf(params) | found, opt_state)

    return jax.eval_shape(init, shapes)


def _some_indices(layouts: dict[str, Layout], masks: Any) -> ActiveIndices:
    """Return indices of the right shapes, with arbitrary values."""

    def at_leaf(path: str, mask: Any) -> Any:
        if paths.is_hole(mask) or layouts[path].is_full:
            return optax.MaskedNode()
        return jnp.zeros(layouts[path].index_shape, jnp.int32)

    tree = paths.map_with_paths(at_leaf, masks)
    return ActiveIndices.of(tree, tuple(layouts.items()))


@functools.partial(jax.jit, static_argnames=("layout", "replicas"))
def active_weights(
    x: jax.Array, index: jax.Array, layout: Layout, replicas: tuple[int, ...]
) -> jax.Array:
    """Return the active weights of an array like the leaf, for each replica."""
    return in_each(layout.take, replicas)(x, index)

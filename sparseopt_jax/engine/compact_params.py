"""Compact parameters, which keep only active blocks, and their conversions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding

from sparseopt_jax.engine.compact_state import (
    active_weights,
    compact_around,
    compact_state,
    map_places,
)
from sparseopt_jax.masks.active_weights import ActiveIndices, Places
from sparseopt_jax.masks.block_leaves import MIN_EXTENT, is_matrix_of_blocks
from sparseopt_jax.masks.compact_kernel import (
    CompactKernel,
    dense_arrays,
    holds_compact,
    map_compact,
    write_places,
)
from sparseopt_jax.masks.compact_storage import check_sharding
from sparseopt_jax.masks.layouts import Layout, in_each, read_layouts
from sparseopt_jax.masks.packing import unpack
from sparseopt_jax.masks.probed_kernel import probed
from sparseopt_jax.masks.state import (
    SparseState,
    check_order,
    find_states,
    get_masks,
    is_sparse_state,
    stays_dense,
    unbox,
)
from sparseopt_jax.masks.storage import whole
from sparseopt_jax.trees import paths


def compact_params(
    params: Any,
    opt_state: Any,
    *,
    where: Callable[[str, Any], bool] | None = None,
) -> tuple[Any, Any]:
    """Keep only the active blocks of the weights, and the state that belongs to them.

    A leaf whose structure is ``Block`` with extents of at least 16 becomes a node that
    holds its active blocks and their places. ``jax.grad``, ``tx.update`` of the same
    ``tx`` and ``optax.apply_updates`` accept trees with these nodes, and gradients,
    moments and updates have the size of the active blocks. Call it once, outside of
    ``jit``, after ``tx.init`` or in the middle of a run.

    Only ``update_topology`` updates the masks of a dynamic topology, so build ``tx``
    with ``host_updates=True``. Transformations around ``sparsify``, such as
    ``optax.clip_by_global_norm``, also see the active blocks.

    Args:
      params: any pytree of arrays. Inactive weights are removed, even if they are not
        zero.
      opt_state: the state of a transformation that contains ``sparsify``.
      where: ``where(path, leaf)`` selects the leaves of blocks to convert; all by
        default. Other leaves are unchanged, and so are convolutions wider than 1x1.

    Returns:
      Parameters and state. Moments of sparse leaves have the form of a compact
      ``sparsify`` and keep their values.

    Raises:
      ValueError: if no leaf consists of such blocks; if ``opt_state`` belongs to other
        parameters, or to a topology that remembers dense gradients or keeps weights
        dense; if layers of a stack differ in their numbers of active blocks; if a leaf
        is split over devices within its blocks; inside ``jit``.

    Note:
      An average of compact parameters over time also averages the places of blocks:
      once masks have moved, average the result of ``dense_params`` instead.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> topology = so.static(0.75, structure=so.Block((16, 16)))
      >>> tx = so.sparsify(optax.adamw(1e-3), topology)
      >>> params = {"kernel": jnp.ones((64, 32)), "bias": jnp.zeros(32)}
      >>> opt_state = tx.init(params)
      >>> params, opt_state = so.compact_params(params, opt_state)
      >>> params["kernel"]
      CompactKernel(shape=(64, 32), blocks=(2, 256), dtype=float32)
      >>> def loss(params, x):
      ...     return jnp.mean((x @ params["kernel"].dense() + params["bias"]) ** 2)
      >>> grads = jax.grad(loss)(params, jnp.ones((4, 64)))
      >>> updates, opt_state = tx.update(grads, opt_state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> so.dense_params(params)["kernel"].shape
      (64, 32)
    """
    call = "compact_params(params, opt_state)"
    check_order(call, params, opt_state)
    if not find_states(opt_state):
        get_masks(opt_state)  # raises, and says how to build a state with masks
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((params, opt_state))):
        raise ValueError(
            f"{call} reads the number of active blocks from the masks: call it outside "
            "of jit"
        )
    if holds_compact(params):
        raise ValueError("params are compact already")
    leaves = {
        paths.path_parts(key_path): x for key_path, x in paths.leaves_with_path(params)
    }
    found: Places = {}

    def at_state(node):
        if not is_sparse_state(node):
            return node
        state = whole(node)
        indices = _indices(state)
        chosen = {} if indices is None else _chosen(indices, leaves, where)
        found.update(chosen)
        return compact_state(state, indices) if indices and chosen else node

    opt_state = jax.tree.map(at_state, opt_state, is_leaf=is_sparse_state)
    if not found:
        raise ValueError(_nothing_found(opt_state))

    def kernel(x, layout, index, replicas):
        active = active_weights(x, index, layout, replicas)
        return CompactKernel(active, write_places(index), layout)

    places = dict.fromkeys(leaves) | found
    return map_places(kernel, places, params), compact_around(places, opt_state)


def dense_params(params: Any) -> Any:
    """Convert compact parameters to dense arrays, with zeros at inactive blocks.

    It also works inside ``jit``. ``convert_state`` converts the state.

    Args:
      params: any pytree, with or without compact parameters.

    Returns:
      The tree with dense arrays in place of compact parameters.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> topology = so.static(0.75, structure=so.Block((16, 16)))
      >>> tx = so.sparsify(optax.adamw(1e-3), topology)
      >>> params = {"kernel": jnp.ones((64, 32))}
      >>> opt_state = tx.init(params)
      >>> params, opt_state = so.compact_params(params, opt_state)
      >>> params = so.dense_params(params)
      >>> int((params["kernel"] != 0).sum())
      512
      >>> opt_state = so.convert_state(tx, params, opt_state)
    """
    return dense_arrays(params, params)


def dense_gradient(
    loss: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Any]:
    """Return a function that computes the dense gradient, which RigL's updates need.

    The result equals ``jax.grad`` of the loss at ``dense_params(params)``. Compute it
    at the steps at which masks are updated, and pass it to ``update_topology``. If the
    loss uses ``sparse_apply``, products run as in a step, by block in the forward and
    the backward pass, except that the kernel's own gradient is one dense product.

    Args:
      loss: a function whose first argument is the parameters. It accepts compact
        parameters and evaluates the model with ``sparse_apply``, or with the arrays of
        ``dense_params``.
      has_aux: as in ``jax.grad``.

    Returns:
      A function with the arguments of ``loss``.

    Raises:
      TypeError: when it is called, if the loss reads the active blocks of a compact
        kernel directly.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> topology = so.rigl(0.75, every=10, stop=90, structure=so.Block((16, 16)))
      >>> tx = so.sparsify(optax.adamw(1e-3), topology, host_updates=True)
      >>> params = {"kernel": jnp.ones((64, 32))}
      >>> opt_state = tx.init(params)
      >>> params, opt_state = so.compact_params(params, opt_state)
      >>> loss = lambda params, x: jnp.sum(x @ so.dense_params(params)["kernel"])
      >>> x = jnp.ones((4, 64))
      >>> if topology.due(0):
      ...     grads = so.dense_gradient(loss)(params, x)
      ...     opt_state, params = so.update_topology(tx, grads, opt_state, params)
    """

    def gradient(params, *args, **kwargs):
        params = probed(params)
        grads = jax.grad(loss, has_aux=has_aux)(params, *args, **kwargs)
        grads, *aux = grads if has_aux else (grads,)
        grads = map_compact(lambda found, kernel: kernel.total(found), grads, params)
        return (grads, *aux) if has_aux else grads

    return gradient


def _indices(state: SparseState) -> ActiveIndices | None:
    """Return the active units of a state's masks; None without a matrix of blocks."""
    if isinstance(state.masks, ActiveIndices):
        return state.masks
    if stays_dense(state) or not jax.tree.leaves(state.layouts):
        return None
    replicas = jnp.shape(state.layouts)[:-1]
    masks = paths.leaves_by_path(unpack(unbox(state.masks)))
    layouts = {
        path: Layout(layout.units, _count(path, masks[path], layout, replicas))
        for path, layout in read_layouts(state.layouts)
    }

    def at_leaf(path, mask):
        if paths.is_hole(mask) or layouts[path].is_full:
            return optax.MaskedNode()
        return _index(mask, layouts[path], replicas)

    tree = paths.map_with_paths(at_leaf, unpack(unbox(state.masks)))
    return ActiveIndices.of(tree, tuple(layouts.items()), replicas)


def _count(path: str, mask: Any, layout: Layout, replicas: tuple[int, ...]) -> int:
    """Return the number of active units in every cell of a leaf."""
    least, most = map(int, _extremes(mask, layout, replicas))
    if least != most:
        raise ValueError(
            f"{path!r} has between {least} and {most} active units in a layer of its "
            "stack, neuron or replica, but compact parameters need the same number in "
            "all of them: keep the parameters dense, or use a topology that keeps the "
            "numbers, such as so.rigl"
        )
    return most


def _chosen(
    indices: ActiveIndices, leaves: dict[tuple[str, ...], Any], where: Any
) -> Places:
    """Return layout and index of the leaves that become compact parameters."""
    places = indices.places()
    chosen: Places = {}
    for path, layout in indices.layouts:
        parts = tuple(path.split("/"))
        leaf = leaves.get(parts)
        replicas = jnp.shape(indices.layout_text)[:-1]
        shape = None if leaf is None else jnp.shape(leaf)
        if shape != (*replicas, *layout.units.shape):
            raise ValueError(
                f"opt_state does not belong to these parameters: it has a mask of "
                f"shape {(*replicas, *layout.units.shape)} for {path!r}, but params "
                f"have {'no such leaf' if shape is None else f'shape {shape}'}"
            )
        if layout.is_full or not is_matrix_of_blocks(layout.units):
            continue
        if where is not None and not where(path, leaf):
            continue
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and not replicas:
            check_sharding(path, layout, sharding)
        chosen[parts] = places[parts]
    return chosen


def _nothing_found(opt_state: Any) -> str:
    if any(map(stays_dense, find_states(opt_state))):
        return (
            "the topology of opt_state keeps the weights behind its masks dense, but "
            "compact parameters keep only active blocks: use so.rigl, so.set_ or "
            "so.static"
        )
    path = next(iter(paths.leaves_by_path(get_masks(opt_state))), None)
    return (
        f"no sparse leaf, such as {path!r}, is a matrix of blocks: build the topology "
        "with structure=so.Block((64, 64)) or similar, with two extents of at least "
        f"{MIN_EXTENT} and 1 along all other axes; compact=True of sparsify stores "
        "moments of active weights only, for any structure"
    )


@functools.partial(jax.jit, static_argnames=("layout", "replicas"))
def _index(mask: jax.Array, layout: Layout, replicas: tuple[int, ...]) -> jax.Array:
    return in_each(layout.index, replicas)(mask)


@functools.partial(jax.jit, static_argnames=("layout", "replicas"))
def _extremes(
    mask: jax.Array, layout: Layout, replicas: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    units = layout.units
    counts = in_each(lambda mask: units.count(units.any(mask)), replicas)(mask)
    return jnp.min(counts), jnp.max(counts)

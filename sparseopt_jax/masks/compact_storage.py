"""Masks as indices of active units; the optimizer sees only active weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from sparseopt_jax.arrays.sharding_types import explicit_sharding, sharded
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.mask_plans import masks_by_path
from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.layouts import Layout
from sparseopt_jax.masks.packing import pack
from sparseopt_jax.masks.state import map_masked
from sparseopt_jax.masks.storage import Masks, MaskStorage, Stored, View, filled
from sparseopt_jax.trees import paths


class CompactStorage(MaskStorage):
    """Masks kept as ``ActiveIndices``, which a step reads in the same form.

    The topology's state is packed. A tree without sparse leaves has no indices, as with
    the placeholders by which optax finds the parts of a state that match parameters.
    """

    is_compact = True

    def init(self, topology: Any, masks: Masks, state: Any, params: Any) -> View:
        """Implement ``MaskStorage.init``: return indices in ascending order."""
        del state
        layouts = layouts_of(topology, params)
        return first_indices(layouts, masks) if layouts else jnp.zeros([])

    def pack(self, tree: Any) -> Any:
        """Implement ``MaskStorage.pack``."""
        return pack(tree)

    def view(self, stored: Stored, state: Any, params: Any) -> View:
        """Implement ``MaskStorage.view``."""
        del state, params
        return stored

    def load(self, stored: Stored, params: Any) -> Masks:
        """Implement ``MaskStorage.load``."""
        return map_masked(
            lambda param, mask: sharded(mask, explicit_sharding(param)),
            params,
            stored.masks(),
        )

    def move(
        self, stored: Stored, masks: Masks, new: Masks, state: Any
    ) -> tuple[Stored, Any]:
        """Implement ``MaskStorage.move``; units that stay active keep their slots."""
        return stored.moved(filled(new, masks)), state

    def converted(self, like: Stored, masks: Masks) -> Stored:
        """Implement ``MaskStorage.converted``."""
        by_path = paths.leaves_by_path(masks)
        for path, layout in like.layouts:
            counts = np.asarray(layout.units.count(layout.units.any(by_path[path])))
            if (counts != layout.per_cell).any():
                raise ValueError(
                    f"the masks of opt_state have between {counts.min()} and "
                    f"{counts.max()} active units in a layer or neuron of {path!r}, "
                    f"but the topology of tx has {layout.per_cell}: compact=True can "
                    "take over masks only from a topology with the same numbers"
                )
        return first_indices(dict(like.layouts), masks)

    def take(self, view: View, tree: Any) -> Any:
        """Implement ``MaskStorage.take``: return the active entries."""
        return active_entries(view, tree)

    def weights(self, view: View, params: Any) -> Any:
        """Implement ``MaskStorage.weights``: return the active weights."""
        return active_entries(view, params)

    def inner_masks(self, view: View) -> Any:
        """Implement ``MaskStorage.inner_masks``: return ``ActiveWeights``."""
        is_sparse = isinstance(view, ActiveIndices)
        return view.weights() if is_sparse else optax.MaskedNode()

    def to_zero(self, before: View, after: View, updates: Any, params: Any) -> Any:
        """Implement ``MaskStorage.to_zero``; compact leaves have nothing to zero."""
        layouts = dict(before.layouts)
        stepped = paths.leaves_by_path(before.tree)
        ended = paths.leaves_by_path(after.tree)

        def at_leaf(path, param, update):
            if path not in stepped or paths.is_hole(param):
                return update
            layout, index = layouts[path], stepped[path]
            if jnp.shape(param) == layout.shape:
                return update.astype(jnp.result_type(update, param))
            # In the wider of the two dtypes: a rounded -p would leave a remainder of p.
            zeroing = (-param).astype(jnp.result_type(update, param))
            if ended[path] is not index:
                stays = layout.spread(ended[path] == index)
                update = jnp.where(stays, update, layout.take(zeroing, index))
            return layout.put(zeroing, index, update)

        return paths.map_with_paths(at_leaf, params, updates)

    def kept_entries(self, old: View, new: View) -> tuple[Any, ...]:
        """Implement ``MaskStorage.kept_entries``: one mask for weights, one for blocks.

        If no index can have changed, there is no mask, because all entries are kept.
        """
        layouts = dict(new.layouts)
        stays = paths.map_with_paths(
            lambda path, a, b: (
                optax.MaskedNode() if paths.is_hole(a) or a is b else a == b
            ),
            old.tree,
            new.tree,
        )
        if not paths.leaves_by_path(stays):
            return ()

        def of_weights(path, slots):
            return slots if paths.is_hole(slots) else layouts[path].spread(slots)

        def of_blocks(path, slots):
            if paths.is_hole(slots) or not layouts[path].has_rows:
                return optax.MaskedNode()
            return layouts[path].spread(slots)[..., :1]

        return (
            paths.map_with_paths(of_weights, stays),
            paths.map_with_paths(of_blocks, stays),
        )

    def typed(self, stored: Stored, params: Any) -> Stored:
        """Implement ``MaskStorage.typed``.

        Shardings derived from the axis names of boxes do not cover the indices.
        """
        shardings = {
            path: explicit_sharding(x)
            for path, x in paths.leaves_by_path(params).items()
        }
        if not any(shardings.values()):
            return stored
        layouts = dict(stored.layouts)

        def at_leaf(path, index):
            of_leaf = shardings.get(path)
            if paths.is_hole(index) or of_leaf is None:
                return index
            spec = layouts[path].spec(index.shape, of_leaf.spec)
            return sharded(index, NamedSharding(of_leaf.mesh, spec or PartitionSpec()))

        return stored.with_tree(paths.map_with_paths(at_leaf, stored.tree))

    def planned(self, stored: Stored, params: Any) -> Any:
        """Implement ``MaskStorage.planned``: return dense shapes for compact leaves."""
        return planned_shapes(stored, params)

    def shapes(self, stored: Stored) -> dict[str, tuple[int, ...]]:
        """Implement ``MaskStorage.shapes``: return the shapes of active weights."""
        return {path: layout.shape for path, layout in stored.layouts}

    def whole_weights(self, stored: Stored, params: Any) -> Any:
        """Implement ``MaskStorage.whole_weights``: set zeros at inactive weights."""
        return _whole(stored, params)

    def whole_gradient(self, stored: Stored, grads: Any, params: Any) -> Any:
        """Implement ``MaskStorage.whole_gradient``: set zeros at inactive weights."""
        del params
        return _whole(stored, grads)

    def with_kept(self, old: Stored, new: Stored, params: Any) -> Any:
        """Implement ``MaskStorage.with_kept``; kept units have not changed slots."""
        layouts, after = dict(old.layouts), paths.leaves_by_path(new.tree)

        def at_leaf(path, x, index):
            layout = layouts[path]
            if jnp.shape(x) == layout.shape:
                kept = layout.spread(after[path] == index)
            else:
                kept = layout.mask(index) & layout.mask(after[path])
            return jnp.where(kept, x, jnp.zeros_like(x))

        return _at_indices(old, at_leaf, params)


def _whole(indices: ActiveIndices, tree: Any) -> Any:
    """Return a tree with dense arrays where it has only the active entries."""
    layouts = dict(indices.layouts)

    def at_leaf(path, x, index):
        layout = layouts[path]
        if jnp.shape(x) != layout.shape:
            return x
        return layout.put(jnp.zeros(layout.units.shape, x.dtype), index, x)

    return _at_indices(indices, at_leaf, tree)


def holds_active(masks: Any, params: Any) -> bool:
    """Return whether some parameters consist of their active weights only."""
    if not isinstance(masks, ActiveIndices):
        return False
    shapes = {path: layout.shape for path, layout in masks.layouts}
    leaves = paths.leaves_by_path(params).items()
    return any(shapes.get(path) == jnp.shape(x) for path, x in leaves)


def planned_shapes(masks: Any, params: Any) -> Any:
    """Return the parameters with dense shapes in place of arrays of active weights."""
    if not isinstance(masks, ActiveIndices):
        return params
    layouts = dict(masks.layouts)

    def at_leaf(path, x, index):
        layout = layouts[path]
        if jnp.shape(x) != layout.shape:
            return x
        return jax.ShapeDtypeStruct(layout.units.shape, jnp.result_type(x))

    return _at_indices(masks, at_leaf, params)


def active_entries(indices: ActiveIndices, tree: Any) -> Any:
    """Return the active entries of a tree; leaves that hold only these are kept."""
    if not isinstance(indices, ActiveIndices):
        return tree
    layouts = dict(indices.layouts)

    def at_leaf(path, x, index):
        layout = layouts[path]
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(layout.shape, x.dtype)
        if jnp.shape(x) == layout.shape:
            return x
        if jnp.shape(x) != layout.units.shape:
            raise ValueError(
                f"{path!r} has shape {jnp.shape(x)}, but its parameter has shape "
                f"{layout.units.shape} and its active weights have shape {layout.shape}"
            )
        return layout.take(x, index)

    return _at_indices(indices, at_leaf, tree)


def _at_indices(
    indices: ActiveIndices, function: Callable[[str, Any, jax.Array], Any], tree: Any
) -> Any:
    """Map ``function(path, leaf, index)`` over the leaves that have an index."""
    by_path = paths.leaves_by_path(indices.tree)
    return paths.map_with_paths(
        lambda path, x: (
            function(path, x, by_path[path])
            if path in by_path and not paths.is_hole(x)
            else x
        ),
        tree,
    )


def first_indices(layouts: dict[str, Layout], masks: Masks) -> ActiveIndices:
    """Return the indices of the active units of masks, in ascending order."""

    def at_leaf(path, mask):
        if paths.is_hole(mask) or layouts[path].is_full:
            return optax.MaskedNode()
        return layouts[path].index(mask)

    tree = paths.map_with_paths(at_leaf, masks)
    return ActiveIndices.of(tree, tuple(layouts.items()))


def layouts_of(topology: Any, params: Any) -> dict[str, Layout]:
    """Return the layout of the active weights of every sparse leaf, by path.

    Args:
      topology: decides which leaves are sparse.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      One layout per sparse leaf.

    Raises:
      ValueError: as ``Topology.leaves``; if the cells of given masks differ in their
        numbers of active units; if a leaf is split along an axis that its active
        weights cross.
    """
    found = {}
    for plan in topology.leaves(params):
        if plan.units is None:
            continue
        per_cell = plan.per_cell
        if per_cell is None:
            per_cell = _per_cell(plan, masks_by_path(topology.given_masks)[plan.path])
        found[plan.path] = Layout(plan.units, per_cell)
        if plan.units.per_cell >= 2**31:
            raise ValueError(
                f"{plan.path!r} with shape {plan.units.shape} has more units than an "
                "int32 can count: omit compact=True, or use larger blocks"
            )
        sharding = getattr(plan.leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            check_sharding(plan.path, found[plan.path], sharding)
    return found


def _per_cell(plan: LeafPlan, mask: Any) -> int:
    units = plan.units
    assert units is not None
    if isinstance(mask, Tracer):
        raise ValueError(
            f"the mask at {plan.path!r} is traced, but compact=True needs to know how "
            "many weights are active: build the optimizer outside of jit"
        )
    counts = np.asarray(units.count(units.any(jnp.asarray(mask))))
    if counts.min() != counts.max():
        raise ValueError(
            f"the mask at {plan.path!r} has between {counts.min()} and {counts.max()} "
            "active units in a layer or neuron, but compact=True needs the same number "
            "in all of them: omit compact=True or structure="
        )
    return int(counts.max())


def check_sharding(path: str, layout: Layout, sharding: NamedSharding) -> None:
    """Raise if active weights would have to be gathered from other devices.

    Args:
      path: the leaf's path, for the error.
      layout: the layout of its active weights.
      sharding: the sharding of the leaf.

    Raises:
      ValueError: if the leaf is split along an axis that its active weights cross.
    """
    if layout.is_full:
        return
    spec = [*sharding.spec, *[None] * len(layout.units.shape)]
    split = [a for a in layout.crossed if spec[a] is not None]
    if split:
        raise ValueError(
            f"{path!r} with shape {layout.units.shape} is sharded along axis "
            f"{split[0]} by {sharding.spec}, but its active weights cross that axis: "
            "every device would have to gather all of it at every step. Shard it along "
            "other axes only: structure=ConstantFanIn() or NM(n, m) leaves the axis of "
            "neurons free, a stack of layers leaves the stack axis free, and columns "
            "of blocks can form such a stack, (devices, inputs, outputs of one), "
            "declared with dims; or omit compact=True"
        )

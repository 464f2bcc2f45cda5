"""Masks as the places of active units; the optimizer sees active weights alone."""

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
    """``ActiveIndices``, which are stored and read as they are.

    What the topology keeps is packed. A tree without sparse leaves, such as the one of
    placeholders by which optax finds what belongs to parameters, has no indices.
    """

    is_compact = True

    def init(self, topology: Any, masks: Masks, state: Any, params: Any) -> View:
        """As ``MaskStorage.init``: the places in ascending order."""
        del state
        layouts = layouts_of(topology, params)
        return first_indices(layouts, masks) if layouts else jnp.zeros([])

    def pack(self, tree: Any) -> Any:
        """As ``MaskStorage.pack``."""
        return pack(tree)

    def view(self, stored: Stored, state: Any, params: Any) -> View:
        """As ``MaskStorage.view``."""
        del state, params
        return stored

    def load(self, stored: Stored, params: Any) -> Masks:
        """As ``MaskStorage.load``."""
        return map_masked(
            lambda param, mask: sharded(mask, explicit_sharding(param)),
            params,
            stored.masks(),
        )

    def move(
        self, stored: Stored, masks: Masks, new: Masks, state: Any
    ) -> tuple[Stored, Any]:
        """As ``MaskStorage.move``; what stays active keeps its slot."""
        return stored.moved(filled(new, masks)), state

    def converted(self, like: Stored, masks: Masks) -> Stored:
        """As ``MaskStorage.converted``."""
        by_path = paths.leaves_by_path(masks)
        for path, layout in like.layouts:
            counts = np.asarray(layout.units.count(layout.units.any(by_path[path])))
            if (counts != layout.per_cell).any():
                raise ValueError(
                    f"the masks of opt_state have between {counts.min()} and "
                    f"{counts.max()} active units in a layer or neuron of {path!r}, "
                    f"the topology of tx {layout.per_cell}: compact=True takes over "
                    "the masks of a topology with the same numbers only"
                )
        return first_indices(dict(like.layouts), masks)

    def take(self, view: View, tree: Any) -> Any:
        """As ``MaskStorage.take``: the active entries."""
        return active_entries(view, tree)

    def weights(self, view: View, params: Any) -> Any:
        """As ``MaskStorage.weights``: the active ones."""
        return active_entries(view, params)

    def told(self, view: View) -> Any:
        """As ``MaskStorage.told``: ``ActiveWeights``."""
        is_sparse = isinstance(view, ActiveIndices)
        return view.weights() if is_sparse else optax.MaskedNode()

    def to_zero(self, before: View, after: View, updates: Any, params: Any) -> Any:
        """As ``MaskStorage.to_zero``; where weights are active ones, there is none."""
        layouts = dict(before.layouts)
        stepped = paths.leaves_by_path(before.tree)
        ended = paths.leaves_by_path(after.tree)

        def at_leaf(path, param, update):
            if path not in stepped or paths.is_hole(param):
                return update
            layout, index = layouts[path], stepped[path]
            if jnp.shape(param) == layout.shape:
                return update.astype(jnp.result_type(update, param))
            # In the wider of both types: a narrowed -p would leave a remainder of p.
            zeroing = (-param).astype(jnp.result_type(update, param))
            if ended[path] is not index:
                stays = layout.spread(ended[path] == index)
                update = jnp.where(stays, update, layout.take(zeroing, index))
            return layout.put(zeroing, index, update)

        return paths.map_with_paths(at_leaf, params, updates)

    def kept_entries(self, old: View, new: View) -> tuple[Any, ...]:
        """As ``MaskStorage.kept_entries``: of each weight, and of each block.

        All is kept where no index can have changed.
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
        """As ``MaskStorage.typed``.

        A state whose shardings come from the names on boxes has none for indices.
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
        """As ``MaskStorage.planned``: shapes where weights are the active ones."""
        return planned_shapes(stored, params)

    def shapes(self, stored: Stored) -> dict[str, tuple[int, ...]]:
        """As ``MaskStorage.shapes``: those of active weights."""
        return {path: layout.shape for path, layout in stored.layouts}

    def whole_weights(self, stored: Stored, params: Any) -> Any:
        """As ``MaskStorage.whole_weights``: zeros beside the active ones."""
        return _whole(stored, params)

    def whole_gradient(self, stored: Stored, grads: Any, params: Any) -> Any:
        """As ``MaskStorage.whole_gradient``: zero where only active ones are known."""
        del params
        return _whole(stored, grads)

    def with_kept(self, old: Stored, new: Stored, params: Any) -> Any:
        """As ``MaskStorage.with_kept``; what stays active has kept its slot."""
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
    """Return a tree with dense arrays where it has the active entries alone."""
    layouts = dict(indices.layouts)

    def at_leaf(path, x, index):
        layout = layouts[path]
        if jnp.shape(x) != layout.shape:
            return x
        return layout.put(jnp.zeros(layout.units.shape, x.dtype), index, x)

    return _at_indices(indices, at_leaf, tree)


def holds_active(masks: Any, params: Any) -> bool:
    """Return whether the active weights alone are there of some parameters."""
    if not isinstance(masks, ActiveIndices):
        return False
    shapes = {path: layout.shape for path, layout in masks.layouts}
    leaves = paths.leaves_by_path(params).items()
    return any(shapes.get(path) == jnp.shape(x) for path, x in leaves)


def planned_shapes(masks: Any, params: Any) -> Any:
    """The parameters with shapes of dense arrays where they are the active weights."""
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
    """Return the active entries of a tree, which may have nothing else already."""
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
                f"{path!r} has shape {jnp.shape(x)}, but its parameter "
                f"{layout.units.shape} and its active weights {layout.shape}"
            )
        return layout.take(x, index)

    return _at_indices(indices, at_leaf, tree)


def _at_indices(
    indices: ActiveIndices, function: Callable[[str, Any, jax.Array], Any], tree: Any
) -> Any:
    """Map ``function(path, leaf, index)`` over what is sparse in a tree."""
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
    """Return the places of the active weights of masks, in ascending order."""

    def at_leaf(path, mask):
        if paths.is_hole(mask) or layouts[path].is_full:
            return optax.MaskedNode()
        return layouts[path].index(mask)

    tree = paths.map_with_paths(at_leaf, masks)
    return ActiveIndices.of(tree, tuple(layouts.items()))


def layouts_of(topology: Any, params: Any) -> dict[str, Layout]:
    """Return how the active weights of every sparse leaf stand side by side, by path.

    Args:
      topology: decides what is sparse.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      One layout for each sparse leaf.

    Raises:
      ValueError: as ``Topology.leaves``; for given masks whose cells have different
        numbers of active units, and for leaves that are sharded across active weights.
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
                "int32 can count; leave compact out, or use larger blocks"
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
            "active units in a layer or neuron, but compact=True has room for one "
            "number: leave compact out, or structure out"
        )
    return int(counts.max())


def check_sharding(path: str, layout: Layout, sharding: NamedSharding) -> None:
    """Raise if active weights would have to be gathered from other devices.

    Args:
      path: the leaf's path, for the error.
      layout: how its active weights stand.
      sharding: how the leaf is sharded.

    Raises:
      ValueError: if the leaf is split along an axis that they cross.
    """
    if layout.is_full:
        return
    spec = [*sharding.spec, *[None] * len(layout.units.shape)]
    split = [a for a in layout.crossed if spec[a] is not None]
    if split:
        raise ValueError(
            f"{path!r} with shape {layout.units.shape} is sharded along axis "
            f"{split[0]} by {sharding.spec}: its active weights lie across that axis, "
            "and every device would have to gather all of it at every step. Shard it "
            "along other axes only: structure=ConstantFanIn() or NM(n, m) leave the "
            "neurons' axis free, a stack of layers its own, and columns of blocks may "
            "stand as such a stack, (devices, inputs, outputs of one), named by dims; "
            "or leave compact out"
        )

"""The arrangement of a leaf's active weights, with conversions to and from the leaf."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from sparseopt_jax.arrays.units import Units


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrangement of the active weights of one leaf.

    A leaf is viewed as cells of items, where an item is a unit of the leaf's structure:
    a weight or a block. An index of shape ``index_shape`` specifies which items of each
    cell are active. The active weights have shape ``shape``, with the rank of the leaf,
    so that code that distinguishes kernels from biases by rank still works.

    Attributes:
      units: how the leaf's weights are grouped into units.
      per_cell: number of active units in every cell.
    """

    units: Units
    per_cell: int

    @functools.cached_property
    def _axis(self) -> int:
        """The axis of a cell's items, in the view and in the index."""
        return sum(axis < self._items[0] for axis in self._others)

    @functools.cached_property
    def _items(self) -> tuple[int, ...]:
        return tuple(a for a in self.units.cell if a not in self.units.inner)

    @functools.cached_property
    def _others(self) -> tuple[int, ...]:
        """Axes of ``units.split`` that distinguish cells."""
        taken = (*self._items, *self.units.inner)
        return tuple(a for a in range(len(self.units.split)) if a not in taken)

    @property
    def _cell_axes(self) -> tuple[int, ...]:
        """Axes of the index that distinguish cells."""
        return tuple(a for a in range(len(self._others) + 1) if a != self._axis)

    @functools.cached_property
    def _order(self) -> tuple[int, ...]:
        others = self._others
        before, after = others[: self._axis], others[self._axis :]
        return (*before, *self._items, *after, *self.units.inner)

    def _with_items(self, count: int) -> tuple[int, ...]:
        sizes = [self.units.split[a] for a in self._others]
        return (*sizes[: self._axis], count, *sizes[self._axis :])

    @property
    def _has_blocks(self) -> bool:
        return bool(self.units.inner)

    @property
    def _block(self) -> tuple[int, ...]:
        return (self.units.size,) if self._has_blocks else ()

    @property
    def is_full(self) -> bool:
        """Whether every weight of the leaf is active, which makes it dense."""
        return self.per_cell == self.units.per_cell

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Shape of the index: one entry per active unit."""
        return self._with_items(self.per_cell)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the active weights, with the rank of the leaf."""
        shape, axis = [*self.index_shape, *self._block], self._axis
        missing = len(self.units.shape) - len(shape)
        shape[axis:axis] = [1] * missing
        for _ in range(-missing):
            at = max(axis - 1, 0)
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
            axis = at
        return tuple(shape)

    @property
    def crossed(self) -> tuple[int, ...]:
        """Axes of the leaf that active weights cross; each must be on one device."""
        taken = {*self._items, *self.units.inner}
        # An axis that is cut but not crossed may be sharded between the blocks.
        places = enumerate(self.units.places)
        return tuple(a for a, place in places if place[0] in taken)

    def _index_origins(self) -> list[int | None]:
        """Return the leaf's axis that each axis of the index comes from, or None."""
        found: list[int | None] = []
        for split_axis in self._others:
            axes = enumerate(self.units.places)
            found += [axis for axis, place in axes if split_axis == place[0]] or [None]
        found.insert(self._axis, None)
        return found

    @property
    def origins(self) -> tuple[int | None, ...]:
        """The leaf's axis that each axis of the active weights comes from, or None."""
        found = [*self._index_origins(), *[None] * len(self._block)]
        missing = len(self.units.shape) - len(found)
        if missing >= 0:
            found[self._axis : self._axis] = [None] * missing
        else:
            # `shape` has joined the items of a group with the groups.
            del found[self._axis]
        return tuple(found)

    def spec(
        self, shape: tuple[int, ...], of_leaf: PartitionSpec
    ) -> PartitionSpec | None:
        """Return the spec of an index or of active weights from that of the leaf.

        Args:
          shape: the shape of the array to shard.
          of_leaf: the leaf's spec, which must not split axes that active weights cross.

        Returns:
          The spec, or None for any other shape.
        """
        entries: dict[int | None, Any] = dict(enumerate(of_leaf))
        if shape == self.index_shape:
            return PartitionSpec(*(entries.get(a) for a in self._index_origins()))
        if shape in (self.shape, (*self.shape[:-1], 1)):
            return PartitionSpec(*(entries.get(a) for a in self.origins))
        return None

    def _view(self, x: jax.Array) -> jax.Array:
        """Return a leaf as cells of items."""
        x = jnp.transpose(self.units.divided(x), self._order)
        return jnp.reshape(x, (*self._with_items(self.units.per_cell), *self._block))

    def _leaf(self, view: jax.Array) -> jax.Array:
        """Return a leaf from its view."""
        split = self.units.split
        view = jnp.reshape(view, [split[a] for a in self._order])
        inverse = sorted(range(len(split)), key=self._order.__getitem__)
        return self.units.joined(jnp.transpose(view, inverse))

    def _items_of(self, units: jax.Array) -> jax.Array:
        """Return the items of an array of units, without the axes within units."""
        units = jnp.squeeze(units, self.units.inner)
        order = sorted(self._order[: len(self._order) - len(self.units.inner)])
        kept = [order.index(a) for a in self._order if a in order]
        shape = self._with_items(self.units.per_cell)
        return jnp.reshape(jnp.transpose(units, kept), shape)

    def _units_of(self, items: jax.Array) -> jax.Array:
        """Return an array of units from its items: the inverse of ``_items_of``."""
        order = [a for a in self._order if a not in self.units.inner]
        units = jnp.reshape(items, [self.units.split[a] for a in order])
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return jnp.expand_dims(jnp.transpose(units, inverse), self.units.inner)

    def in_units(self, index: jax.Array, slots: jax.Array) -> jax.Array:
        """Return an array of units from a value per slot of the index, 0 elsewhere."""
        items = jnp.zeros(self._with_items(self.units.per_cell), slots.dtype)
        return self._units_of(self._put(items, index, slots))

    def take(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """Return the active weights of an array like the leaf.

        Args:
          x: array of the leaf's shape.
          index: int32, of ``index_shape``.

        Returns:
          Array of ``shape``.
        """
        return jnp.reshape(self._taken(self._view(x), index), self.shape)

    def _taken(self, view: jax.Array, index: jax.Array) -> jax.Array:
        index = index[..., None] if view.ndim > index.ndim else index
        return jnp.take_along_axis(
            view, index, axis=self._axis, mode="promise_in_bounds"
        )

    def put(self, x: jax.Array, index: jax.Array, active: jax.Array) -> jax.Array:
        """Return an array like the leaf with other values at the active weights.

        Args:
          x: array of the leaf's shape.
          index: int32, of ``index_shape``.
          active: array of ``shape``.

        Returns:
          Array like ``x``.
        """
        if self._has_blocks:
            return self._scattered(jax.lax.scatter, x, index, active)
        active = jnp.reshape(active, self.index_shape).astype(x.dtype)
        return self._leaf(self._put(self._view(x), index, active))

    def add(self, x: jax.Array, index: jax.Array, active: jax.Array) -> jax.Array:
        """Return an array like the leaf with values added at weights of active blocks.

        Args:
          x: array of the leaf's shape; the leaf must consist of blocks.
          index: int32, of ``index_shape``.
          active: array of ``shape``.

        Returns:
          Array like ``x``.
        """
        return self._scattered(jax.lax.scatter_add, x, index, active)

    def _scattered(
        self, scatter: Any, x: jax.Array, index: jax.Array, active: jax.Array
    ) -> jax.Array:
        """Scatter whole blocks into a leaf, without building a view of it."""
        units, items, at = self.units, self._items, index.ndim
        sizes = [units.split[a] for a in units.inner]
        numbers = jax.lax.ScatterDimensionNumbers(
            update_window_dims=tuple(range(at, at + len(sizes))),
            inserted_window_dims=items,
            scatter_dims_to_operand_dims=items,
            operand_batching_dims=self._others,
            scatter_indices_batching_dims=self._cell_axes,
        )
        places = jnp.unravel_index(index, [units.split[a] for a in items])
        scattered = scatter(
            units.divided(x),
            jnp.stack(places, -1),
            jnp.reshape(active, (*index.shape, *sizes)).astype(x.dtype),
            numbers,
            unique_indices=True,
            mode="promise_in_bounds",
        )
        return units.joined(scattered)

    def _put(
        self, view: jax.Array, index: jax.Array, active: jax.Array, mode: Any = None
    ) -> jax.Array:
        """Set items of a view; ``mode="drop"`` ignores indices beyond the last item."""
        cells = self._cell_axes
        numbers = jax.lax.ScatterDimensionNumbers(
            update_window_dims=tuple(range(index.ndim, view.ndim)),
            inserted_window_dims=(self._axis,),
            scatter_dims_to_operand_dims=(self._axis,),
            operand_batching_dims=cells,
            scatter_indices_batching_dims=cells,
        )
        return jax.lax.scatter(
            view,
            index[..., None],
            active,
            numbers,
            unique_indices=mode is None,
            mode=mode or "promise_in_bounds",
        )

    def mask(self, index: jax.Array) -> jax.Array:
        """Return the mask of these active units: a bool array like the leaf."""
        items = self._active(index)
        if self._has_blocks:
            block = (*items.shape, self.units.size)
            items = jnp.broadcast_to(items[..., None], block)
        return self._leaf(items)

    def _active(self, index: jax.Array) -> jax.Array:
        items = jnp.zeros(self._with_items(self.units.per_cell), jnp.bool_)
        return self._put(items, index, jnp.ones(index.shape, jnp.bool_))

    def index(self, mask: jax.Array) -> jax.Array:
        """Return the int32 indices of a mask's active units, in ascending order."""
        return self._found(self._items_of(self.units.any(mask)))

    def _found(self, items: jax.Array) -> jax.Array:
        """Return the places of each cell's first ``per_cell`` True items, then 0."""
        # Other items get a rank beyond the last slot, so that they are dropped.
        rank = jnp.cumsum(items, self._axis, dtype=jnp.int32) - 1
        rank = jnp.where(items, rank, self.per_cell)
        places = jax.lax.broadcasted_iota(jnp.int32, items.shape, self._axis)
        index = jnp.zeros(self.index_shape, jnp.int32)
        return self._put(index, rank, places, mode="drop")

    def moved(self, index: jax.Array, mask: jax.Array) -> jax.Array:
        """Return the index of a new mask with the same number of units in each cell.

        Units that stay active keep their slots; grown units take the slots of dropped
        ones, in ascending order.
        """
        return self.moved_units(index, self.units.any(mask))

    def moved_units(self, index: jax.Array, units: jax.Array) -> jax.Array:
        """Return the index like ``moved``, from a bool array of units."""
        active = self._items_of(units)
        stays = self._taken(active, index)
        grown = self._found(active & ~self._active(index))
        place = jnp.cumsum(~stays, self._axis, dtype=jnp.int32) - 1
        new = jnp.take_along_axis(
            grown, jnp.maximum(place, 0), axis=self._axis, mode="promise_in_bounds"
        )
        return jnp.where(stays, index, new)

    def spread(self, slots: jax.Array) -> jax.Array:
        """Return one value per active weight from one per slot of the index."""
        if self._has_blocks:
            slots = jnp.broadcast_to(slots[..., None], (*slots.shape, self.units.size))
        return jnp.reshape(slots, self.shape)

    @property
    def has_rows(self) -> bool:
        """Whether every row of the active weights is one block."""
        fits = len(self.index_shape) < len(self.units.shape)
        return self._has_blocks and fits


def in_each(function: Callable[..., Any], replicas: tuple[int, ...]) -> Any:
    """Map a function of one network's arrays over the axes that ``vmap`` has added."""
    for _ in replicas:
        function = jax.vmap(function)
    return function


_VERSION = 1


def write_layouts(layouts: tuple[tuple[str, Layout], ...]) -> np.ndarray:
    """Return layouts by path as an array that any tool can save: JSON as uint8."""
    leaves = {
        path: layout.units._asdict() | {"per_cell": layout.per_cell}
        for path, layout in layouts
    }
    text = json.dumps({"version": _VERSION, "leaves": leaves}, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8)


def read_layouts(text: Any) -> tuple[tuple[str, Layout], ...]:
    """Return the layouts written by ``write_layouts``.

    Args:
      text: its array, alone or repeated for each replica.

    Returns:
      Path and layout of every sparse leaf.

    Raises:
      ValueError: if the text is traced, or of another version.
    """
    if isinstance(text, Tracer):
        raise ValueError(
            "inside jit, the layouts of a compact sparsify are known only from the "
            "state that tx.init returns: restore the checkpoint into its structure"
        )
    text = np.asarray(text)
    written = json.loads(text.reshape(-1, text.shape[-1])[0].tobytes())
    if written["version"] != _VERSION:
        raise ValueError(
            f"opt_state has layouts of version {written['version']}, but this version "
            f"of sparseopt_jax reads {_VERSION}: use the version that saved it"
        )
    found = []
    for path, fields in written["leaves"].items():
        per_cell = fields.pop("per_cell")
        units = Units(**{name: tuple(axes) for name, axes in fields.items()})
        found.append((path, Layout(units, per_cell)))
    return tuple(found)

"""Many layers laid out as rows of one array, so that one kernel serves them all.

Compilation takes time for every kernel, and a network has many layers. Laid out as
rows, each of which belongs to one layer, they are counted and selected from together.
If all of them at once would take too much memory, they are split into bins of equal
size, over which one loop runs: a bin is about as large as the largest leaf.

Arrays that are sharded over devices are never laid out in rows, because they would be
gathered.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.arrays.row_layout import (
    Rows,
    axis_order,
    cell_shape,
    cells_of,
    extents,
    is_in_order,
    parts_of,
    rows_of,
    unit_shape,
)
from sparseopt_jax.arrays.row_tables import tables_of
from sparseopt_jax.arrays.row_units import Cells, RowUnits
from sparseopt_jax.arrays.units import Units

# If no leaf is short enough to pad rows and bins, the sizes of the padding are powers
# of this base, up to the last: arrays of few different sizes fill gaps of any length.
_BASE, _POWERS = 8, 7

Laid = list[jax.Array]
# For one bin: an array, a number for each layer, and one for each cell or None.
OfBin = tuple[jax.Array, jax.Array, jax.Array | None]


def map_bins(
    rows: Rows,
    fields: Sequence[Sequence[jax.Array]],
    function: Callable[[jax.Array, RowUnits, Laid], OfBin],
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array] | None]:
    """Map a function over the bins, one after another.

    Args:
      rows: the layout of the leaves.
      fields: for each kind of array, the arrays of units of all leaves, of one dtype.
      function: maps a bin's number, its units and its (height, width) arrays, one of
        each kind and arbitrary beyond the units, to one such array, a non-negative
        number for each layer, (layers,), and a number for each cell, (cells,), or None.

    Returns:
      The array of units of each leaf, the sum of its layers' numbers, and its cells'
      numbers, with the axes of a cell of size 1, or None if the function returns None.

    Examples:
      >>> from sparseopt_jax.layers.structures import Unstructured
      >>> from sparseopt_jax.layers.neurons import Axes
      >>> units = Unstructured().units("kernel", (2, 3), Axes((), (0,), (1,)))
      >>> def largest(number, units, laid):
      ...     mask = units.select(*laid, 1)
      ...     return mask, units.layer_vector(units.count(mask)), None
      >>> scores = [jnp.arange(6.0).reshape(2, 3), -jnp.arange(6.0).reshape(2, 3)]
      >>> masks, counts, _ = map_bins(Rows.of([units] * 2), [scores], largest)
      >>> [int(mask.argmax()) for mask in masks], [int(count) for count in counts]
      ([5, 0], [1, 1])
    """
    loaders = _loaders(rows, fields)

    def at_bin(number):
        laid = jax.lax.switch(number, loaders) if len(loaders) > 1 else loaders[0]()
        laid = [jnp.reshape(x, (rows.height, rows.width)) for x in laid]
        return function(number, units_of_bin(rows, number), laid)

    if len(loaders) == 1:
        found = jax.tree.map(lambda x: x[None], at_bin(jnp.int32(0)))
    else:
        found = jax.lax.map(at_bin, jnp.arange(len(loaders), dtype=jnp.int32))
    return _by_leaf(rows, *jax.tree.map(jnp.ravel, found))


def _loaders(
    rows: Rows, fields: Sequence[Sequence[jax.Array]]
) -> list[Callable[[], Laid]]:
    """Return a function for each bin that lays it out, one flat array of each kind."""
    # Flatten in advance where that is only a view: a branch that joins flat arrays only
    # copies them, without a separate kernel.
    views = [
        [
            jnp.ravel(x) if is_in_order(units) else x
            for units, x in zip(rows.units, arrays, strict=True)
        ]
        for arrays in fields
    ]
    fillings = [_filling(rows, arrays) for arrays in views]

    def loader(number):
        return lambda: [
            _laid(rows, number, arrays, filling)
            for arrays, filling in zip(views, fillings, strict=True)
        ]

    return [loader(number) for number in range(len(rows.bins))]


def _by_leaf(
    rows: Rows, laid: jax.Array, numbers: jax.Array, of_cells: jax.Array | None
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array] | None]:
    """Return the result of ``map_bins`` from the flat results of all bins."""
    first_cells = [] if of_cells is None else rows.first_cells()
    places = rows.starts(), rows.first_layers(), first_cells
    starts, layers, first_cells = _at_run_time(places, always=numbers[0] >= 0)
    masks = [_leaf(rows, i, laid, start) for i, start in enumerate(starts)]
    sums = [
        _sum(_slice(numbers, start, extents(units)[0]))
        for units, start in zip(rows.units, layers, strict=True)
    ]
    if of_cells is None:
        return masks, sums, None
    cells = [
        _in_axes(_slice(of_cells, start, cells_of(units)), units, cell_shape(units))
        for units, start in zip(rows.units, first_cells, strict=True)
    ]
    return masks, sums, cells


def units_of_bin(rows: Rows, number: jax.typing.ArrayLike) -> RowUnits:
    """Return the units of one bin, whose number may be traced."""
    is_layer_wide = rows.units[0].is_layer_wide

    def at(table):
        return of_bin(rows, jnp.asarray(table), number)

    tables = tables_of(rows)
    return RowUnits(
        layer=at(tables.layer),
        starts=at(tables.starts),
        sizes=at(tables.sizes),
        first=at(tables.first)[:, None],
        step=1 if is_layer_wide else at(tables.step)[:, None],
        width=at(tables.width)[:, None],
        leaf=at(tables.leaf),
        leaf_first=at(tables.leaf_first)[:, None],
        leaf_step=1 if is_layer_wide else at(tables.leaf_step)[:, None],
        size=rows.units[0].size,
        cells=None
        if is_layer_wide
        else Cells(
            number=at(tables.cell),
            starts=at(tables.cell_starts),
            sizes=at(tables.cell_sizes),
            first=at(tables.cell_first)[:, None],
            most=rows.rows_per_cell,
            width=rows.width,
        ),
    )


def of_bin(rows: Rows, table: jax.Array, number: jax.typing.ArrayLike) -> jax.Array:
    """Return the entry of a bin in an array that has one for each bin."""
    if len(rows.bins) == 1:
        return table[0]
    return jax.lax.dynamic_index_in_dim(table, number, keepdims=False)


def by_bins(rows: Rows, numbers: jax.Array) -> jax.Array:
    """Arrange an entry for each leaf as (bins, leaves), as ``RowUnits.leaf`` counts.

    Entries beyond a bin's leaves are arbitrary.
    """
    most = max(map(len, rows.bins))
    table = [[*bin, *[0] * (most - len(bin))] for bin in rows.bins]
    return jnp.take(numbers, np.asarray(table), axis=0)


def can_be_drawn(key: jax.Array) -> bool:
    """Return whether ``RowUnits.draw`` agrees with ``jax.random.uniform`` for a key."""
    is_threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    return is_threefry and getattr(jax.config, "jax_threefry_partitionable", True)


def _laid(
    rows: Rows,
    number: int,
    arrays: Sequence[jax.Array],
    filling: dict[int, jax.Array],
) -> jax.Array:
    """Return one bin, flat; entries between the leaves are arbitrary."""
    parts = []
    left = rows.height * rows.width
    for i in rows.bins[number]:
        flat = _flat(rows, i, arrays[i])
        size = rows_of(rows.units[i], rows.width) * rows.width
        parts += [flat, *[filling[n] for n in _pieces(rows, size - flat.size)]]
        left -= size
    parts += [filling[n] for n in _pieces(rows, left)]
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _flat(rows: Rows, i: int, x: jax.Array) -> jax.Array:
    """Return a leaf's units in the order of its rows; the last may not be full."""
    units = rows.units[i]
    if not is_in_order(units):
        x = jnp.transpose(x, axis_order(units))
    parts, used, each = parts_of(units, rows.width)
    if parts > 1 and each > used:
        x = jnp.pad(jnp.reshape(x, (parts, used)), ((0, 0), (0, each - used)))
    return jnp.ravel(x)


def _leaf(rows: Rows, i: int, flat: jax.Array, start: jax.Array) -> jax.Array:
    """Return a leaf's array of units, from all bins."""
    units = rows.units[i]
    parts, used, each = parts_of(units, rows.width)
    size = parts * each if parts > 1 else used
    x = _slice(flat, start, size)
    if size > parts * used:
        x = jnp.reshape(x, (parts, each))[:, :used]
    shape = unit_shape(units)
    if is_in_order(units):
        return jnp.reshape(x, shape)
    x = _in_axes(x, units, shape)
    # Write the mask in the axis order that masks have elsewhere. The compiler would
    # otherwise keep the order of rows, and convert all masks at every step, due or not.
    return jnp.reshape(jax.lax.optimization_barrier(jnp.ravel(x)), shape)


def _in_axes(x: jax.Array, units: Units, shape: tuple[int, ...]) -> jax.Array:
    """Return an array of this shape from one whose axes are in the order of rows."""
    order = axis_order(units)
    x = jnp.reshape(x, [shape[axis] for axis in order])
    return jnp.transpose(x, [order.index(axis) for axis in range(len(order))])


def _filling(rows: Rows, arrays: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """Return the arrays that pad rows and bins, by size.

    These are the leaves again, and arrays of a number that the compiler does not know:
    it would build constants into a kernel for each bin, instead of copying arrays.
    """
    sizes = set()
    for bin in rows.bins:
        left = rows.height * rows.width
        for i in bin:
            parts, used, each = parts_of(rows.units[i], rows.width)
            if parts == 1:
                sizes.update(_pieces(rows, each - used))
            left -= parts * each
        sizes.update(_pieces(rows, left))
    filling = {x.size: jnp.ravel(x) for x in arrays}
    anything = jnp.ravel(arrays[0])[0]
    filling |= {n: jnp.full(n, anything) for n in sorted(sizes - filling.keys())}
    return filling


def _pieces(rows: Rows, size: int) -> list[int]:
    """Return sizes of padding that add up to a size: leaves, and powers of one base."""
    leaves = {math.prod(unit_shape(units)) for units in rows.units} - {0}
    smallest = min(leaves, default=1)
    powers = {_BASE**power for power in range(_POWERS + 1)}
    pieces = []
    for piece in sorted(leaves | {n for n in powers if n < smallest}, reverse=True):
        count, size = divmod(size, piece)
        pieces += [piece] * count
    return pieces


def _at_run_time(numbers: Any, *, always: jax.Array) -> Any:
    """Hide constants from the compiler.

    It would build known numbers into each kernel, and so make a kernel for each leaf.

    Args:
      numbers: pytree of ints.
      always: a bool scalar that is True, which the compiler does not know either.

    Returns:
      The same numbers as int32 scalars.
    """
    return jax.lax.cond(
        always,
        lambda: jax.tree.map(np.int32, numbers),
        lambda: jax.tree.map(lambda _: np.int32(0), numbers),
    )


def _slice(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice(x, (start,), (size,), allow_negative_indices=False)


def _sum(numbers: jax.Array) -> jax.Array:
    if numbers.size == 1:
        return jnp.reshape(numbers, ())
    return jnp.sum(numbers, dtype=numbers.dtype)

"""Where the units of many leaves lie as rows of one array: decided from shapes alone.

A row belongs to one layer: a part of it where a layer is one cell, else a whole cell.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparseopt_jax.arrays.units import Units

# Columns of a row, where cells do not decide. Rows of 256 are counted as fast on CPU as
# whole arrays; a layer wastes less than one row.
_WIDTH = 512

# More bins take longer to compile, which the memory that they save is not worth.
_MOST_BINS = 8

# How full bins have to be: what they are filled up with takes its time as well.
_FULL = 0.985


class Rows(NamedTuple):
    """Where the units of some leaves lie in rows: static, and hashable.

    Attributes:
      units: those of the leaves, in their order.
      width: columns of a row.
      height: rows of a bin.
      bins: the leaves in each bin, by their number; one after another from its first
        row.
    """

    units: tuple[Units, ...]
    width: int
    height: int
    bins: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, units: Sequence[Units], *, together: bool = False) -> "Rows":
        """Lays leaves out whose ``rows_kind`` is the same.

        Args:
          units: those of the leaves.
          together: whether all of them are wanted in one bin, in their order.

        Returns:
          Where they lie.
        """
        ((*_, width),) = {rows_kind(leaf) for leaf in units}  # pyright: ignore
        return _laid_out(tuple(units), width, together)

    def starts(self) -> list[int]:
        """Where each leaf starts, counted through all bins."""
        found = {}
        for number, bin in enumerate(self.bins):
            row = number * self.height
            for i in bin:
                found[i] = row * self.width
                row += rows_of(self.units[i], self.width)
        return [found[i] for i in range(len(self.units))]

    def first_layers(self) -> list[int]:
        """The first layer of each leaf, counted through all bins of so many each."""
        found, layers = {}, self.layers_per_bin
        for number, bin in enumerate(self.bins):
            layer = number * layers
            for i in bin:
                found[i] = layer
                layer += extents(self.units[i])[0]
        return [found[i] for i in range(len(self.units))]

    @property
    def layers_per_bin(self) -> int:
        """Layers in the fullest bin, stacked ones counted each."""
        return max(sum(extents(self.units[i])[0] for i in bin) for bin in self.bins)

    def tables(self) -> "Tables":
        """What ``RowUnits`` holds, of all bins."""
        return _tables(self)


@functools.lru_cache
def rows_kind(units: Units) -> tuple[bool, int, int] | None:
    """What leaves must have in common to lie in rows together; None if one cannot.

    Layers that are one cell lie in rows of any width, cells in a row each.

    >>> rows_kind(Units((4, 6), (4, 6), (), (), (0, 1), (0, 1)))
    (True, 1, 512)
    >>> rows_kind(Units((4, 6), (4, 6), (), (), (0,), (0, 1)))
    (False, 1, 4)
    """
    if units.has_short_cells or math.prod(unit_shape(units)) >= 2**31:
        return None
    if units.is_layer_wide:
        return (True, units.size, _WIDTH) if is_in_order(units) else None
    is_even = all(_step(units, axes) is not None for axes in _places_within(units))
    return (False, units.size, units.per_cell) if is_even else None


class Tables(NamedTuple):
    """What ``RowUnits`` holds, of all bins: NumPy arrays (bins, rows or layers)."""

    layer: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    step: np.ndarray
    width: np.ndarray
    leaf: np.ndarray
    leaf_first: np.ndarray
    leaf_step: np.ndarray


@functools.lru_cache
def _tables(rows: Rows) -> Tables:
    layers = rows.layers_per_bin
    of_rows, of_layers = (len(rows.bins), rows.height), (len(rows.bins), layers)
    tables = Tables(
        layer=np.full(of_rows, layers, np.int32),
        starts=np.zeros(of_layers, np.int32),
        sizes=np.zeros(of_layers, np.int32),
        first=np.zeros(of_rows, np.int32),
        step=np.ones(of_rows, np.int32),
        width=np.zeros(of_rows, np.int32),
        leaf=np.zeros(of_rows, np.int32),
        leaf_first=np.zeros(of_rows, np.int32),
        leaf_step=np.ones(of_rows, np.int32),
    )
    for number, bin in enumerate(rows.bins):
        row = layer = 0
        for place, i in enumerate(bin):
            units = rows.units[i]
            copies, _, _ = extents(units)
            each = rows_of_layer(units, rows.width)
            here = number, slice(row, row + copies * each)
            numbers = layer + np.arange(copies)
            tables.layer[here] = np.repeat(numbers, each)
            tables.starts[number, numbers] = row + each * np.arange(copies)
            tables.sizes[number, numbers] = units.per_layer
            tables.leaf[here] = place
            for axes, first, step in zip(
                _places_within(units),
                (tables.first, tables.leaf_first),
                (tables.step, tables.leaf_step),
                strict=True,
            ):
                stack, cells, *_ = _places(units, axes)
                if units.is_layer_wide:
                    cells = rows.width * np.arange(each)
                first[here] = np.add.outer(stack, cells).ravel()
                step[here] = 1 if units.is_layer_wide else _step(units, axes)
            if units.is_layer_wide:
                left = units.per_layer - rows.width * np.arange(each)
                tables.width[here] = np.tile(np.minimum(left, rows.width), copies)
            else:
                tables.width[here] = units.per_cell
            row, layer = row + copies * each, layer + copies
    return tables


@functools.lru_cache
def _laid_out(units: tuple[Units, ...], width: int, together: bool) -> Rows:
    sizes = [rows_of(leaf, width) for leaf in units]
    total, largest = sum(sizes), max(sizes)
    count = 1 if together else min(total // max(largest, 1), _MOST_BINS)
    while count > 1:
        for full in (1, _FULL):
            height = max(largest, math.ceil(total / count / full))
            bins = _binned(sizes, height)
            if len(bins) * height <= math.ceil(total / _FULL) + count:
                return Rows(units, width, height, bins)
        count -= 1 + count // 10
    return Rows(units, width, total, (tuple(range(len(units))),))


def _binned(sizes: list[int], height: int) -> tuple[tuple[int, ...], ...]:
    """Each size in the first bin that has room, the largest first."""
    bins: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        free = (place for place, room in enumerate(left) if room >= sizes[i])
        place = next(free, len(bins))
        if place == len(bins):
            bins.append([])
            left.append(height)
        bins[place].append(i)
        left[place] -= sizes[i]
    return tuple(map(tuple, bins))


@functools.lru_cache
def rows_of_layer(units: Units, width: int) -> int:
    """Rows that one layer takes."""
    return -(-units.per_layer // width) if units.is_layer_wide else units.cells


def rows_of(units: Units, width: int) -> int:
    """Rows that a leaf takes."""
    return extents(units)[0] * rows_of_layer(units, width)


def unit_shape(units: Units) -> tuple[int, ...]:
    """Shape of an array of units."""
    return tuple(1 if a in units.inner else n for a, n in enumerate(units.split))


def _axis_groups(units: Units) -> tuple[list[int], list[int], list[int]]:
    """Axes of an array of units: of the stack, of the cells, and of what is in one."""
    within = [a for a in units.cell if a not in units.inner]
    cells = [a for a in units.layer if a not in units.cell]
    stack = [a for a in range(len(units.split)) if a not in (*within, *cells)]
    return stack, cells, within


def axis_order(units: Units) -> list[int]:
    """The axes of an array of units, those of a cell last."""
    return [axis for axes in _axis_groups(units) for axis in axes]


def is_in_order(units: Units) -> bool:
    """Whether the array of units need not be transposed."""
    wide = [a for a in axis_order(units) if unit_shape(units)[a] > 1]
    return wide == sorted(wide)


@functools.lru_cache
def extents(units: Units) -> tuple[int, int, int]:
    """Layers of the stack, cells of each, units of a cell."""
    copies = math.prod(unit_shape(units)) // max(units.per_layer, 1)
    return copies, units.cells, units.per_cell


def _places(units: Units, axes: tuple[int, ...]) -> list[np.ndarray]:
    """Parts of the row-major place of a unit within some axes, whose sum it is.

    Args:
      units: of a leaf.
      axes: of its array of units, ascending.

    Returns:
      int64 arrays: what the place in the stack, the cell, and the place in the cell
      add; not the last where a layer is one cell.
    """
    shape = unit_shape(units)
    steps = dict.fromkeys(range(len(shape)), 0)
    step = 1
    for axis in reversed(axes):
        steps[axis] = step
        step *= shape[axis]

    def part(group):
        places = np.zeros(1, np.int64)
        for axis in group:
            places = np.add.outer(places, steps[axis] * np.arange(shape[axis])).ravel()
        return places

    stack, cells, within = _axis_groups(units)
    return [part(stack), part(cells), *([] if units.is_layer_wide else [part(within)])]


def _places_within(units: Units) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes within which places count: those of a layer, and all."""
    return units.layer, tuple(range(len(units.split)))


def _step(units: Units, axes: tuple[int, ...]) -> int | None:
    """From one unit of a cell to the place of the next; None if it is not the same."""
    *_, within = _places(units, axes)
    steps = np.unique(np.diff(within))
    return None if steps.size > 1 else int(steps.sum())

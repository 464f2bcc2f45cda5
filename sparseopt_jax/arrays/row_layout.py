"""The layout of the units of many leaves as rows of one array, from shapes alone.

A row belongs to one cell; a cell takes as many rows as it needs.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sparseopt_jax.arrays.units import Units

# Columns of a row if each layer is a single cell. On CPU rows of 256 are counted as
# fast as whole arrays; a layer wastes less than one row.
_WIDTH = 512

# Cost of a row besides its columns, when their number is chosen for cells.
_PER_ROW = 64

# More bins would save memory, but not enough to justify longer compilation.
_MOST_BINS = 8

# The fraction of a bin that leaves must fill: padding takes time as well.
_FULL = 0.985


class Rows(NamedTuple):
    """The layout of the units of several leaves in rows: static and hashable.

    Attributes:
      units: the units of the leaves, in their order.
      width: number of columns of a row.
      height: number of rows of a bin.
      bins: the leaves in each bin, by their number; they follow one another from its
        first row.
    """

    units: tuple[Units, ...]
    width: int
    height: int
    bins: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, units: Sequence[Units], *, together: bool = False) -> "Rows":
        """Lay out leaves that have the same ``rows_kind``.

        Args:
          units: the units of the leaves.
          together: whether to put all leaves into one bin, in their order.

        Returns:
          The layout.
        """
        width = _WIDTH if units[0].is_layer_wide else _width_of_cells(units)
        return _laid_out(tuple(units), width, together)

    def starts(self) -> list[int]:
        """Return where each leaf starts, counted through all bins."""
        size = self.height * self.width
        return self._firsts(size, lambda units: rows_of(units, self.width) * self.width)

    def first_layers(self) -> list[int]:
        """Return the first layer of each leaf, with ``layers_per_bin`` in each bin."""
        return self._firsts(self.layers_per_bin, lambda units: extents(units)[0])

    def first_cells(self) -> list[int]:
        """Return the first cell of each leaf, with ``cells_per_bin`` in each bin."""
        return self._firsts(self.cells_per_bin, cells_of)

    def _firsts(self, per_bin: int, of_leaf: Callable[[Units], int]) -> list[int]:
        found = {}
        for number, bin in enumerate(self.bins):
            first = number * per_bin
            for i in bin:
                found[i] = first
                first += of_leaf(self.units[i])
        return [found[i] for i in range(len(self.units))]

    @property
    def layers_per_bin(self) -> int:
        """Number of layers in the fullest bin, counting each layer of a stack."""
        return max(sum(extents(self.units[i])[0] for i in bin) for bin in self.bins)

    @property
    def cells_per_bin(self) -> int:
        """Number of cells in the fullest bin; 0 if each layer is a single cell."""
        return max(sum(cells_of(self.units[i]) for i in bin) for bin in self.bins)

    @property
    def rows_per_cell(self) -> int:
        """Number of rows of the largest cell."""
        return max(-(-leaf.per_cell // self.width) for leaf in self.units)


@functools.lru_cache
def rows_kind(units: Units) -> tuple[bool, int] | None:
    """Return what leaves must share to be laid out together; None if one cannot be.

    >>> rows_kind(Units((4, 6), (4, 6), (), (), (0, 1), (0, 1)))
    (True, 1)
    >>> rows_kind(Units((4, 6), (4, 6), (), (), (0,), (0, 1)))
    (False, 1)
    """
    if units.has_short_cells or math.prod(unit_shape(units)) >= 2**31:
        return None
    if units.is_layer_wide:
        return (True, units.size) if is_in_order(units) else None
    is_even = all(step_of(units, axes) is not None for axes in places_within(units))
    return (False, units.size) if is_even else None


def cells_of(units: Units) -> int:
    """Return the number of cells of a leaf; 0 if each layer is a single cell."""
    copies, cells, _ = extents(units)
    return 0 if units.is_layer_wide else copies * cells


def _width_of_cells(units: Sequence[Units]) -> int:
    """Return the width of rows that wastes the least on cells of these sizes."""
    sizes: dict[int, int] = {}
    for leaf in units:
        sizes[leaf.per_cell] = sizes.get(leaf.per_cell, 0) + cells_of(leaf)
    largest = min(max(sizes), _WIDTH)
    widths = {largest, *(2**n for n in range(3, largest.bit_length()))}

    def cost(width):
        rows = sum(-(-size // width) * cells for size, cells in sizes.items())
        return rows * (width + _PER_ROW)

    return min(sorted(widths), key=cost)


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
    """Put each size into the first bin that has room, the largest first."""
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
    """Return the number of rows of one layer."""
    return units.cells * -(-units.per_cell // width)


def rows_of(units: Units, width: int) -> int:
    """Return the number of rows of a leaf."""
    return extents(units)[0] * rows_of_layer(units, width)


def parts_of(units: Units, width: int) -> tuple[int, int, int]:
    """Count the parts of a leaf that begin with a new row, which are its cells.

    Returns:
      Their number, the units of each, and how many units its rows have room for.
    """
    copies, cells, per_cell = extents(units)
    return copies * cells, per_cell, -(-per_cell // width) * width


def cell_shape(units: Units) -> tuple[int, ...]:
    """Return the shape of an array with a number for each cell."""
    return tuple(1 if a in units.cell else n for a, n in enumerate(unit_shape(units)))


def unit_shape(units: Units) -> tuple[int, ...]:
    """Return the shape of an array of units."""
    return tuple(1 if a in units.inner else n for a, n in enumerate(units.split))


def _axis_groups(units: Units) -> tuple[list[int], list[int], list[int]]:
    """Return the axes of an array of units: the stack's, the cells', and within one."""
    within = [a for a in units.cell if a not in units.inner]
    cells = [a for a in units.layer if a not in units.cell]
    stack = [a for a in range(len(units.split)) if a not in (*within, *cells)]
    return stack, cells, within


def axis_order(units: Units) -> list[int]:
    """Return the axes of an array of units, with those of a cell last."""
    return [axis for axes in _axis_groups(units) for axis in axes]


def is_in_order(units: Units) -> bool:
    """Return whether the array of units does not need a transpose."""
    wide = [a for a in axis_order(units) if unit_shape(units)[a] > 1]
    return wide == sorted(wide)


@functools.lru_cache
def extents(units: Units) -> tuple[int, int, int]:
    """Return the layers of the stack, the cells of each, and the units of a cell."""
    copies = math.prod(unit_shape(units)) // max(units.per_layer, 1)
    return copies, units.cells, units.per_cell


def places_of(units: Units, axes: tuple[int, ...]) -> list[np.ndarray]:
    """Return the terms that add up to a unit's row-major place within some axes.

    Args:
      units: the units of a leaf.
      axes: axes of its array of units, ascending.

    Returns:
      int64 arrays with the terms of the place in the stack, of the cell, and of the
      place in the cell; without the last if each layer is a single cell.
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


def places_within(units: Units) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes within which places are counted: those of a layer, and all."""
    return units.layer, tuple(range(len(units.split)))


def step_of(units: Units, axes: tuple[int, ...]) -> int | None:
    """Return the step from the place of a unit to the next in its cell, or None.

    The step is None if it is not the same for all units of a cell.
    """
    *_, within = places_of(units, axes)
    steps = np.unique(np.diff(within))
    return None if steps.size > 1 else int(steps.sum())

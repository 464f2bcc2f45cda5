"""Tables of the leaf, layer and cell of each row, and of the places of its units."""

import functools
from typing import NamedTuple

import numpy as np

from sparseopt_jax.arrays.row_layout import (
    Rows,
    cells_of,
    extents,
    places_of,
    places_within,
    rows_of,
    rows_of_layer,
    step_of,
)
from sparseopt_jax.arrays.units import Units


class Tables(NamedTuple):
    """The fields of ``RowUnits`` for all bins, as NumPy arrays.

    Their shapes are (bins, rows), (bins, layers) and (bins, cells). Those of cells are
    empty if each layer is a single cell.
    """

    layer: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    step: np.ndarray
    width: np.ndarray
    leaf: np.ndarray
    leaf_first: np.ndarray
    leaf_step: np.ndarray
    cell: np.ndarray
    cell_starts: np.ndarray
    cell_sizes: np.ndarray
    cell_first: np.ndarray


@functools.lru_cache
def tables_of(rows: Rows) -> Tables:
    """Return the tables of a layout, which are computed once."""
    layers = rows.layers_per_bin
    of_rows, of_layers = (len(rows.bins), rows.height), (len(rows.bins), layers)
    of_cells = len(rows.bins), rows.cells_per_bin
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
        cell=np.zeros(of_rows, np.int32),
        cell_starts=np.zeros(of_cells, np.int32),
        cell_sizes=np.zeros(of_cells, np.int32),
        cell_first=np.zeros(of_rows, np.int32),
    )
    for number, bin in enumerate(rows.bins):
        of_bin = Tables(*(table[number] for table in tables))
        row = layer = cell = 0
        for place, i in enumerate(bin):
            units, width = rows.units[i], rows.width
            rows_of_leaf = slice(row, row + rows_of(units, width))
            of_bin.leaf[rows_of_leaf] = place
            _write_places(of_bin, units, rows_of_leaf, width)
            _write_layers(of_bin, units, rows_of_leaf, layer, width)
            if not units.is_layer_wide:
                _write_cells(of_bin, units, rows_of_leaf, cell, width)
            row = rows_of_leaf.stop
            layer += extents(units)[0]
            cell += cells_of(units)
    return tables


def _write_places(tables: Tables, units: Units, here: slice, width: int) -> None:
    """Write the places of a leaf's units in their layer and in the leaf."""
    within = np.arange(0, units.per_cell, width)
    left = np.minimum(units.per_cell - within, width)
    tables.width[here] = np.tile(left, (here.stop - here.start) // left.size)
    for axes, first, step in zip(
        places_within(units),
        (tables.first, tables.leaf_first),
        (tables.step, tables.leaf_step),
        strict=True,
    ):
        stack, cells, *_ = places_of(units, axes)
        step[here] = from_unit = 1 if units.is_layer_wide else step_of(units, axes) or 0
        of_cells = np.add.outer(stack, cells)
        first[here] = np.add.outer(of_cells, from_unit * within).ravel()


def _write_layers(
    tables: Tables, units: Units, here: slice, first: int, width: int
) -> None:
    """Write the layers of a leaf, numbered from ``first`` on."""
    copies, _, _ = extents(units)
    each = rows_of_layer(units, width)
    numbers = first + np.arange(copies)
    tables.layer[here] = np.repeat(numbers, each)
    tables.starts[numbers] = here.start + each * np.arange(copies)
    tables.sizes[numbers] = units.per_layer


def _write_cells(
    tables: Tables, units: Units, here: slice, first: int, width: int
) -> None:
    """Write the cells of a leaf, numbered from ``first`` on."""
    within = np.arange(0, units.per_cell, width)
    count = cells_of(units)
    numbers = first + np.arange(count)
    tables.cell[here] = np.repeat(numbers, within.size)
    tables.cell_first[here] = np.tile(within, count)
    tables.cell_starts[numbers] = here.start + within.size * np.arange(count)
    tables.cell_sizes[numbers] = units.per_cell

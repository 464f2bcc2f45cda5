"""The units of many layers as rows of one array, as ``Units`` are for one leaf."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.bisection import order_keys, select_keys
from sparseopt_jax.arrays.counting import count_true, sums


class Cells(NamedTuple):
    """The cells of rows, if a layer has several.

    Attributes:
      number: (rows,) int32, the number of each row's cell.
      starts: (cells,) int32, the first row of each cell, which its others follow.
      sizes: (cells,) int32, the number of units of each cell.
      first: (rows, 1) int32, the place in its cell of a row's first unit.
      most: number of rows of the largest cell.
      width: number of units that a row has room for.
    """

    number: jax.Array
    starts: jax.Array
    sizes: jax.Array
    first: jax.Array
    most: int
    width: int

    def sums(self, counts: list[jax.Array]) -> list[jax.Array]:
        """Sum numbers for each row, (rows,) int32, over each cell."""
        rows = jnp.arange(self.most, dtype=jnp.int32)
        is_row = rows * self.width < self.sizes[:, None]
        rows = self.starts[:, None] + rows
        counts = [jnp.take(count, rows, mode="clip") for count in counts]
        return _masked_sums(is_row, counts)

    def to_rows(self, numbers: jax.Array) -> jax.Array:
        """Expand a number for each cell to one for each row: (rows, 1)."""
        return jnp.take(numbers, self.number, mode="clip")[:, None]

    def from_rows(self, numbers: jax.Array) -> jax.Array:
        """Reduce (rows, 1) to a number for each cell: (cells,)."""
        chosen = jnp.take(numbers[:, 0], self.starts, mode="clip")
        return jnp.where(self.sizes > 0, chosen, 0)


class RowUnits(NamedTuple):
    """The units of several layers as rows of one array, as ``Units`` are for one leaf.

    Arrays of units have the shape (rows, columns), and counts (rows, 1): each row holds
    the count of its layer or cell. Entries beyond the units are ignored.

    Attributes:
      layer: (rows,) int32, the number of each row's layer; rows without units share
        another number.
      starts: (layers,) int32, a row of each layer.
      sizes: (layers,) int32, the number of units of each layer.
      first: (rows, 1) int32, the place in its layer of a row's first unit.
      step: int32 that broadcasts against ``first``, the step from the place of a unit
        to the next of its row.
      width: (rows, 1) int32, the number of units of a row.
      leaf: (rows,) int32, the number of each row's leaf.
      leaf_first: like ``first``, in the leaf's array of units.
      leaf_step: like ``step``, in the leaf's array of units.
      size: number of weights in one unit.
      cells: the cells of the layers; None if each layer is a single cell.
    """

    layer: jax.Array
    starts: jax.Array
    sizes: jax.Array
    first: jax.Array
    step: jax.typing.ArrayLike
    width: jax.Array
    leaf: jax.Array
    leaf_first: jax.Array
    leaf_step: jax.typing.ArrayLike
    size: int
    cells: Cells | None

    @property
    def is_layer_wide(self) -> bool:
        """Whether each layer is a single cell."""
        return self.cells is None

    @property
    def per_layer(self) -> jax.Array:
        """Number of units in each row's layer: (rows, 1) int32."""
        return self._to_rows(self.sizes)

    @property
    def per_cell(self) -> jax.Array:
        """Number of units in each row's cell: (rows, 1) int32."""
        if self.cells is None:
            return self.per_layer
        return self.cells.to_rows(self.cells.sizes)

    def count(self, units: jax.Array, within: str = "cell") -> jax.Array:
        """Do the same as ``Units.count``: (rows, 1) int32."""
        counts = count_true(units & self._is_unit(units.shape[1]), (1,))
        if within == "cell" and self.cells is not None:
            return self.cells.to_rows(*self.cells.sums([counts]))
        return self._to_rows(*self._by_layer([counts]))

    def select(
        self,
        scores: jax.Array,
        k: jax.typing.ArrayLike,
        where: jax.Array | None = None,
        *,
        within: str = "cell",
    ) -> jax.Array:
        """Do the same as ``Units.select``: (rows, columns) bool."""
        is_unit = self._is_unit(scores.shape[1])
        keys = jnp.where(is_unit, order_keys(scores, where), jnp.iinfo(jnp.int32).min)
        column = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 1)
        k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), self.width.shape)

        def reaching(keys, thresholds):
            hits = [(keys >= threshold).astype(jnp.int32) for threshold in thresholds]
            return sums(hits, (1,))

        cells = self.cells
        if within == "cell" and cells is not None:
            return select_keys(
                keys,
                cells.from_rows(k),
                sizes=cells.sizes,
                index=cells.first + column,
                counts_of=lambda keys, thresholds: cells.sums(
                    reaching(keys, map(cells.to_rows, thresholds))
                ),
                spread=cells.to_rows,
            )
        return select_keys(
            keys,
            self.layer_vector(k),
            sizes=self.sizes,
            index=self.first + column * self.step,
            counts_of=lambda keys, thresholds: self._by_layer(
                reaching(keys, [self._to_rows(x) for x in thresholds])
            ),
            spread=self._to_rows,
        )

    def any(self, x: jax.Array) -> jax.Array:
        """Return an array unchanged, because its entries are units already."""
        return x

    def all(self, x: jax.Array) -> jax.Array:
        """Return an array unchanged, because its entries are units already."""
        return x

    def only(self, x: jax.Array) -> jax.Array:
        """Set the entries of a bool array beyond the units to False."""
        return x & self._is_unit(x.shape[1])

    def total(self, counts: jax.Array) -> jax.Array:
        """Do the same as ``Units.total``: (rows, 1)."""
        counts = counts.astype(jnp.int32)
        if self.cells is None:
            return counts
        is_first = (self.width > 0) & (self.cells.first == 0)
        counts = jnp.where(is_first, counts, 0)
        return self._to_rows(*self._by_layer([counts[:, 0]]))

    def largest(self, counts: jax.Array) -> jax.Array:
        """Do the same as ``Units.largest``: (rows, 1)."""
        if self.is_layer_wide:
            return counts
        least = jnp.iinfo(counts.dtype).min
        used = self._is_of_layer & (self.width[:, 0] > 0)
        return self._to_rows(jnp.max(jnp.where(used, counts[:, 0], least), 1))

    def draw(self, keys: jax.Array, columns: int) -> jax.Array:
        """Draw the numbers of ``jax.random.uniform`` for each leaf's array of units.

        Args:
          keys: (leaves,) typed keys for which ``can_be_drawn`` holds.
          columns: number of columns of a row.

        Returns:
          (rows, columns) float32.
        """
        column = jnp.arange(columns, dtype=jnp.uint32)
        place = self.leaf_first.astype(jnp.uint32) + column * jnp.uint32(self.leaf_step)
        keys = jnp.take(keys, self.leaf, mode="clip")
        # A partitionable generator computes each number from its place alone, with the
        # same function of key and place that folds a number into a key.
        folded = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, place)
        words = jax.random.key_data(folded)
        bits = words[..., 0] ^ words[..., 1]
        ones = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.uint32)
        return jax.lax.bitcast_convert_type((bits >> 9) | ones, jnp.float32) - 1

    def layer_vector(self, numbers: jax.Array) -> jax.Array:
        """Do the same as ``Units.layer_vector``: from (rows, 1) to (layers,)."""
        chosen = jnp.take(numbers[:, 0], self.starts, mode="clip")
        return jnp.where(self.sizes > 0, chosen, 0)

    def cell_vector(self, numbers: jax.Array) -> jax.Array | None:
        """Flatten the cells' numbers to a vector; None if each layer is one cell."""
        return None if self.cells is None else self.cells.from_rows(numbers)

    def from_layer_vector(self, vector: jax.Array) -> jax.Array:
        """Do the same as ``Units.from_layer_vector``: from (layers,) to (rows, 1)."""
        return self._to_rows(vector)

    def _is_unit(self, columns: int) -> jax.Array:
        return jnp.arange(columns, dtype=jnp.int32) < self.width

    @property
    def _is_of_layer(self) -> jax.Array:
        """Which rows belong to each layer: (layers, rows) bool."""
        numbers = jnp.arange(self.sizes.size, dtype=jnp.int32)
        return self.layer == numbers[:, None]

    def _by_layer(self, counts: list[jax.Array]) -> list[jax.Array]:
        """Sum over the rows of each layer: from (rows,) int32 to (layers,)."""
        return _masked_sums(self._is_of_layer, counts)

    def _to_rows(self, numbers: jax.Array) -> jax.Array:
        """Expand (layers,) to (rows, 1)."""
        return jnp.take(numbers, self.layer, mode="clip")[:, None]


def _masked_sums(mask: jax.Array, counts: list[jax.Array]) -> list[jax.Array]:
    """Sum int32 arrays along the last of two axes, where a mask is True."""
    terms = [jnp.where(mask, count, 0) for count in counts]
    if len(counts) == 1:
        # XLA's CPU compiler would rewrite a single sum into slow windows.
        terms.append(jnp.where(mask, 0, counts[0]))
    return sums(terms, (1,))[: len(counts)]

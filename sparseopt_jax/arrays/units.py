"""The units in which a leaf's weights are switched, and the cells that they fill."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.arrays.selection import random_scores, ranked_mask, top_k_mask
from sparseopt_jax.arrays.sharding_types import explicit_sharding, sharded

# Beyond this size ranking costs more than the passes of bisection that it saves.
_SHORT = 32

# Units of at most this many weights are summed entry by entry. On CPU blocks of four
# take a fifteenth of the time of a reduction along a short axis; from sixteen weights
# on the time is equal.
_FEW = 8


class Units(NamedTuple):
    """The units in which the weights of one leaf are switched.

    An array of units has the shape ``split`` with the axes ``inner`` of size 1.

    Attributes:
      shape: shape of the leaf.
      split: the same with some axes cut in two: the blocks, and the entries of a block.
      cut: axes of the leaf that are cut.
      inner: axes of ``split`` within one unit.
      cell: axes of ``split`` that form a cell.
      layer: axes of ``split`` that form one layer of a stack.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    cut: tuple[int, ...]
    inner: tuple[int, ...]
    cell: tuple[int, ...]
    layer: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights in one unit."""
        return math.prod(self.split[a] for a in self.inner)

    @property
    def per_cell(self) -> int:
        """Number of units in one cell."""
        return math.prod(self.split[a] for a in self.cell if a not in self.inner)

    @property
    def per_layer(self) -> int:
        """Number of units in one layer of the stack."""
        return math.prod(self.split[a] for a in self.layer if a not in self.inner)

    @property
    def cells(self) -> int:
        """Number of cells in one layer of the stack."""
        return self.per_layer // self.per_cell

    @property
    def is_layer_wide(self) -> bool:
        """Whether each layer is a single cell."""
        return self.cells == 1

    @property
    def has_short_cells(self) -> bool:
        """Whether a cell is a short axis that was cut, and so whole on every device."""
        if not self.cut or self.inner or len(self.cell) != 1:
            return False
        return self.per_cell <= _SHORT

    @property
    def places(self) -> list[tuple[int, ...]]:
        """The axes of ``split`` that correspond to each axis of the leaf."""
        places, at = [], 0
        for axis in range(len(self.shape)):
            width = 2 if axis in self.cut else 1
            places.append(tuple(range(at, at + width)))
            at += width
        return places

    def sum(self, x: jax.Array) -> jax.Array:
        """Sum an array like the leaf over each unit."""
        x = self.divided(x)
        if not self.inner:
            return x
        # Whole axes may be sharded; slicing them would move entries between devices.
        cuts_only = len(self.inner) == len(self.cut)
        if self.size > _FEW or not cuts_only:
            return jnp.sum(x, self.inner, keepdims=True)
        entries = [x]
        for axis in self.inner:
            entries = [
                jax.lax.slice_in_dim(part, i, i + 1, axis=axis)
                for part in entries
                for i in range(self.split[axis])
            ]
        return functools.reduce(jnp.add, entries)

    def any(self, x: jax.Array) -> jax.Array:
        """Reduce a bool array like the leaf by `any` over each unit."""
        x = self.divided(x)
        return jnp.any(x, self.inner, keepdims=True) if self.inner else x

    def all(self, x: jax.Array) -> jax.Array:
        """Reduce a bool array like the leaf by `all` over each unit."""
        x = self.divided(x)
        return jnp.all(x, self.inner, keepdims=True) if self.inner else x

    def spread(self, units: jax.Array, like: jax.Array) -> jax.Array:
        """Expand an array of units to the leaf's shape, sharded like ``like``."""
        if self.inner:
            units = jnp.broadcast_to(units, self.split)
        return sharded(self.joined(units), explicit_sharding(like))

    def select(
        self,
        scores: jax.Array,
        k: jax.typing.ArrayLike,
        where: jax.Array | None = None,
        *,
        within: str = "cell",
    ) -> jax.Array:
        """Mark exactly the k units with the highest scores in every cell or layer.

        Args:
          scores: array of units.
          k: how many, as in ``top_k_mask``.
          where: bool array of units; False entries are marked only if k exceeds the
            number of the others.
          within: ``"cell"`` or ``"layer"``.

        Returns:
          Bool array of units.
        """
        if within == "cell" and self.has_short_cells:
            return ranked_mask(scores, k, where=where, axis=self.cell[0])
        axes = self.cell if within == "cell" else self.layer
        return top_k_mask(scores, k, where=where, axis=axes)

    def count(self, units: jax.Array, within: str = "cell") -> jax.Array:
        """Count the True units of every cell or layer: int32, their axes of size 1."""
        axes = self.cell if within == "cell" else self.layer
        return count_true(units, axes, keepdims=True)

    def only(self, x: jax.Array) -> jax.Array:
        """Return a bool array unchanged, because all its entries are units."""
        return x

    def total(self, counts: jax.Array) -> jax.Array:
        """Sum a number for each cell over each layer, in int32."""
        return jnp.sum(counts, self.layer, keepdims=True, dtype=jnp.int32)

    def largest(self, counts: jax.Array) -> jax.Array:
        """Return the largest of the cells' numbers in each layer."""
        return jnp.max(counts, self.layer, keepdims=True)

    def layer_vector(self, numbers: jax.Array) -> jax.Array:
        """Flatten a number for each layer, as ``count`` returns it, to a vector."""
        return jnp.ravel(numbers)

    def from_layer_vector(self, vector: jax.Array) -> jax.Array:
        """Give a vector with a number for each layer the axes of an array of units."""
        axes = (*self.layer, *self.inner)
        return jnp.reshape(
            vector, [1 if a in axes else n for a, n in enumerate(self.split)]
        )

    def choose(
        self, scores: jax.Array, k: jax.typing.ArrayLike, within: str = "cell"
    ) -> jax.Array:
        """Mark the weights of the k units whose scores have the largest sums.

        Args:
          scores: array like the leaf.
          k: number of units in every cell or layer.
          within: ``"cell"`` or ``"layer"``.

        Returns:
          Bool array like the leaf.
        """
        return self.spread(self.select(self.sum(scores), k, within=within), scores)

    def divided(self, x: jax.Array) -> jax.Array:
        """Reshape an array like the leaf to the shape ``split``."""
        if not self.cut:
            return x
        sharding = explicit_sharding(x)
        if sharding is None:
            return jnp.reshape(x, self.split)
        # Cut between the shards, so that each keeps whole blocks. If shards cut through
        # blocks, gather the axis first.
        whole: list[Any] = []
        entries: list[Any] = []
        places = iter(self.split)
        for axis, entry in enumerate(_entries(sharding, x.ndim)):
            blocks = next(places)
            if axis in self.cut:
                next(places)
                entry = None if blocks % _shards(sharding, entry) else entry
            whole.append(entry)
            entries.extend((entry, None) if axis in self.cut else (entry,))
        mesh = sharding.mesh
        x = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*whole)))
        out_sharding = NamedSharding(mesh, PartitionSpec(*entries))
        return jnp.reshape(x, self.split, out_sharding=out_sharding)

    def joined(self, x: jax.Array) -> jax.Array:
        """Reshape an array of the shape ``split`` to the shape of the leaf."""
        if not self.cut:
            return x
        sharding = explicit_sharding(x)
        if sharding is None:
            return jnp.reshape(x, self.shape)
        left = iter(_entries(sharding, x.ndim))
        entries = []
        for axis in range(len(self.shape)):
            entries.append(next(left))
            if axis in self.cut:
                next(left)
        out_sharding = NamedSharding(sharding.mesh, PartitionSpec(*entries))
        return jnp.reshape(x, self.shape, out_sharding=out_sharding)


def _shards(sharding: NamedSharding, entry: Any) -> int:
    """Return the number of shards of an axis with this entry of a spec."""
    names = entry if isinstance(entry, tuple) else (entry,)
    return math.prod(sharding.mesh.shape[name] for name in names if name is not None)


def _entries(sharding: NamedSharding, ndim: int) -> list[Any]:
    return [*sharding.spec, *[None] * (ndim - len(sharding.spec))]


@functools.partial(jax.jit, static_argnames=("units", "least", "neuron", "sharding"))
def random_units_mask(
    key: jax.Array,
    k: jax.typing.ArrayLike,
    units: Units,
    *,
    least: int,
    neuron: tuple[int, ...],
    sharding: NamedSharding | None,
) -> jax.Array:
    """Return a mask with exactly k units of every cell at random places.

    Args:
      key: typed PRNG key.
      k: number of units in every cell.
      units: the units of the leaf.
      least: minimum number of weights of every neuron, if units are single weights.
      neuron: axes of one neuron's weights.
      sharding: as in ``random_mask``.

    Returns:
      Bool array like the leaf.
    """
    scores = random_scores(key, units.shape, sharding)
    if least:
        held = top_k_mask(scores, least, axis=neuron)
        scores = jnp.where(held, jnp.inf, scores)
    return units.choose(scores, k)

"""Masks of one bit per weight: states and checkpoints store an eighth of the bytes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sparseopt_jax.arrays.sharding_types import explicit_sharding
from sparseopt_jax.trees.paths import map_with_paths


class PackedMask(NamedTuple):
    """A bool array with eight entries of its last axis per byte.

    Attributes:
      bits: uint8 array, ``ceil(size / 8)`` long in its last axis; the first of eight
        entries is the lowest bit, and bits beyond the last entry are 0.
      last: uint8 array of ones, one per entry in the last byte. Its shape encodes the
        size, because tools that take states apart keep only arrays.
    """

    bits: Any
    last: Any

    @property
    def size(self) -> int:
        """Length of the bool array's last axis."""
        return 8 * (self.bits.shape[-1] - 1) + self.last.shape[-1]


def is_packed(x: Any) -> bool:
    """Return whether ``x`` is a ``PackedMask``, or its form in ``nnx.Optimizer``."""
    return isinstance(x, PackedMask) or _is_taken_apart(x)


def _is_taken_apart(x: Any) -> bool:
    # `nnx.Optimizer` converts named tuples to mappings, and so do checkpoints.
    if not isinstance(x, Mapping) or set(x) != set(PackedMask._fields):
        return False
    return all(getattr(part, "dtype", None) == jnp.uint8 for part in x.values())


def restored(masks: Any) -> Any:
    """Return a tree of masks with each mapping made from a ``PackedMask`` restored."""

    def at_leaf(mask):
        return PackedMask(**mask) if _is_taken_apart(mask) else mask

    return jax.tree.map(at_leaf, masks, is_leaf=is_packed)


def pack(masks: Any) -> Any:
    """Return a tree of masks with a ``PackedMask`` for every bool array."""

    def at_leaf(path, mask):
        del path
        if getattr(mask, "dtype", None) != jnp.bool_:
            return mask
        bits = jnp.packbits(_whole_in_last_axis(mask), axis=-1, bitorder="little")
        return PackedMask(bits, jnp.ones((mask.shape[-1] - 1) % 8 + 1, jnp.uint8))

    return map_with_paths(at_leaf, masks)


def packed_bytes(shape: tuple[int, ...]) -> int:
    """Return the size in bytes of the ``PackedMask`` for a mask of this shape."""
    return math.prod(shape[:-1]) * -(-shape[-1] // 8) + (shape[-1] - 1) % 8 + 1


def _whole_in_last_axis(mask: jax.Array) -> jax.Array:
    """Unshard the last axis: an explicitly sharded axis cannot be cut into eights."""
    sharding = explicit_sharding(mask)
    if sharding is None or not sharding.spec:
        return mask
    spec = PartitionSpec(*sharding.spec[:-1], None)
    return jax.sharding.reshard(mask, NamedSharding(sharding.mesh, spec))


def unpack(masks: Any) -> Any:
    """Return a tree of masks with bool arrays; the same tree if nothing is packed."""

    def at_leaf(mask):
        if not is_packed(mask):
            return mask
        flags = jnp.unpackbits(mask.bits, axis=-1, count=mask.size, bitorder="little")
        return flags.astype(jnp.bool_)

    if not any(map(is_packed, jax.tree.leaves(masks, is_leaf=is_packed))):
        return masks
    return jax.tree.map(at_leaf, restored(masks), is_leaf=is_packed)

"""Masks of one bit a weight, for states and checkpoints of an eighth of the size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sparseopt_jax.sharding_types import explicit_sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMask:
    """A bool array, eight entries of its last axis in a byte.

    Attributes:
      value: uint8 array, ``ceil(size / 8)`` long in its last axis; the first entry of
        each eight is the lowest bit, what is beyond the last entry is 0.
      size: length of the bool array's last axis.
    """

    value: Any
    size: int = dataclasses.field(metadata={"static": True})


def is_packed(x: Any) -> bool:
    """Whether ``x`` is a ``PackedMask``."""
    return isinstance(x, PackedMask)


def pack(masks: Any) -> Any:
    """A tree of masks with a ``PackedMask`` for every bool array."""

    def at_leaf(mask):
        if getattr(mask, "dtype", None) != jnp.bool_:
            return mask
        value = jnp.packbits(_whole_in_last_axis(mask), axis=-1, bitorder="little")
        return PackedMask(value, mask.shape[-1])

    return jax.tree.map(at_leaf, masks)


def _whole_in_last_axis(mask: jax.Array) -> jax.Array:
    """Under explicit sharding a split axis cannot be cut into eights."""
    sharding = explicit_sharding(mask)
    if sharding is None or not sharding.spec:
        return mask
    spec = PartitionSpec(*sharding.spec[:-1], None)
    return jax.sharding.reshard(mask, NamedSharding(sharding.mesh, spec))


def unpack(masks: Any) -> Any:
    """A tree of masks with a bool array for every ``PackedMask``, itself if none is."""

    def at_leaf(mask):
        if not is_packed(mask):
            return mask
        bits = jnp.unpackbits(mask.value, axis=-1, count=mask.size, bitorder="little")
        return bits.astype(jnp.bool_)

    if not any(map(is_packed, jax.tree.leaves(masks, is_leaf=is_packed))):
        return masks
    return jax.tree.map(at_leaf, masks, is_leaf=is_packed)

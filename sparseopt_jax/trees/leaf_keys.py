"""Random numbers by name: a leaf draws the same ones in any tree."""

import zlib

import jax


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """The key of the leaf at a path."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))

"""Random numbers by name: a leaf draws the same numbers in any tree."""

import zlib
from collections.abc import Sequence

import jax
import numpy as np


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """Return the key of the leaf at a path."""
    return jax.random.fold_in(key, _number(path))


def leaf_keys(key: jax.Array, paths: Sequence[str]) -> jax.Array:
    """Return the keys of the leaves at some paths, (paths,), made by one program.

    Examples:
      >>> key = jax.random.key(0)
      >>> bool(leaf_keys(key, ["a", "b"])[1] == leaf_key(key, "b"))
      True
    """
    numbers = np.asarray([_number(path) for path in paths], np.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def _number(path: str) -> int:
    return zlib.crc32(path.encode())

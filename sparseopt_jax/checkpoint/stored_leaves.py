"""Conversion of a state to the arrays that are written for it, and back.

Leaves are identified by their paths, whichever classes hold them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.trees import paths


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves by path, in tree order."""
    flat: dict[str, Any] = {}
    for key_path, leaf in paths.leaves_with_path(tree):
        path = paths.path_string(key_path)
        if path in flat:
            raise ValueError(f"two leaves of the state have the path {path!r}")
        flat[path] = leaf
    if not flat:
        raise ValueError("the state holds no array")
    return flat


def to_store(leaves: Mapping[str, Any]) -> dict[str, jax.Array | np.ndarray]:
    """Return the arrays to write: numbers become arrays, and keys become their data.

    Numbers get the dtypes that JAX gives them. Leaves without entries are omitted,
    because there is nothing to write.

    Raises:
      ValueError: for a leaf of any other type, with its path.
    """

    def storable(path, leaf):
        if isinstance(leaf, bool | int | float | complex):
            return np.asarray(leaf, jnp.result_type(leaf))
        if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != object:
            return np.asarray(leaf)
        if isinstance(leaf, jax.Array):
            return jax.random.key_data(leaf) if _is_key(leaf) else leaf
        raise ValueError(
            f"the state holds {type(leaf).__name__} at {path!r}; only arrays, PRNG "
            "keys and numbers can be saved"
        )

    stored = {path: storable(path, leaf) for path, leaf in leaves.items()}
    return {path: x for path, x in stored.items() if x.size}


def check(leaves: Mapping[str, Any]) -> None:
    """Raise ValueError, with the path, if a leaf cannot be stored."""
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            to_store({path: leaf})


def targets(leaves: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct | np.ndarray]:
    """Return the targets that tell Orbax how to load the array of each leaf."""

    def target(leaf):
        sharding = getattr(leaf, "sharding", None)
        if not getattr(leaf, "committed", True):
            sharding = None
        if _is_key(leaf):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        shape = np.shape(leaf)
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if sharding is None:
            return np.broadcast_to(np.zeros((), dtype), shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    found = {path: target(leaf) for path, leaf in leaves.items()}
    return {path: x for path, x in found.items() if x.size}


def like(leaf: Any, stored: Any) -> Any:
    """Convert a stored array to the type of its leaf: a key, a number, an array.

    Args:
      leaf: a leaf of the state to restore.
      stored: the array that was loaded for it; None if it has no entries.

    Returns:
      The replacement of the leaf.
    """
    if stored is None:
        stored = np.zeros(np.shape(leaf), jnp.result_type(leaf))
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(stored.item())
    if isinstance(leaf, np.ndarray | np.generic):
        return stored if isinstance(leaf, np.ndarray) else stored[()]
    if isinstance(stored, np.ndarray):
        # Not committed to a device, because the leaf is not.
        stored = jnp.array(stored)
    if _is_key(leaf):
        return jax.random.wrap_key_data(
            stored, impl=jax.random.key_impl(jnp.zeros((), leaf.dtype))
        )
    if isinstance(leaf, jax.Array) and leaf.weak_type:
        weak = leaf.at[...].set(stored)
        return jax.device_put(weak, leaf.sharding) if leaf.committed else weak
    return stored


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

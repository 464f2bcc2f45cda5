"""Conversion of a state to the arrays that are written for it, and back.

Leaves are identified by their paths, whichever classes hold them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.trees import paths
from sparseopt_jax.trees.prng_keys import is_typed

# Python's numbers by type: the dtype that stores all their digits, with and without
# jax_enable_x64, and the kinds of the arrays that JAX makes of them.
_NUMBERS = {
    "bool": (np.bool_, ("bool[]",)),
    "int": (np.int64, ("int32[]", "int64[]")),
    "float": (np.float64, ("float32[]", "float64[]")),
    "complex": (np.complex128, ("complex64[]", "complex128[]")),
}


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


def kinds(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Return the kind of every leaf: ``float32[4,8]``, or ``float`` for a number."""

    def kind(leaf):
        if _number(leaf) or not hasattr(leaf, "dtype"):
            return _number(leaf) or type(leaf).__name__
        return f"{_native(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"

    return {path: kind(leaf) for path, leaf in leaves.items()}


def is_same(saved: str, given: str) -> bool:
    """Tell whether a leaf of one kind can be restored into a leaf of another kind.

    A Python number and the array that JAX makes of it can replace each other, such as
    the ``step`` of a new state and of a trained one.

    >>> is_same("int", "int32[]"), is_same("int", "float32[]")
    (True, False)
    """
    return saved == given or any(
        one in _NUMBERS and other in _NUMBERS[one][1]
        for one, other in ((saved, given), (given, saved))
    )


def to_store(leaves: Mapping[str, Any]) -> dict[str, jax.Array | np.ndarray]:
    """Return the arrays to write: numbers become arrays, and keys become their data.

    Python's numbers become arrays of 64 bits, and NumPy arrays get the byte order of
    this machine. Leaves without entries are omitted, because there is nothing to write.

    Raises:
      ValueError: for a leaf of any other type or a larger integer, with its path.
    """
    stored = {path: _storable(path, leaf) for path, leaf in leaves.items()}
    return {path: x for path, x in stored.items() if x.size}


def _storable(path: str, leaf: Any) -> jax.Array | np.ndarray:
    number = _number(leaf)
    if number:
        try:
            return np.asarray(leaf, _NUMBERS[number][0])
        except OverflowError:
            raise ValueError(
                f"the state holds the integer {leaf} at {path!r}, which needs more "
                "than 64 bits: save it in data, or as a float"
            ) from None
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if is_typed(leaf) else leaf
    if isinstance(leaf, np.ndarray | np.generic):
        if _is_numeric(leaf.dtype):
            return np.asarray(leaf, _native(leaf.dtype))
        what = f"an array of {leaf.dtype}"
    else:
        what = type(leaf).__name__
    raise ValueError(
        f"the state holds {what} at {path!r}; only arrays, PRNG keys and numbers can "
        "be saved"
    )


def check(leaves: Mapping[str, Any]) -> None:
    """Raise ValueError, with the path, if a leaf cannot be stored."""
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            to_store({path: leaf})


def check_targets(leaves: Mapping[str, Any]) -> None:
    """Raise ValueError, with the path, if JAX cannot make an array like a leaf."""
    for path, leaf in leaves.items():
        if isinstance(leaf, np.ndarray | np.generic) or not hasattr(leaf, "dtype"):
            continue
        if not is_typed(leaf):
            made = jax.dtypes.canonicalize_dtype(leaf.dtype)
            if made != leaf.dtype:
                raise ValueError(
                    f"the state holds {leaf.dtype} at {path!r}, which JAX converts to "
                    f"{made} unless jax_enable_x64 is set: set it, or pass a NumPy "
                    "array"
                )
        sharding = _sharding(leaf)
        if sharding is None:
            continue
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError as error:
            raise ValueError(
                f"the sharding of {path!r} in the state does not fit its shape "
                f"{leaf.shape}: {error}"
            ) from None


def targets(
    leaves: Mapping[str, Any], saved: Mapping[str, str]
) -> dict[str, jax.ShapeDtypeStruct | np.ndarray]:
    """Return the targets that tell Orbax how to load the array of each leaf.

    Args:
      leaves: the leaves of the state to restore, by path.
      saved: the kinds of the saved leaves, each the same as the leaf's.

    Returns:
      The targets by path, without leaves that have no entries.
    """

    def target(leaf, kind):
        if kind in _NUMBERS:
            return np.zeros((), _NUMBERS[kind][0])
        if _number(leaf):
            return np.zeros((), kind.removesuffix("[]"))
        data, sharding = _data_of(leaf), _sharding(leaf)
        dtype = _native(data.dtype)
        if sharding is None:
            return np.broadcast_to(np.zeros((), dtype), data.shape)
        return jax.ShapeDtypeStruct(data.shape, dtype, sharding=sharding)

    found = {path: target(leaf, saved[path]) for path, leaf in leaves.items()}
    return {path: x for path, x in found.items() if x.size}


def like(path: str, leaf: Any, stored: Any) -> Any:
    """Convert a stored array to the type of its leaf: a key, a number, an array.

    Args:
      path: the path of the leaf.
      leaf: a leaf of the state to restore.
      stored: the array that was loaded for it; None if it has no entries.

    Returns:
      The replacement of the leaf.

    Raises:
      ValueError: if a saved integer is too large for an array in the state.
    """
    if _number(leaf):
        return type(leaf)(stored.item())
    data = _data_of(leaf)
    if stored is None:
        stored = np.zeros(data.shape, data.dtype)
    if isinstance(stored, np.ndarray):
        stored = _converted(path, stored, data.dtype)
    if isinstance(leaf, np.ndarray | np.generic):
        return stored if isinstance(leaf, np.ndarray) else stored[()]
    if isinstance(stored, np.ndarray):
        stored = _placed(stored, _sharding(leaf))
    if is_typed(leaf):
        return jax.random.wrap_key_data(
            stored, impl=jax.random.key_impl(jnp.zeros((), leaf.dtype))
        )
    if isinstance(leaf, jax.Array) and leaf.weak_type:
        weak = leaf.at[...].set(stored)
        return jax.device_put(weak, leaf.sharding) if leaf.committed else weak
    return stored


def _converted(path: str, stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert to the byte order of an array, or to the array of a number."""
    if stored.dtype == dtype:
        return stored
    with np.errstate(over="ignore"):
        converted = stored.astype(dtype, copy=False)
    if stored.dtype.kind == "i" and (converted != stored).any():
        raise ValueError(
            f"{path}: {stored} in the checkpoint, which {dtype} in this run cannot "
            "hold: pass a Python number"
        )
    return converted


def _placed(stored: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Put an array where its leaf is; uncommitted if the leaf is."""
    if sharding is None:
        return jnp.array(stored)
    return jax.make_array_from_callback(
        stored.shape, sharding, lambda index: stored[index]
    )


def _number(leaf: Any) -> str | None:
    """Return the type of a Python number; None for arrays and NumPy's scalars."""
    if isinstance(leaf, np.generic):  # np.float64 is also a float
        return None
    types = (bool, int, float, complex)
    return next((x.__name__ for x in types if isinstance(leaf, x)), None)


def _native(dtype: Any) -> Any:
    """Return the dtype in the byte order of this machine, the only one JAX knows."""
    return dtype if getattr(dtype, "isnative", True) else dtype.newbyteorder("=")


def _is_numeric(dtype: np.dtype) -> bool:
    """Tell whether JAX has a dtype; it has no text, dates or extended precision."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype.itemsize <= 16
    return dtype == np.bool_ or (
        jnp.issubdtype(dtype, jnp.number) and dtype.itemsize <= 8
    )


def _data_of(leaf: Any) -> Any:
    """Return an array, or the shape and dtype of the data of keys."""
    return jax.eval_shape(jax.random.key_data, leaf) if is_typed(leaf) else leaf


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """Return the sharding of a leaf; None if it is not committed to devices."""
    committed = getattr(leaf, "committed", True)
    return getattr(leaf, "sharding", None) if committed else None

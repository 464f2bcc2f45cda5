"""PRNG keys: from a user's seed to a typed key, and into a state and back.

A state holds uint32 key data, because NumPy and the tools that save, send or compare
arrays do not accept typed keys.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The shape of the data determines the implementation, the first if two share a shape.
_DATA_SHAPES = {"threefry2x32": (2,), "rbg": (4,), "unsafe_rbg": (4,)}

_ACCEPTED = (
    "pass a Python or NumPy integer, an integer scalar array, one typed key from "
    "jax.random.key, or its uint32 data of shape (2,) or (4,)"
)


def check_key(key: Any) -> None:
    """Raise unless ``typed_key`` can make a key of it; touch no device.

    Args:
      key: the user's seed.

    Raises:
      TypeError: for anything but an integer or a key.
      ValueError: for several keys, data of another shape, or an integer beyond 64 bits.
    """
    if isinstance(key, int) and not isinstance(key, bool):
        if not -(2**63) <= key < 2**63:
            raise ValueError(f"key must fit in 64 bits, got {key}; {_ACCEPTED}")
        return
    if not isinstance(key, np.integer | np.ndarray | jax.Array):
        raise _type_error(key)
    if is_typed(key):
        if key.shape:
            raise ValueError(
                f"key must be a single key, got keys of shape {key.shape}; {_ACCEPTED}"
            )
    elif not jnp.issubdtype(key.dtype, jnp.integer):
        raise _type_error(key)
    elif key.shape and (key.dtype != jnp.uint32 or _impl(key.shape) is None):
        raise ValueError(
            f"key must be an integer or a PRNG key, got {key.dtype} of shape "
            f"{key.shape}; {_ACCEPTED}"
        )


def typed_key(key: Any) -> jax.Array:
    """Return the typed key of a seed, a key or key data.

    Args:
      key: any seed that ``jax.random.key`` accepts, a typed key, or key data.

    Returns:
      A typed key: for a seed, of the default implementation; for key data, of the
      implementation whose data have that shape.

    Raises:
      TypeError: as ``check_key``.
      ValueError: as ``check_key``.

    Examples:
      >>> import jax, numpy as np
      >>> typed_key(np.int64(3)) == typed_key(jax.random.key_data(jax.random.key(3)))
      Array(True, dtype=bool)
    """
    check_key(key)
    if is_typed(key):
        return key
    if np.ndim(key):
        return load_key(key)
    return jax.random.key(key)


def store_key(key: jax.Array) -> jax.Array:
    """Return a typed key's uint32 data, which a state holds."""
    return jax.random.key_data(key)


def load_key(data: Any, like: Any = None) -> jax.Array:
    """Return the typed key of the data in a state.

    Args:
      data: uint32 key data; a typed key, as in old states, is returned unchanged.
      like: the seed or key that the state was made from. If it is a typed key, the
        result has its implementation, which the data do not always determine.

    Returns:
      The typed key.
    """
    if is_typed(data):
        return data
    impl = _impl(np.shape(data))
    if is_typed(like) and jax.eval_shape(store_key, like).shape == np.shape(data):
        impl = jax.random.key_impl(like)
    return jax.random.wrap_key_data(data, impl=impl)


def is_typed(x: Any) -> bool:
    """Tell whether ``x`` is a typed PRNG key, or an array of them."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _impl(data_shape: tuple[int, ...]) -> str | None:
    default = jax.config.jax_default_prng_impl  # pyright: ignore
    for impl in (default, *_DATA_SHAPES):
        if _DATA_SHAPES.get(impl) == data_shape:
            return impl
    return None


def _type_error(key: Any) -> TypeError:
    if isinstance(key, np.ndarray | jax.Array):
        got = f"{key.dtype} of shape {key.shape}"
    else:
        got = repr(key)
    return TypeError(f"key must be an int or a PRNG key, got {got}; {_ACCEPTED}")

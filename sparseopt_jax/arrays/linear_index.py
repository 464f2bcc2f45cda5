"""Places in an array, counted without flattening it: a sharded array stays split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def linear_index(
    shape: tuple[int, ...], axes: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Return each entry's row-major index within the axes given.

    Args:
      shape: shape of the array.
      axes: the axes that count, ascending; along the others the index is the same.
      dtype: an integer type; an index beyond it wraps.

    Returns:
      Array of ``shape`` and ``dtype``.

    Examples:
      >>> print(linear_index((2, 2), (0, 1), "int32"))
      [[0 1]
       [2 3]]
    """
    index = jnp.zeros(shape, dtype)
    stride = 1
    for axis in reversed(axes):
        wrapped = np.uint64(stride % 2**64).astype(dtype)
        index += wrapped * jax.lax.broadcasted_iota(dtype, shape, axis)
        stride *= shape[axis]
    return index

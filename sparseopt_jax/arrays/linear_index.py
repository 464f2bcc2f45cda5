"""Places in an array, counted without flattening it, so that it stays sharded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def linear_index(
    shape: tuple[int, ...], axes: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Return each entry's row-major index within the specified axes.

    Args:
      shape: shape of the array.
      axes: the axes to count along, ascending; the index is constant along the others.
      dtype: an integer type; an index beyond it wraps around.

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

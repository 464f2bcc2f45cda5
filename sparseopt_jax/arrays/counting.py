"""Counts of True entries, in one pass over an array and without a copy of its size."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# Up to this number a float32 sum of ones is exact.
_EXACT = 2**24


def sums(terms: list[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Sum several int32 arrays of one shape, with one read of their common source.

    Args:
      terms: int32 arrays; the compiler computes them as it sums.
      axes: the axes to sum along.

    Returns:
      int32 arrays without those axes.
    """
    if on_one_cpu():
        # XLA's CPU compiler rewrites a plain sum into slow windows. It does not rewrite
        # a reduction with several results and vectorises it, which is eight times as
        # fast. On several devices this form would gather every count instead of adding.
        zeros = [jnp.int32(0)] * len(terms)
        add = functools.partial(jax.tree.map, jax.lax.add)
        return list(jax.lax.reduce(terms, zeros, add, axes))
    return [jnp.sum(term, axes, dtype=jnp.int32) for term in terms]


def count_true(
    mask: jax.Array, axes: tuple[int, ...] | None = None, *, keepdims: bool = False
) -> jax.Array:
    """Return how many entries are True.

    Args:
      mask: bool array.
      axes: the axes to count along, each in [0, ndim); None for all.
      keepdims: whether these axes are kept with size 1.

    Returns:
      int32 array; correct for up to 2**31 - 1 True entries in an array of any size.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(count_true(jnp.array([[True, False], [True, True]]), (0,)))
      [2 1]
    """
    mask = jnp.asarray(mask)
    axes = tuple(range(mask.ndim)) if axes is None else axes
    size = math.prod(mask.shape[a] for a in axes)
    if not on_one_cpu() or not axes:
        return jnp.sum(mask, axes, keepdims=keepdims, dtype=jnp.int32)
    if mask.ndim - 1 in axes:
        # The terms of a single sum would be written out as int32 first, at twenty times
        # the cost. The compiler does not know that both sums add up to the size, so it
        # must compute both.
        hits, misses = sums([mask.astype(jnp.int32), (~mask).astype(jnp.int32)], axes)
        # Wraps around like int32, if there are more entries than it can count.
        wrapped = np.uint32(size % 2**32).astype(np.int32)
        count = hits + (hits + misses - wrapped)
    elif size <= _EXACT:
        # Neurons are contiguous: bytes are added in a sixth of the time of int32.
        count = jnp.sum(mask.view(jnp.uint8), axes, dtype=jnp.float32)
    else:
        count = jnp.sum(mask, axes, dtype=jnp.int32)
    count = count.astype(jnp.int32)
    return jnp.expand_dims(count, axes) if keepdims else count


def on_one_cpu() -> bool:
    """Return whether programs are compiled for a single CPU device."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1

"""Bisection over integers that keep the order of floats: the basis of selection.

The caller decides which keys are counted together: those of an array, of each of its
rows, or of the rows that belong to a layer.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Thresholds counted in one pass. On CPU seven take the same time in total, in fewer and
# slower passes, and compile longer; fifteen cost more than the passes that they save.
_THRESHOLDS = 3

# Signed integer keys keep the order of the floats; below -inf are NaN, then the entries
# that must not be chosen.
_INFINITY_BITS = 0x7F800000
_NAN_KEY = -_INFINITY_BITS - 1
INELIGIBLE_KEY = -_INFINITY_BITS - 2

# Above every key.
HIGHEST_KEY = _INFINITY_BITS + 2


def order_keys(scores: jax.Array, where: jax.Array | None) -> jax.Array:
    """Return int32 keys that compare like the scores in float32, equal for -0 and +0.

    Args:
      scores: real array.
      where: optional bool array; False entries get a key below all others, but above
        the smallest int32.

    Returns:
      int32 array of the shape of ``scores``.
    """
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    magnitude = bits & 0x7FFFFFFF
    keys = jnp.where(bits < 0, -magnitude, magnitude)
    keys = jnp.where(magnitude > _INFINITY_BITS, _NAN_KEY, keys)
    return keys if where is None else jnp.where(where, keys, INELIGIBLE_KEY)


def select_keys(
    keys: jax.Array,
    k: jax.Array,
    *,
    sizes: jax.Array,
    index: jax.Array,
    counts_of: Callable[[jax.Array, list[jax.Array]], list[jax.Array]],
    spread: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """Mark exactly the k largest keys of every selection.

    Args:
      keys: the result of ``order_keys``; smaller keys are never marked.
      k: int32, how many to mark, one entry per selection.
      sizes: int32, how many keys of each selection can be marked.
      index: int32 of the shape of ``keys``, each key's place in its selection, below
        the selection's size: the lowest places win ties.
      counts_of: maps keys and several thresholds, each with one entry per selection, to
        how many keys reach each threshold.
      spread: maps one entry per selection to an array that broadcasts against ``keys``.

    Returns:
      Bool array of the shape of ``keys``.
    """
    lowest = jnp.full_like(k, INELIGIBLE_KEY)
    threshold, reached = search(
        functools.partial(counts_of, keys),
        k,
        low=lowest,
        high=jnp.full_like(k, HIGHEST_KEY),
        reached=sizes,
    )
    # Ties: everything above the threshold stays; at the threshold the index decides. If
    # no tie has to be cut, zero already leaves exactly k, and no search follows.
    keys = tie_keys(keys, spread(threshold), index, spread(sizes))
    cut, _ = search(
        functools.partial(counts_of, keys),
        k,
        low=jnp.zeros_like(k),
        high=sizes,
        reached=reached,
    )
    return keys >= spread(cut)


def tie_keys(
    keys: jax.Array, threshold: jax.Array, index: jax.Array, size: jax.typing.ArrayLike
) -> jax.Array:
    """Return keys that exceed ``size - 1`` above the threshold, and rank ties at it."""
    return jnp.where(
        keys > threshold, size, jnp.where(keys == threshold, size - 1 - index, -1)
    )


def search(
    counts_of: Callable[[list[jax.Array]], list[jax.Array]],
    k: jax.Array,
    low: jax.Array,
    high: jax.Array,
    reached: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Find the highest threshold in [low, high) that at least k keys reach.

    Args:
      counts_of: maps several thresholds to how many keys reach each of them.
      k: int32, how many keys must reach the threshold; one entry per selection, like
        all arguments below.
      low: int32; at least k keys must reach it.
      high: int32; fewer than k keys reach it, or it exceeds every key.
      reached: int32, how many keys reach ``low``.

    Returns:
      The threshold, or a lower one that exactly k keys reach, and how many reach it.

    Raises:
      TypeError: if an array is not int32: wider thresholds would never settle.
    """
    for name, x in {"k": k, "low": low, "high": high, "reached": reached}.items():
        if x.dtype != jnp.int32:
            raise TypeError(f"{name} must be int32, got {x.dtype}")

    def unsettled(state):
        low, high, reached = state
        return jnp.any((reached != k) & (low + 1 != high))

    def narrow(state):
        low, high, reached = state
        # The distance can exceed int32: as uint32 it wraps to the right value.
        width = high.astype(jnp.uint32) - low.astype(jnp.uint32)
        parts = _THRESHOLDS + 1
        thresholds = [
            low + (width // parts * i + width % parts * i // parts).astype(jnp.int32)
            for i in range(1, parts)
        ]
        counts = counts_of(thresholds)
        for threshold, count in zip(thresholds, counts, strict=True):
            enough = count >= k
            low = jnp.where(enough, threshold, low)
            reached = jnp.where(enough, count, reached)
        for threshold, count in zip(
            reversed(thresholds), reversed(counts), strict=True
        ):
            high = jnp.where(count < k, threshold, high)
        return low, high, reached

    low, _, reached = jax.lax.while_loop(unsettled, narrow, (low, high, reached))
    return low, reached

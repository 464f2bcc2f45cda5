"""Exact top-k selection without sorting: the kernel under every topology.

A sort costs O(n log n) and gathers a sharded array onto every device. Here the scores
are mapped to integers that keep their order, and the k-th largest is found by
bisection over those integers: every pass counts, in one fused reduction, how many
scores reach each of three thresholds and so settles two bits. Sixteen passes settle
any float32; usually fewer do, because a threshold that leaves exactly k is enough. Ties
at the threshold are cut by the same search over the linear index.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sparseopt_jax.arrays.counting import sums
from sparseopt_jax.arrays.linear_index import linear_index
from sparseopt_jax.arrays.sharding_types import is_explicit, sharded

# Thresholds counted in one pass. On CPU seven take as long in all, in fewer and slower
# passes, and longer to compile; fifteen cost more arithmetic than they save passes.
_THRESHOLDS = 3

# Signed integer keys keep the order of the floats; below -inf lie NaN, then what must
# not be chosen.
_INFINITY_BITS = 0x7F800000
_NAN_KEY = -_INFINITY_BITS - 1
_INELIGIBLE_KEY = -_INFINITY_BITS - 2


def top_k_mask(
    scores: jax.Array,
    k: jax.typing.ArrayLike,
    *,
    where: jax.Array | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> jax.Array:
    """Marks exactly the k largest scores.

    Ties are cut by the lowest linear index, -0.0 equals 0.0, and NaN ranks below every
    number. The array is only ever reduced, never sorted, flattened or gathered, so a
    sharded array stays where it is and only scalars travel.

    Args:
      scores: real array of any shape; compared as float32.
      k: how many to mark, static or traced. With ``axis``, a scalar or an array that
        broadcasts against the shape in which the axes of ``axis`` have size 1.
      where: optional bool array of the shape of ``scores``; what is False ranks below
        everything else, NaN included, whatever its score, and is marked only if k
        exceeds the rest.
      axis: the axes to select along, the others being a batch of separate
        selections; None selects in the whole array.

    Returns:
      Bool array of the shape of ``scores`` with exactly k True (per selection).

    Raises:
      ValueError: if a static k is negative or exceeds the number of scores, or if one
        selection spans 2**31 scores or more.
      TypeError: if the scores are complex.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sparseopt_jax.arrays.selection import top_k_mask
      >>> print(top_k_mask(jnp.array([1.0, 3.0, 2.0, 3.0]), 2))
      [False  True False  True]
      >>> print(top_k_mask(jnp.array([[1.0, 1.0], [0.0, 2.0]]), 1, axis=1))
      [[ True False]
       [False  True]]
    """
    scores = jnp.asarray(scores)
    if jnp.issubdtype(scores.dtype, jnp.complexfloating):
        raise TypeError(f"scores must be real, got {scores.dtype}")
    axes = _normalize_axes(axis, scores.ndim)
    size = math.prod(scores.shape[a] for a in axes)
    if size >= 2**31:
        raise ValueError(
            f"one selection may span fewer than 2**31 scores, got {size} "
            f"(shape {scores.shape}, axis {axis})"
        )
    if isinstance(k, int) and not 0 <= k <= size:
        raise ValueError(f"k must be in [0, {size}], got {k}")
    if where is not None and where.shape != scores.shape:
        raise ValueError(
            f"where must have the shape of scores {scores.shape}, got {where.shape}"
        )
    return _top_k_mask(scores, jnp.asarray(k, jnp.int32), where, axes)


def random_mask(
    key: jax.Array,
    shape: tuple[int, ...],
    k: jax.typing.ArrayLike,
    *,
    axis: int | tuple[int, ...] | None = None,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """A mask with exactly k True at uniformly random places.

    Args:
      key: typed PRNG key.
      shape: shape of the mask.
      k: how many to mark, as in ``top_k_mask``.
      axis: as in ``top_k_mask``.
      sharding: how the mask is to be sharded; every device then draws its own part.
        The places do not depend on it.

    Returns:
      Bool array of ``shape``.

    Examples:
      >>> import jax
      >>> int(random_mask(jax.random.key(0), (4, 8), 5).sum())
      5
    """
    return _random_mask(key, jnp.asarray(k, jnp.int32), shape, axis, sharding)


@functools.partial(jax.jit, static_argnames=("shape", "axis", "sharding"))
def _random_mask(
    key: jax.Array,
    k: jax.Array,
    shape: tuple[int, ...],
    axis: int | tuple[int, ...] | None,
    sharding: NamedSharding | None,
) -> jax.Array:
    return top_k_mask(random_scores(key, shape, sharding), k, axis=axis)


def random_scores(
    key: jax.Array, shape: tuple[int, ...], sharding: NamedSharding | None
) -> jax.Array:
    """Uniform numbers of which every device draws its own part, whatever the mesh."""
    explicit = sharding if sharding and is_explicit(sharding) else None
    return sharded(jax.random.uniform(key, shape, out_sharding=explicit), sharding)


@functools.partial(jax.jit, static_argnames="axes")
def _top_k_mask(
    scores: jax.Array,
    k: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
) -> jax.Array:
    keys = _order_keys(scores.astype(jnp.float32), where)
    # One entry per selection, in type sharded as their counts are; nothing is summed.
    lowest = jnp.full_like(jnp.sum(keys, axes, keepdims=True), _INELIGIBLE_KEY)
    size = math.prod(keys.shape[a] for a in axes)
    k = k + jnp.zeros_like(lowest)
    threshold, reached = _search(
        functools.partial(_counts, keys, axes=axes),
        *(k, lowest, jnp.full_like(lowest, _INFINITY_BITS + 2)),
        jnp.full_like(lowest, size),
    )

    # Ties: above the threshold everything stays, at it the index decides. Where no tie
    # has to be cut, zero already leaves exactly k and the search below never starts.
    keys = _tie_keys(keys, threshold, linear_index(keys.shape, axes, jnp.int32), size)
    cut, _ = _search(
        functools.partial(_counts, keys, axes=axes),
        *(k, jnp.zeros_like(lowest), jnp.full_like(lowest, size), reached),
    )
    return keys >= cut


def top_k_masks(
    scores: Sequence[jax.Array],
    k: jax.typing.ArrayLike,
    *,
    where: Sequence[jax.Array],
    sizes: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Marks exactly the k largest scores of several arrays together.

    What ``top_k_mask`` is for one array; ties are cut by the order of the arrays, then
    by the index. No array is moved: only counts are added over all.

    Args:
      scores: real arrays of any shapes; compared as float32.
      k: how many to mark in all: int32 scalar, static or traced.
      where: a bool array for each; what is False ranks below everything else.
      sizes: for how many an entry of each array counts; 1 each by default. The last
        entry that is marked may exceed k.

    Returns:
      Bool arrays of their shapes, with exactly k True in all.

    Raises:
      ValueError: if there are 2**31 scores or more, each counted by its size.

    Examples:
      >>> import jax.numpy as jnp
      >>> scores = [jnp.array([1.0, 3.0]), jnp.array([[2.0]])]
      >>> masks = top_k_masks(scores, 2, where=[s > 0 for s in scores])
      >>> [mask.tolist() for mask in masks]
      [[False, True], [[True]]]
    """
    sizes = [1] * len(scores) if sizes is None else sizes
    total = sum(math.prod(x.shape) * n for x, n in zip(scores, sizes, strict=True))
    if total >= 2**31:
        raise ValueError(
            f"a selection over all layers may span fewer than 2**31 scores, got {total}"
        )
    return _top_k_masks(
        list(scores), jnp.asarray(k, jnp.int32), list(where), tuple(sizes)
    )


@functools.partial(jax.jit, static_argnames="sizes")
def _top_k_masks(
    scores: list[jax.Array],
    k: jax.Array,
    where: list[jax.Array],
    sizes: tuple[int, ...],
) -> list[jax.Array]:
    entries = [math.prod(x.shape) for x in scores]
    size = sum(entries)
    total = sum(n * own for n, own in zip(entries, sizes, strict=True))
    keys = [
        _order_keys(x.astype(jnp.float32), own)
        for x, own in zip(scores, where, strict=True)
    ]

    def counts_of(keys, thresholds):
        counts = [
            [own * jnp.reshape(n, ()) for n in _counts(x, thresholds, axes=None)]
            for x, own in zip(keys, sizes, strict=True)
        ]
        return [functools.reduce(jnp.add, own) for own in zip(*counts, strict=True)]

    low, high = jnp.int32(_INELIGIBLE_KEY), jnp.int32(_INFINITY_BITS + 2)
    threshold, reached = _search(
        functools.partial(counts_of, keys), k, low, high, jnp.int32(total)
    )
    offset = 0
    for i, x in enumerate(keys):
        index = offset + linear_index(x.shape, tuple(range(x.ndim)), jnp.int32)
        keys[i] = _tie_keys(x, threshold, index, size)
        offset += entries[i]
    cut, _ = _search(
        functools.partial(counts_of, keys), k, jnp.int32(0), jnp.int32(size), reached
    )
    return [x >= cut for x in keys]


def _tie_keys(
    keys: jax.Array, threshold: jax.Array, index: jax.Array, size: int
) -> jax.Array:
    """Keys that keep what exceeds the threshold and tell ties at it by their index."""
    return jnp.where(
        keys > threshold, size, jnp.where(keys == threshold, size - 1 - index, -1)
    )


def ranked_mask(
    scores: jax.Array,
    k: jax.typing.ArrayLike,
    *,
    where: jax.Array | None = None,
    axis: int,
) -> jax.Array:
    """What ``top_k_mask`` gives along one short axis, in a single pass.

    Each score is ranked against all others of its group. On CPU groups of four take a
    thirtieth of the time of bisecting them, groups of thirty-two a quarter. The axis
    must be whole on every device.

    Args:
      scores: as in ``top_k_mask``.
      k: as in ``top_k_mask``.
      where: as in ``top_k_mask``.
      axis: the axis to select along.

    Returns:
      As ``top_k_mask``.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(ranked_mask(jnp.array([[1.0, 1.0], [0.0, 2.0]]), 1, axis=1))
      [[ True False]
       [False  True]]
    """
    keys = _order_keys(scores.astype(jnp.float32), where)
    index = jax.lax.broadcasted_iota(jnp.int32, keys.shape, axis)
    ranks = jnp.zeros_like(keys)
    for i in range(keys.shape[axis]):
        other = jax.lax.slice_in_dim(keys, i, i + 1, axis=axis)
        before = (other > keys) | ((other == keys) & (i < index))
        ranks += before.astype(jnp.int32)
    return ranks < k


def _order_keys(scores: jax.Array, where: jax.Array | None) -> jax.Array:
    """int32 keys that compare as the float32 scores do, equal for -0 and +0."""
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    magnitude = bits & 0x7FFFFFFF
    keys = jnp.where(bits < 0, -magnitude, magnitude)
    keys = jnp.where(magnitude > _INFINITY_BITS, _NAN_KEY, keys)
    return keys if where is None else jnp.where(where, keys, _INELIGIBLE_KEY)


def _search(
    counts_of: Callable[[list[jax.Array]], list[jax.Array]],
    k: jax.Array,
    low: jax.Array,
    high: jax.Array,
    reached: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Finds the highest threshold in [low, high) that at least k keys reach.

    Args:
      counts_of: how many keys reach each of some thresholds.
      k: int32, how many keys must reach the threshold; one entry per selection, as of
        all that follow.
      low: int32; at least k keys must reach it.
      high: int32; fewer than k keys reach it, or it exceeds every key.
      reached: how many keys reach ``low``.

    Returns:
      The threshold, or a lower one that exactly k keys reach, and how many do.
    """

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


def _counts(
    keys: jax.Array, thresholds: list[jax.Array], axes: tuple[int, ...] | None
) -> list[jax.Array]:
    """How many keys reach each threshold, from one read of the keys."""
    axes = tuple(range(keys.ndim)) if axes is None else axes
    hits = [(keys >= threshold).astype(jnp.int32) for threshold in thresholds]
    return [jnp.expand_dims(count, axes) for count in sums(hits, axes)]


def _normalize_axes(axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    axes = (axis,) if isinstance(axis, int) else axis
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"axis {axis} exceeds the {ndim} dimensions of scores")
    normalized = tuple(sorted(a % ndim for a in axes))
    if len(set(normalized)) != len(normalized):
        raise ValueError(f"axis {axis} names a dimension twice")
    return normalized

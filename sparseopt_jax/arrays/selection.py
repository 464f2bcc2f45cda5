"""Exact top-k selection without sorting, on which every topology is built.

A sort costs O(n log n) and gathers a sharded array onto every device. Here the scores
are mapped to integers that keep their order, and the k-th largest is found by
bisection over those integers. Every pass counts, in one fused reduction, how many
scores reach each of three thresholds, which settles two bits. Sixteen passes settle any
float32; usually fewer do, because a threshold that leaves exactly k is enough. Ties at
the threshold are cut by the same search over the linear index.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sparseopt_jax.arrays.bisection import (
    HIGHEST_KEY,
    INELIGIBLE_KEY,
    order_keys,
    search,
    select_keys,
    tie_keys,
)
from sparseopt_jax.arrays.counting import sums
from sparseopt_jax.arrays.linear_index import linear_index
from sparseopt_jax.arrays.sharding_types import is_explicit, on_mesh, sharded


def top_k_mask(
    scores: jax.Array,
    k: jax.typing.ArrayLike,
    *,
    where: jax.Array | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> jax.Array:
    """Mark exactly the k largest scores.

    The lowest linear index wins ties, -0.0 equals 0.0, and NaN ranks below every
    number. The array is only reduced, never sorted, flattened or gathered, so a sharded
    array stays in place and only scalars are communicated.

    Args:
      scores: real array of any shape; compared as float32.
      k: how many to mark, static or traced. With ``axis``, a scalar or an array that
        broadcasts against the shape in which the axes of ``axis`` have size 1.
      where: optional bool array of the shape of ``scores``; False entries rank below
        all others, NaN included, whatever their scores, and are marked only if k
        exceeds the number of the others.
      axis: the axes to select along; the others are a batch of separate selections.
        None selects in the whole array.

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
            f"one selection must span fewer than 2**31 scores, got {size} "
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
    """Return a mask with exactly k True entries at uniformly random places.

    Args:
      key: typed PRNG key.
      shape: shape of the mask.
      k: how many to mark, as in ``top_k_mask``.
      axis: as in ``top_k_mask``.
      sharding: the sharding of the mask; every device then draws its own part. The
        places do not depend on it.

    Returns:
      Bool array of ``shape``.

    Examples:
      >>> import jax
      >>> int(random_mask(jax.random.key(0), (4, 8), 5).sum())
      5
    """
    key = on_mesh(key, sharding)
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
    """Draw float32 numbers in [0, 1), each device its own part, alike on any mesh."""
    explicit = sharding if sharding and is_explicit(sharding) else None
    drawn = jax.random.uniform(key, shape, jnp.float32, out_sharding=explicit)
    return sharded(drawn, sharding)


@functools.partial(jax.jit, static_argnames="axes")
def _top_k_mask(
    scores: jax.Array,
    k: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
) -> jax.Array:
    keys = order_keys(scores, where)
    # One entry per selection, with the sharding type of its count; nothing is summed.
    like = jnp.zeros_like(jnp.sum(keys, axes, keepdims=True, dtype=jnp.int32))
    return select_keys(
        keys,
        k + like,
        sizes=like + math.prod(keys.shape[a] for a in axes),
        index=linear_index(keys.shape, axes, jnp.int32),
        counts_of=functools.partial(_counts, axes=axes),
    )


def top_k_masks(
    scores: Sequence[jax.Array],
    k: jax.typing.ArrayLike,
    *,
    where: Sequence[jax.Array],
    sizes: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Mark exactly the k largest scores of several arrays together.

    Like ``top_k_mask`` for one array; ties are cut by the order of the arrays, then by
    the index. No array is moved: only counts are added over all arrays.

    Args:
      scores: real arrays of any shapes; compared as float32.
      k: how many to mark in total: int32 scalar, static or traced.
      where: a bool array for each; False entries rank below all others.
      sizes: how much an entry of each array counts; 1 by default. The last entry that
        is marked may exceed k.

    Returns:
      Bool arrays of the same shapes, with exactly k True in total.

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
            "a selection over all layers must span fewer than 2**31 scores, got "
            f"{total}"
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
    total = sum(n * weight for n, weight in zip(entries, sizes, strict=True))
    keys = [order_keys(x, eligible) for x, eligible in zip(scores, where, strict=True)]

    def counts_of(keys, thresholds):
        counts = [
            [weight * jnp.reshape(n, ()) for n in _counts(x, thresholds, axes=None)]
            for x, weight in zip(keys, sizes, strict=True)
        ]
        return [functools.reduce(jnp.add, each) for each in zip(*counts, strict=True)]

    low, high = jnp.int32(INELIGIBLE_KEY), jnp.int32(HIGHEST_KEY)
    threshold, reached = search(
        functools.partial(counts_of, keys), k, low, high, jnp.int32(total)
    )
    offset = 0
    for i, x in enumerate(keys):
        index = offset + linear_index(x.shape, tuple(range(x.ndim)), jnp.int32)
        keys[i] = tie_keys(x, threshold, index, size)
        offset += entries[i]
    cut, _ = search(
        functools.partial(counts_of, keys), k, jnp.int32(0), jnp.int32(size), reached
    )
    return [x >= cut for x in keys]


def ranked_mask(
    scores: jax.Array,
    k: jax.typing.ArrayLike,
    *,
    where: jax.Array | None = None,
    axis: int,
) -> jax.Array:
    """Return the result of ``top_k_mask`` along one short axis, in a single pass.

    Each score is ranked against all others of its group. On CPU this takes a thirtieth
    of the time of bisection for groups of four, and a quarter for groups of thirty-two.
    The axis must be whole on every device.

    Args:
      scores: as in ``top_k_mask``.
      k: as in ``top_k_mask``.
      where: as in ``top_k_mask``.
      axis: the axis to select along.

    Returns:
      The same as ``top_k_mask``.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(ranked_mask(jnp.array([[1.0, 1.0], [0.0, 2.0]]), 1, axis=1))
      [[ True False]
       [False  True]]
    """
    keys = order_keys(scores, where)
    index = jax.lax.broadcasted_iota(jnp.int32, keys.shape, axis)
    ranks = jnp.zeros_like(keys)
    for i in range(keys.shape[axis]):
        other = jax.lax.slice_in_dim(keys, i, i + 1, axis=axis)
        before = (other > keys) | ((other == keys) & (i < index))
        ranks += before.astype(jnp.int32)
    return ranks < k


def _counts(
    keys: jax.Array, thresholds: list[jax.Array], axes: tuple[int, ...] | None
) -> list[jax.Array]:
    """Return how many keys reach each threshold, from one read of the keys."""
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

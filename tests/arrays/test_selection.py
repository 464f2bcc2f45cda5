"""Exact top-k selection, against a stable sort."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparseopt_jax.arrays.bisection import search
from sparseopt_jax.arrays.selection import (
    random_mask,
    ranked_mask,
    top_k_mask,
    top_k_masks,
)
from tests.helpers.examples import examples

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1.0, -1.0]
SHAPES = [(), (1,), (7,), (3, 4), (2, 3, 4), (5, 1, 2)]


def by_sorting(scores, k, where=None):
    """Select the k largest by a sort: eligible numbers, then NaN, then ineligible."""
    flat = np.asarray(scores, np.float32).ravel()
    eligible = np.ones(flat.size, bool) if where is None else np.ravel(where)

    def rank(i):
        if not eligible[i]:
            return 2, 0.0, i
        return (1, 0.0, i) if np.isnan(flat[i]) else (0, -float(flat[i]), i)

    order = sorted(range(flat.size), key=rank)
    mask = np.zeros(flat.size, bool)
    mask[order[:k]] = True
    return mask.reshape(np.shape(scores))


@examples(75)
@given(st.data())
def test_equals_a_stable_sort(data):
    shape = data.draw(st.sampled_from(SHAPES))
    size = int(np.prod(shape))
    values = st.sampled_from([*SPECIAL, 0.5, 2.0, -2.0, 1.5])
    scores = np.array(
        data.draw(st.lists(values, min_size=size, max_size=size)), np.float32
    ).reshape(shape)
    k = data.draw(st.integers(0, size))
    np.testing.assert_array_equal(top_k_mask(scores, k), by_sorting(scores, k))
    where = np.array(
        data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool
    ).reshape(shape)
    np.testing.assert_array_equal(
        top_k_mask(scores, jnp.int32(k), where=jnp.asarray(where)),
        by_sorting(scores, k, where),
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32])
def test_random_scores_of_every_type(dtype):
    scores = (1000 * jax.random.normal(jax.random.key(0), (40, 50))).astype(dtype)
    for k in (0, 1, 3, 1000, 1999, 2000):
        np.testing.assert_array_equal(top_k_mask(scores, k), by_sorting(scores, k))


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (1, 2), (0, 1, 2)])
def test_selects_along_axes(axis):
    scores = jnp.round(jax.random.normal(jax.random.key(1), (4, 5, 6)), 1)
    axes = {a % 3 for a in (axis if isinstance(axis, tuple) else (axis,))}
    mask = np.asarray(top_k_mask(scores, 3, axis=axis))
    batch = [a for a in range(3) if a not in axes]
    for place in np.ndindex(*(scores.shape[a] for a in batch)):
        index = [slice(None)] * 3
        for a, i in zip(batch, place, strict=True):
            index[a] = i
        np.testing.assert_array_equal(
            mask[tuple(index)], by_sorting(scores[tuple(index)], 3)
        )


def test_k_per_row():
    scores = jax.random.normal(jax.random.key(2), (6, 30))
    k = jnp.array([0, 1, 7, 15, 29, 30])[:, None]
    mask = jax.jit(lambda s, k: top_k_mask(s, k, axis=1))(scores, k)
    np.testing.assert_array_equal(mask.sum(1), k[:, 0])
    for row in range(6):
        np.testing.assert_array_equal(
            mask[row], by_sorting(scores[row], int(k[row, 0]))
        )


def test_vmap_is_a_batch():
    scores = jax.random.normal(jax.random.key(3), (5, 64))
    mask = jax.vmap(lambda s: top_k_mask(s, 10))(scores)
    np.testing.assert_array_equal(mask, top_k_mask(scores, 10, axis=1))


def test_random_mask_is_uniform_and_exact():
    keys = jax.random.split(jax.random.key(4), 2000)
    masks = jax.vmap(lambda key: random_mask(key, (4, 5), 6))(keys)
    np.testing.assert_array_equal(masks.sum((1, 2)), 6)
    # 2000 draws of probability 0.3: five standard deviations are 0.051.
    np.testing.assert_allclose(masks.mean(0), 0.3, atol=0.051)


def selections(scores, key):
    where = [scores > 0, scores < 1]
    return (
        top_k_mask(scores, 7),
        top_k_mask(scores, 2, where=where[0], axis=1),
        ranked_mask(scores, 2, axis=1),
        random_mask(key, scores.shape, 7),
        *top_k_masks([scores, -scores], 9, where=where, sizes=[1, 2]),
    )


def test_x64_selects_the_same():
    scores = jax.random.normal(jax.random.key(1), (6, 5))
    expected = selections(scores, jax.random.key(2))
    with jax.enable_x64(True):
        # Refuses wider integers when it is traced, with which it would never end.
        with pytest.raises(TypeError, match="high must be int32, got int64"):
            search(lambda t: t, jnp.int32(1), jnp.int32(0), jnp.int64(9), jnp.int32(9))
        for dtype in (jnp.float32, jnp.float64):
            wide = selections(scores.astype(dtype), jax.random.key(2))
            jax.tree.map(np.testing.assert_array_equal, wide, expected)


def test_bad_input_is_named():
    scores = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"k must be in \[0, 6\], got 7"):
        top_k_mask(scores, 7)
    with pytest.raises(ValueError, match="got -1"):
        top_k_mask(scores, -1)
    with pytest.raises(ValueError, match="axis 2 exceeds"):
        top_k_mask(scores, 1, axis=2)
    with pytest.raises(ValueError, match="twice"):
        top_k_mask(scores, 1, axis=(0, -2))
    with pytest.raises(ValueError, match="shape of scores"):
        top_k_mask(scores, 1, where=jnp.ones(3, bool))
    with pytest.raises(TypeError, match="complex64"):
        top_k_mask(scores.astype(jnp.complex64), 1)
    with pytest.raises(ValueError, match=r"2\*\*31"):
        jax.eval_shape(
            lambda s: top_k_mask(s, 1), jax.ShapeDtypeStruct((2**16, 2**16), "float32")
        )


@examples(100)
@given(st.data())
def test_ranking_is_bisecting(data):
    shape, axis = data.draw(st.sampled_from([((4, 3), 0), ((2, 5), 1), ((32, 2), 0)]))
    elements = st.sampled_from([*SPECIAL, 2.0])
    scores = jnp.asarray(data.draw(hnp.arrays(np.float32, shape, elements=elements)))
    where = jnp.asarray(data.draw(hnp.arrays(np.bool_, shape)))
    groups = tuple(1 if a == axis else n for a, n in enumerate(shape))
    numbers = hnp.arrays(np.int32, groups, elements=st.integers(0, shape[axis]))
    k = jnp.asarray(data.draw(numbers))
    for candidates in (None, where):
        bisected = top_k_mask(scores, k, where=candidates, axis=axis)
        np.testing.assert_array_equal(ranked(scores, k, candidates, axis), bisected)


@functools.partial(jax.jit, static_argnames="axis")
def ranked(scores, k, where, axis):
    return ranked_mask(scores, k, where=where, axis=axis)


EXTREME = st.sampled_from([*SPECIAL, 0.5, 2.0])


@examples(100)
@given(st.data())
def test_several_arrays_are_sorted_as_one(data):
    shapes = [(3,), (2, 2, 1), (), (4, 3)]
    scores = [data.draw(hnp.arrays(np.float32, s, elements=EXTREME)) for s in shapes]
    where = [data.draw(hnp.arrays(np.bool_, s)) for s in shapes]
    joined = np.concatenate([x.ravel() for x in scores])
    eligible = np.concatenate([x.ravel() for x in where])
    k = data.draw(st.integers(0, joined.size))
    masks = together(
        [*map(jnp.asarray, scores)], jnp.int32(k), [*map(jnp.asarray, where)]
    )
    assert [mask.shape for mask in masks] == shapes
    found = np.concatenate([np.ravel(mask) for mask in masks])
    np.testing.assert_array_equal(found, by_sorting(joined, k, eligible))


@jax.jit
def together(scores, k, where):
    return top_k_masks(scores, k, where=where)


def test_several_arrays_are_compared_as_float32():
    scores = [jnp.array([1, 3], jnp.bfloat16), jnp.array([2, 4], jnp.int32)]
    where = [jnp.ones(2, bool)] * 2
    masks = top_k_masks(scores, 2, where=where)
    np.testing.assert_array_equal(np.stack(masks), [[False, True], [False, True]])
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 scores, got 4294967296"):
        large = [jax.ShapeDtypeStruct((2**15, 2**16), "float32")] * 2
        jax.eval_shape(lambda s: top_k_masks(s, 1, where=s), large)

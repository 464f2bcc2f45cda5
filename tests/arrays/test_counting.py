"""Counts of True entries, by every implementation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.arrays import counting
from sparseopt_jax.arrays.counting import count_true

AXES = [axes for n in range(4) for axes in itertools.combinations(range(3), n)]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_counts_along_any_axes(axes):
    mask = np.random.default_rng(0).random((5, 4, 7)) < 0.5
    compiled = jax.jit(count_true, static_argnames=("axes", "keepdims"))
    for keepdims, count in itertools.product((False, True), (count_true, compiled)):
        found = count(mask, axes=axes, keepdims=keepdims)
        assert found.dtype == jnp.int32
        expected = mask.sum(axes, keepdims=keepdims)
        np.testing.assert_array_equal(found, expected)


def test_counts_all_by_default():
    assert int(count_true(jnp.array([[True, False], [True, True]]))) == 3


def test_beyond_what_float32_counts(monkeypatch):
    monkeypatch.setattr(counting, "_EXACT", 3)
    mask = jnp.ones((5, 2), bool)
    np.testing.assert_array_equal(count_true(mask, (0,)), [5, 5])


def test_counts_in_one_pass_without_an_array_of_numbers():
    """The purpose of the module: a compiler that needs no help makes it superfluous."""
    if not counting.on_one_cpu():
        pytest.skip("on one CPU device only")
    mask = jax.ShapeDtypeStruct((256, 1024), jnp.bool_)
    for axes in ((0, 1), (1,)):
        compiled = jax.jit(count_true, static_argnums=1).lower(mask, axes).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < mask.size

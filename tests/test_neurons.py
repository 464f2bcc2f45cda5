"""Axes of kernels, fan-ins and factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.neurons import (
    Axes,
    NeuronDims,
    correction_factor,
    fan_in,
    resolve_axes,
)


def axes_of(shape, dims=None, path="a/kernel"):
    return resolve_axes(dims, path, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_the_convention_is_flax():
    assert axes_of((4, 5)) == Axes((), (0,), (1,))
    assert axes_of((3, 3, 4, 5)) == Axes((), (0, 1, 2), (3,))
    assert axes_of((5,)) is None
    assert axes_of(()) is None


def test_one_description_for_all_kernels_spares_vectors():
    assert axes_of((6, 4, 5), NeuronDims(1, 2)) == Axes((0,), (1,), (2,))
    assert axes_of((5,), NeuronDims(0, 1)) is None


def test_a_mapping_or_function_decides_by_path():
    dims = {"b/*": NeuronDims(1, 0), "a/*": NeuronDims(-2, -1)}
    assert axes_of((6, 4, 5), dims) == Axes((0,), (1,), (2,))
    assert axes_of((4, 5), dims, "c/kernel") == Axes((), (0,), (1,))
    assert axes_of((4, 5), lambda path, leaf: NeuronDims(1, 0)) == Axes((), (1,), (0,))
    with pytest.raises(TypeError, match="must give NeuronDims for 'a/kernel', got 1"):
        axes_of((4, 5), lambda path, leaf: 1)


def test_the_factor_does_not_round_where_fan_ins_are_equal():
    # 4097 * 12289 active weights are no float32: a plain mean would be off by rounding.
    counts = jnp.full((1, 12289), 4097, jnp.int32)
    factor = correction_factor(counts, Axes((), (0,), (1,)))
    np.testing.assert_array_equal(factor, 1.0)


def test_fan_in_counts_per_neuron_and_layer():
    mask = jnp.arange(24).reshape(2, 4, 3) % 5 == 0
    counts = fan_in(mask, Axes((0,), (1,), (2,)))
    np.testing.assert_array_equal(counts, np.asarray(mask).sum(1, keepdims=True))

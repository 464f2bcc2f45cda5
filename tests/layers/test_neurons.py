"""Axes of kernels, fan-ins and factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.layers.neuron_dims import Axes, InferredDims, NeuronDims
from sparseopt_jax.layers.neurons import (
    correction_factor,
    counted_otherwise,
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
    with pytest.raises(TypeError, match="specify NeuronDims for 'a/kernel', got 1"):
        axes_of((4, 5), lambda path, leaf: 1)


def test_the_factor_does_not_round_where_fan_ins_are_equal():
    # 4097 * 12289 active weights are not a float32: a plain mean would be off by
    # rounding.
    counts = jnp.full((1, 12289), 4097, jnp.int32)
    factor = correction_factor(counts, Axes((), (0,), (1,)))
    np.testing.assert_array_equal(factor, 1.0)


def test_fan_in_counts_per_neuron_and_layer():
    mask = jnp.arange(24).reshape(2, 4, 3) % 5 == 0
    counts = fan_in(mask, Axes((0,), (1,), (2,)))
    np.testing.assert_array_equal(counts, np.asarray(mask).sum(1, keepdims=True))


QUERY, OUT = Axes((), (0,), (1, 2)), Axes((), (0, 1), (2,))


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("attn/query/kernel", (64, 4, 16), QUERY),
        ("attn/key/kernel", (6, 2, 3), QUERY),
        ("self_attention/v_proj/kernel", (64, 2, 16), QUERY),
        ("attn/to_q/kernel", (64, 4, 16), QUERY),
        ("attn/query_0/kernel", (64, 4, 16), QUERY),
        ("theta/attn/query/kernel", (64, 4, 16), QUERY),
        ("attn/qkv/kernel", (64, 3, 4, 16), Axes((), (0,), (1, 2, 3))),
        ("attn/qkv_proj/kernel", (64, 4, 48), QUERY),
        ("attn/kv/kernel", (64, 2, 4, 16), Axes((), (0,), (1, 2, 3))),
        ("attn/out/kernel", (4, 16, 64), OUT),
        ("DenseGeneral_0/kernel", (64, 4, 16), QUERY),
        ("DenseGeneral_1/kernel", (64, 3, 4, 16), Axes((), (0,), (1, 2, 3))),
        ("DenseGeneral_2/kernel", (4, 16, 64), OUT),
        ("DenseGeneral_3/kernel", (48, 4, 16), OUT),
        ("attn/attn_out_proj/kernel", (4, 16, 64), OUT),
        # Convolutions of these names, a stack of them, and a look-alike.
        ("attn/key/kernel", (3, 3, 8, 16), Axes((), (0, 1, 2), (3,))),
        ("attn/qkv/kernel", (3, 3, 8, 16), Axes((), (0, 1, 2), (3,))),
        ("attn/qkv/kernel", (1, 1, 8, 16), Axes((), (0, 1, 2), (3,))),
        ("attn/query/kernel", (3, 8, 16), OUT),
        ("attn/query/kernel", (12, 64, 4, 16), Axes((), (0, 1, 2), (3,))),
        ("attn/query/kernel", (64, 64), Axes((), (0,), (1,))),
        ("attn/query/w", (64, 4, 16), OUT),
        ("query/mlp/kernel", (64, 4, 16), OUT),
        ("kernel", (64, 4, 16), OUT),
    ],
)
def test_the_projections_of_an_attention_are_known_by_name(path, shape, axes):
    assert axes_of(shape, path=path) == axes


def test_a_glob_passes_over_what_it_does_not_fit_unless_that_is_sparse():
    dims = {"stack/*": NeuronDims(1, 2)}
    bias = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    assert resolve_axes(dims, "stack/bias", bias) == Axes((), (0,), (1,))
    with pytest.raises(ValueError, match="exceeds the rank of 'stack/gate'"):
        resolve_axes(dims, "stack/gate", bias)
    assert resolve_axes(dims, "stack/gate", bias, is_sparse=False).output == (1,)
    # A leaf selected by its path must exist in that form.
    with pytest.raises(ValueError, match="exceeds the rank of 'stack/bias'"):
        resolve_axes({"stack/bias": NeuronDims(1, 2)}, "stack/bias", bias)


def test_inferred_dims_are_a_value_with_exact_paths():
    kernels = {"blocks[0]/w": Axes((0,), (2,), (1,)), "head/w": Axes((), (1,), (0,))}
    dims = InferredDims(kernels, {"tail/w": "passes through sort"})
    assert resolve_axes(dims, "blocks[0]/w", jnp.ones((2, 3, 4))) == Axes(
        (0,), (2,), (1,)
    )
    assert resolve_axes(dims, "params/head/w", jnp.ones((3, 4))).output == (0,)
    assert resolve_axes(dims, "tail/w", jnp.ones((3, 4))).output == (1,)
    assert dims["head/w"] == NeuronDims(1, 0) and list(dims) == list(kernels)
    assert dims == InferredDims(dict(reversed(kernels.items())), {})
    assert hash(dims) == hash(InferredDims(kernels, {}))
    assert dims != InferredDims({"head/w": Axes((), (0,), (1,))}, {}) and dims != {}
    assert repr(dims) == (
        "InferredDims({'blocks[0]/w': (2,) -> (1,) in stacks along (0,), "
        "'head/w': (1,) -> (0,)}, undecided={'tail/w': 'passes through sort'})"
    )
    with pytest.raises(ValueError, match="inferred for 'head/w' with 2 axes, but it"):
        resolve_axes(dims, "head/w", jnp.ones((3, 4, 5)))


@pytest.mark.parametrize(
    ("dims", "fits"),
    [(NeuronDims(1, 2), True), (NeuronDims(1, (0, 2)), True), (None, False)],
)
def test_fan_ins_in_a_state_tell_what_they_were_counted_over(dims, fits):
    mask = jnp.ones((3, 4, 5), bool)
    counts = fan_in(mask, axes_of(mask.shape, NeuronDims(1, 2)))
    said = counted_otherwise("a", axes_of(mask.shape, dims), mask.shape, counts)
    assert (said == "") is fits
    assert not counted_otherwise("a", None, mask.shape, counts)
    # An axis of size 1 carries no information.
    ones = jnp.ones((3, 1, 5), bool)
    counts = fan_in(ones, axes_of(ones.shape))
    assert not counted_otherwise("a", axes_of(ones.shape), ones.shape, counts)

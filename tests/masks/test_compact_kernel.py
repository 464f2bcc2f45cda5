"""The node that holds a kernel's active blocks: exact, differentiable, movable."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.layers.neurons import one_neuron
from sparseopt_jax.masks.compact_kernel import (
    CompactKernel,
    active_arrays,
    dense_shapes,
    is_compact,
    read_places,
    write_places,
)
from sparseopt_jax.masks.layouts import Layout

SHAPE, BLOCK = (64, 96), (16, 32)


def _kernel(active=5, seed=0, dtype=jnp.float32):
    leaf = jax.ShapeDtypeStruct(SHAPE, dtype)
    units = so.Block(BLOCK).units("kernel", SHAPE, one_neuron(leaf))
    layout = Layout(units, active)
    key = jax.random.key(seed)
    index = jnp.sort(jax.random.permutation(key, units.per_cell)[:active])
    values = jax.random.normal(key, layout.shape, dtype)
    return CompactKernel.of(values, index.astype(jnp.int32), layout)


def test_dense_is_what_a_loop_puts_there():
    kernel = _kernel()
    expected = np.zeros(SHAPE, np.float32)
    columns = SHAPE[1] // BLOCK[1]
    for place, block in zip(kernel.index, np.asarray(kernel.blocks), strict=True):
        row, column = divmod(int(place), columns)
        rows = slice(row * BLOCK[0], (row + 1) * BLOCK[0])
        expected[rows, column * BLOCK[1] : (column + 1) * BLOCK[1]] = block
    np.testing.assert_array_equal(kernel.dense(), expected)
    assert kernel.shape == SHAPE and kernel.blocks.shape == (5, *BLOCK)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_places_survive_a_cast(dtype):
    index = jnp.asarray([0, 1, 255, 256, 65_535, 65_536, 2**24 - 1], jnp.int32)
    np.testing.assert_array_equal(read_places(write_places(index).astype(dtype)), index)


def test_the_gradient_of_places_is_zero_and_of_blocks_the_dense_ones():
    kernel, x = _kernel(), jax.random.normal(jax.random.key(3), (4, SHAPE[0]))

    def loss(weights):
        dense = weights.dense() if is_compact(weights) else weights
        return jnp.sum(jnp.sin(x @ dense))

    grads = jax.grad(loss)(kernel)
    assert not np.any(grads.places)
    dense = jax.grad(loss)(kernel.dense())
    expected = kernel.layout.take(dense, kernel.index)
    np.testing.assert_array_equal(grads.active, expected)


def test_an_update_moves_blocks():
    old, new = _kernel(seed=0), _kernel(seed=1)
    update: Any = jax.tree.map(lambda a, b: b - a, old, new)
    moved: Any = optax.apply_updates(old, update)  # pyright: ignore
    np.testing.assert_array_equal(moved.index, new.index)


def test_trees_are_seen_without_places():
    tree = {"a": _kernel(), "b": jnp.ones(3)}
    assert active_arrays(tree)["a"] is tree["a"].active
    assert dense_shapes(tree)["a"] == jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    assert dense_shapes(tree)["b"] is tree["b"]


def test_stacked_kernels_are_dense_one_by_one():
    kernels = [_kernel(seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *kernels)
    for dense, kernel in zip(stacked.dense(), kernels, strict=True):
        np.testing.assert_array_equal(dense, kernel.dense())

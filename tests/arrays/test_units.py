"""Units, cells and layers of leaves under every structure, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from sparseopt_jax.layers.neurons import resolve_axes

DENSE = (4, 2)
CONV = (3, 3, 4, 2)
STACK = (3, 4, 2)
OF_STACK = so.NeuronDims(1, 2)


def units_of(structure, shape, dims=None):
    axes = resolve_axes(dims, "kernel", jax.ShapeDtypeStruct(shape, jnp.float32))
    return structure.units("kernel", shape, axes)


def array(*rows):
    return jnp.array(rows, jnp.float32)


@pytest.mark.parametrize(
    ("structure", "shape", "dims", "size", "per_cell", "cells"),
    [
        (so.Unstructured(), DENSE, None, 1, 8, 1),
        (so.Unstructured(), CONV, None, 1, 72, 1),
        (so.Unstructured(), STACK, OF_STACK, 1, 8, 1),
        (so.ConstantFanIn(), DENSE, None, 1, 4, 2),
        (so.ConstantFanIn(), CONV, None, 1, 36, 2),
        (so.ConstantFanIn(), STACK, OF_STACK, 1, 4, 2),
        (so.NM(1, 2), DENSE, None, 1, 2, 4),
        (so.NM(1, 2), CONV, None, 1, 2, 36),
        (so.NM(2, 3, axis=0), CONV, None, 1, 3, 24),
        (so.NM(1, 2, axis=-1), DENSE, None, 1, 2, 4),
        (so.NM(1, 4), STACK, OF_STACK, 1, 4, 2),
        (so.Block(2), DENSE, None, 2, 4, 1),
        (so.Block((2, 2)), DENSE, None, 4, 2, 1),
        (so.Block((2, 2)), CONV, None, 4, 18, 1),
        (so.Block((3, 1, 4, 1)), CONV, None, 12, 6, 1),
        (so.Block((2, 1)), STACK, OF_STACK, 2, 4, 1),
        (so.Channel(), DENSE, None, 4, 2, 1),
        (so.Channel(-2), DENSE, None, 2, 4, 1),
        (so.Channel(), CONV, None, 36, 2, 1),
        (so.Channel(2), CONV, None, 18, 4, 1),
        (so.Channel(), STACK, OF_STACK, 4, 2, 1),
        (so.Channel(1), STACK, OF_STACK, 2, 4, 1),
    ],
    ids=str,
)
def test_how_much_is_switched_as_one(structure, shape, dims, size, per_cell, cells):
    units = units_of(structure, shape, dims)
    assert (units.size, units.per_cell, units.cells) == (size, per_cell, cells)
    assert units.per_layer == per_cell * cells
    assert units.is_layer_wide == (cells == 1)
    # Every weight belongs to one unit, and returns to its place.
    leaf = jnp.arange(np.prod(shape)).reshape(shape)
    assert int(units.sum(jnp.ones(shape, jnp.int32)).sum()) == leaf.size
    singles = jax.eval_shape(units.sum, leaf)
    spread = jax.eval_shape(units.spread, singles, leaf)
    assert spread.shape == shape
    if size == 1:
        np.testing.assert_array_equal(units.spread(units.sum(leaf), leaf), leaf)


def test_units_of_a_block_by_hand():
    units = units_of(so.Block((2, 2)), (4, 4))
    leaf = jnp.arange(16.0).reshape(4, 4)
    # Rows 0 1 4 5, 2 3 6 7, 8 9 12 13 and 10 11 14 15 are the blocks.
    np.testing.assert_array_equal(np.squeeze(units.sum(leaf)), [[10, 18], [42, 50]])
    np.testing.assert_array_equal(
        np.squeeze(units.any(leaf == 6)), [[False, True], [False, False]]
    )
    np.testing.assert_array_equal(
        np.squeeze(units.all((leaf == 6) | (leaf > 9))), [[False, False], [False, True]]
    )
    chosen = units.choose(leaf, 2)
    np.testing.assert_array_equal(chosen, np.arange(16).reshape(4, 4) >= 8)


def test_units_of_a_channel_by_hand():
    leaf = array([1, 5], [1, 0], [2, 0], [2, 0])
    outputs = units_of(so.Channel(-1), DENSE)
    np.testing.assert_array_equal(outputs.sum(leaf), [[6, 5]])
    np.testing.assert_array_equal(outputs.any(leaf == 5), [[False, True]])
    np.testing.assert_array_equal(outputs.all(leaf > 0), [[True, False]])
    np.testing.assert_array_equal(outputs.choose(leaf, 1), [[True, False]] * 4)
    inputs = units_of(so.Channel(-2), DENSE)
    np.testing.assert_array_equal(inputs.sum(leaf), [[6], [1], [2], [2]])
    # Inputs 2 and 3 tie: the first is taken.
    np.testing.assert_array_equal(
        inputs.choose(leaf, 2), [[True] * 2, [False] * 2, [True] * 2, [False] * 2]
    )


def test_groups_of_m_choose_for_themselves():
    units = units_of(so.NM(1, 2), DENSE)
    leaf = array([1, 9], [2, 8], [4, 0], [3, 0])
    np.testing.assert_array_equal(
        units.choose(leaf, 1), [[False, True], [True, False], [True, True], [False] * 2]
    )
    # In a whole layer the two largest are both in one group.
    np.testing.assert_array_equal(
        units.choose(leaf, 2, within="layer"),
        [[False, True], [False, True], [False] * 2, [False] * 2],
    )
    large = units.any(leaf > 2)
    np.testing.assert_array_equal(np.ravel(units.count(large)), [0, 2, 2, 0])
    np.testing.assert_array_equal(np.ravel(units.count(large, "layer")), [4])


def test_groups_of_m_lie_along_input_channels():
    units = units_of(so.NM(2, 4), CONV)
    leaf = jax.random.normal(jax.random.key(0), CONV)
    order = np.argsort(np.argsort(leaf, axis=2), axis=2)
    np.testing.assert_array_equal(units.choose(leaf, 2), order >= 2)


def test_every_neuron_chooses_for_itself():
    units = units_of(so.ConstantFanIn(), DENSE)
    leaf = array([1, 9], [2, 8], [4, 7], [3, 6])
    expected = [[False, True], [False, True], [True, False], [True, False]]
    np.testing.assert_array_equal(units.choose(leaf, 2), expected)
    # As many as each has room for, in an array.
    mask = units.select(leaf, jnp.array([[1, 3]]))
    np.testing.assert_array_equal(mask.sum(0), [1, 3])


@pytest.mark.parametrize(
    ("structure", "k", "per_copy"),
    [
        (so.Unstructured(), 3, 3),
        (so.ConstantFanIn(), 3, 6),
        (so.NM(1, 2), 1, 4),
        (so.Block((2, 2)), 1, 4),
        (so.Channel(), 1, 4),
        (so.Channel(1), 3, 6),
    ],
    ids=str,
)
def test_every_layer_of_a_stack_chooses_for_itself(structure, k, per_copy):
    units = units_of(structure, STACK, OF_STACK)
    leaf = jnp.abs(jax.random.normal(jax.random.key(1), STACK))
    # The first layer's scores exceed all others.
    leaf = leaf.at[0].add(100.0)
    mask = units.choose(leaf, k)
    np.testing.assert_array_equal(mask.sum((1, 2)), [per_copy] * 3)
    alone = units_of(structure if structure != so.Channel(1) else so.Channel(0), DENSE)
    for copy in range(3):
        np.testing.assert_array_equal(mask[copy], alone.choose(leaf[copy], k))


def test_what_is_not_eligible_is_chosen_last():
    units = units_of(so.NM(2, 4), DENSE)
    leaf = array([9, 1], [8, 2], [7, 3], [6, 4])
    where = leaf < 8
    mask = units.select(leaf, 2, where=where.reshape(units.split))
    expected = [[False, False], [False, False], [True, True], [True, True]]
    np.testing.assert_array_equal(units.spread(mask, leaf), expected)

"""Active weights stored next to each other, compared with NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.masks.active_weights import ActiveWeights, at_active
from sparseopt_jax.masks.layouts import Layout
from tests.helpers.examples import examples

FLAX = {2: Axes((), (0,), (1,)), 4: Axes((), (0, 1, 2), (3,))}
STACKED = Axes((0,), (1,), (2,))

# Structure, shape, axes; active units of a cell; shapes of index and active weights.
LAYOUTS = {
    "matrix": (so.Unstructured(), (6, 8), FLAX[2], 12, (12,), (1, 12)),
    "conv": (so.Unstructured(), (3, 3, 2, 4), FLAX[4], 7, (7,), (1, 1, 1, 7)),
    "stack": (so.Unstructured(), (3, 4, 6), STACKED, 5, (3, 5), (3, 1, 5)),
    "fan_in": (so.ConstantFanIn(), (6, 8), FLAX[2], 2, (2, 8), (2, 8)),
    "fan_in_conv": (so.ConstantFanIn(), (3, 3, 2, 4), FLAX[4], 5, (5, 4), (1, 1, 5, 4)),
    "fan_in_stack": (so.ConstantFanIn(), (3, 4, 6), STACKED, 2, (3, 2, 6), (3, 2, 6)),
    "n_of_m": (so.NM(2, 4), (8, 6), FLAX[2], 2, (2, 2, 6), (4, 6)),
    "n_of_m_outputs": (so.NM(1, 3, axis=-1), (4, 6), FLAX[2], 1, (4, 2, 1), (4, 2)),
    "rows": (so.Block(4), (6, 8), FLAX[2], 5, (5,), (5, 4)),
    "rows_stack": (so.Block(3), (3, 4, 6), STACKED, 5, (3, 5), (3, 5, 3)),
    "tiles": (so.Block((2, 4)), (6, 8), FLAX[2], 3, (3,), (3, 8)),
    "channels": (so.Channel(), (6, 8), FLAX[2], 3, (3,), (3, 6)),
    "inputs": (so.Channel(-2), (6, 8), FLAX[2], 4, (4,), (4, 8)),
}


def layout_of(name):
    structure, shape, axes, per_cell, *_ = LAYOUTS[name]
    return Layout(structure.units("kernel", shape, axes), per_cell)


@functools.partial(jax.jit, static_argnums=0)
def best_of(layout, scores):
    chosen = layout.units.select(layout.units.sum(scores), layout.per_cell)
    return layout.units.spread(chosen, jnp.zeros(layout.units.shape))


def random_mask(layout, seed):
    scores = np.random.default_rng(seed).random(layout.units.shape)
    return best_of(layout, jnp.asarray(scores, jnp.float32))

    # Each is compiled once per layout, not operation by operation for every example.


to_index, to_mask, take, put, moved, spread = (
    jax.jit(getattr(Layout, name), static_argnums=0)
    for name in ("index", "mask", "take", "put", "moved", "spread")
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_shapes(name):
    *_, index_shape, shape = LAYOUTS[name]
    layout = layout_of(name)
    assert layout.index_shape == index_shape
    assert layout.shape == shape
    assert len(layout.shape) == len(layout.units.shape)


@pytest.mark.parametrize("name", LAYOUTS)
@examples(5)
@given(seed=st.integers(0, 2**31))
def test_the_way_there_and_back(name, seed):
    layout = layout_of(name)
    mask = random_mask(layout, seed)
    index = to_index(layout, mask)
    assert index.shape == layout.index_shape and index.dtype == jnp.int32
    np.testing.assert_array_equal(to_mask(layout, index), mask)

    # Every active weight once, those of one unit next to each other.
    numbers = jnp.arange(mask.size, dtype=jnp.int32).reshape(mask.shape)
    active = take(layout, numbers, index)
    assert active.shape == layout.shape
    np.testing.assert_array_equal(np.sort(np.ravel(active)), np.flatnonzero(mask))

    again = put(layout, jnp.full(mask.shape, -1), index, active)
    np.testing.assert_array_equal(again, np.where(mask, numbers, -1))


@pytest.mark.parametrize("name", LAYOUTS)
@examples(5)
@given(seeds=st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)))
def test_what_stays_keeps_its_slot(name, seeds):
    layout = layout_of(name)
    old, new = (random_mask(layout, seed) for seed in seeds)
    index = to_index(layout, old)
    new_index = moved(layout, index, new)
    np.testing.assert_array_equal(to_mask(layout, new_index), new)
    # A slot changes only if its unit was dropped.
    numbers = jnp.arange(old.size, dtype=jnp.int32).reshape(old.shape)
    stays = np.asarray(take(layout, new, index))
    before = np.asarray(take(layout, numbers, index))
    after = np.asarray(take(layout, numbers, new_index))
    np.testing.assert_array_equal(after[stays], before[stays])
    assert not set(np.ravel(after[~stays])) & set(np.ravel(before))
    slots = spread(layout, new_index == index)
    np.testing.assert_array_equal(slots, stays)


def test_slots_are_taken_in_ascending_order():
    units = so.Unstructured().units("kernel", (2, 4), FLAX[2])
    layout = Layout(units, 3)
    index = jnp.array([6, 1, 3], jnp.int32)
    mask = jnp.zeros(8, bool).at[jnp.array([0, 1, 7])].set(True).reshape(2, 4)
    np.testing.assert_array_equal(layout.moved(index, mask), [0, 1, 7])


def test_a_factor_for_each_neuron_reaches_its_active_weights():
    layout = layout_of("n_of_m")
    index = layout.index(random_mask(layout, 0))
    factor = jnp.arange(6.0)[None]
    whole = jnp.broadcast_to(factor, layout.units.shape)
    weights = ActiveWeights(index, layout)
    np.testing.assert_array_equal(at_active(weights, factor), layout.take(whole, index))
    assert at_active(jnp.ones(6, bool), factor) is factor


@pytest.mark.parametrize(
    ("name", "of_leaf", "crossed", "index", "active"),
    [
        ("matrix", P(), (0, 1), P(None), P(None, None)),
        ("fan_in", P(None, "x"), (0,), P(None, "x"), P(None, "x")),
        ("fan_in_conv", P(None, None, None, "x"), (0, 1, 2), P(None, "x"), None),
        ("fan_in_stack", P("y", None, "x"), (1,), P("y", None, "x"), None),
        ("stack", P("y"), (1, 2), P("y", None), P("y", None, None)),
        ("n_of_m", P("y", "x"), (), P("y", None, "x"), P("y", "x")),
        ("rows_stack", P("y"), (1, 2), P("y", None), P("y", None, None)),
    ],
)
def test_how_they_are_sharded(name, of_leaf, crossed, index, active):
    layout = layout_of(name)
    assert layout.crossed == crossed
    assert layout.spec(layout.index_shape, of_leaf) in (index, active)
    if active is not None:
        assert layout.spec(layout.shape, of_leaf) in (index, active)
    assert layout.spec((99,), of_leaf) is None


def test_tracing_needs_no_values():
    layout = layout_of("fan_in")
    mask = random_mask(layout, 0)
    index = jax.jit(layout.index)(mask)
    np.testing.assert_array_equal(jax.jit(layout.mask)(index), mask)

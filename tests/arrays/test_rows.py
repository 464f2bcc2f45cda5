"""Layers as rows: selections, counts and draws equal those of each leaf alone."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.arrays.row_layout import Rows, rows_kind
from sparseopt_jax.arrays.rows import (
    by_bins,
    can_be_drawn,
    map_bins,
    of_bin,
    units_of_bin,
)
from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.layers.structures import NM, Block, ConstantFanIn, Unstructured


def whole(shape, layer=None):
    """Return single weights, with a layer as one cell; other axes stack layers."""
    layer = tuple(range(len(shape))) if layer is None else layer
    return Units(shape, shape, (), (), layer, layer)


def neurons(shape, cell, layer=None):
    layer = tuple(range(len(shape))) if layer is None else layer
    return Units(shape, shape, (), (), cell, layer)


LAYERS = [
    whole((4, 6)),
    whole((30, 40)),
    whole((3, 3, 50), layer=(1, 2)),
    whole((2, 512), layer=(1,)),
    whole((7,)),
    whole((600, 3)),
]
NEURONS = [
    neurons((12, 6), (0,)),
    neurons((3, 4, 5), (0, 1)),
    neurons((2, 12, 7), (1,), layer=(1, 2)),
    neurons((7, 12), (1,)),
    neurons((12, 3, 2), (0,), layer=(0, 2)),
    neurons((5, 6), (0,)),
    # More than a row.
    neurons((600, 3), (0,)),
]
GROUPS = pytest.mark.parametrize("leaves", [LAYERS, NEURONS], ids=["layers", "neurons"])
WAYS = pytest.mark.parametrize("together", [False, True], ids=["bins", "together"])


def scores_of(leaves, seed=0, distinct=6):
    """Return few distinct numbers, for ties, with NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    special = [np.nan, np.inf, -np.inf, -0.0]

    def of(shape):
        values = rng.integers(0, distinct, shape).astype(np.float32)
        odd = rng.random(shape) < 0.1
        return jnp.asarray(np.where(odd, rng.choice(special, shape), values))

    return [of(units.split).astype(jnp.float32) for units in leaves]


def masks_of(leaves, seed=1):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.random(units.split) < 0.6) for units in leaves]


def numbers_in_rows(rows, numbers, number, units):
    """Return a number for each leaf, (rows, 1)."""
    table = by_bins(rows, jnp.asarray(numbers, jnp.int32))
    return of_bin(rows, table, number)[units.leaf][:, None]


def one_by_one(mask, scores, where, k, axes):
    """Select by a double loop: the k best of every selection, ties by the index."""
    keys = np.where(where, np.where(np.isnan(scores), -np.inf, scores), 0)
    ranks = np.where(where, np.where(np.isnan(scores), 1, 2), 0)
    chosen = np.zeros(scores.shape, bool)
    rest = [a for a in range(scores.ndim) if a not in axes]
    for place in np.ndindex(*[scores.shape[a] for a in rest]):
        at = [slice(None)] * scores.ndim
        for axis, i in zip(rest, place, strict=True):
            at[axis] = i
        at = tuple(at)
        order = np.lexsort((-keys[at].ravel(), -ranks[at].ravel()))
        # A stable order: ties by the lowest index.
        part = np.zeros(order.size, bool)
        part[order[:k]] = True
        chosen[at] = part.reshape(keys[at].shape)
    return np.array_equal(mask, chosen)


@WAYS
@GROUPS
@pytest.mark.parametrize("within", ["cell", "layer"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_the_best_of_every_cell_or_layer_are_selected(leaves, together, within, part):
    rows = Rows.of(leaves, together=together)
    scores, candidates = scores_of(leaves), masks_of(leaves)
    sizes = [u.per_cell if within == "cell" else u.per_layer for u in leaves]
    ks = [int(part * size) for size in sizes]

    def select(number, units, laid):
        k = numbers_in_rows(rows, ks, number, units)
        mask = units.select(laid[0], k, laid[1], within=within)
        return mask, units.layer_vector(units.count(mask, "layer")), None

    masks, counts, _ = jax.jit(lambda *fields: map_bins(rows, fields, select))(
        scores, candidates
    )
    for i, units in enumerate(leaves):
        alone = units.select(scores[i], ks[i], candidates[i], within=within)
        assert np.array_equal(masks[i], alone), i
        assert int(counts[i]) == int(alone.sum())
        axes = units.cell if within == "cell" else units.layer
        found = np.asarray(masks[i]), np.asarray(scores[i]), np.asarray(candidates[i])
        assert one_by_one(*found, ks[i], axes)


@WAYS
@GROUPS
def test_cells_and_layers_are_counted(leaves, together):
    rows = Rows.of(leaves, together=together)
    masks = masks_of(leaves)

    def spread(counts):
        return lambda number, units, laid: (
            jnp.broadcast_to(counts(units, laid[0]), laid[0].shape),
            jnp.zeros(units.sizes.shape, jnp.int32),
            None,
        )

    numbers = (
        lambda units, mask: units.count(mask),
        lambda units, mask: units.count(mask, "layer"),
        lambda units, mask: units.total(units.count(mask)),
        lambda units, mask: units.total(units.count(mask) > 3),
        lambda units, mask: units.largest(units.count(mask)),
        lambda units, mask: jnp.asarray(units.per_cell),
        lambda units, mask: jnp.asarray(units.per_layer),
    )

    @jax.jit
    def in_rows(masks):
        return [map_bins(rows, [masks], spread(counts))[0] for counts in numbers]

    @jax.jit
    def leaf_by_leaf(masks):
        # Other layers of a stack have their own numbers.
        return [
            [
                jnp.broadcast_to(counts(units, mask), mask.shape)
                for units, mask in zip(leaves, masks, strict=True)
            ]
            for counts in numbers
        ]

    jax.tree.map(np.testing.assert_array_equal, in_rows(masks), leaf_by_leaf(masks))


@WAYS
@GROUPS
def test_what_is_drawn_is_what_each_leaf_draws_alone(leaves, together):
    rows = Rows.of(leaves, together=together)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    assert can_be_drawn(keys[0])
    table = by_bins(rows, keys)

    def draw(number, units, laid):
        drawn = units.draw(of_bin(rows, table, number), laid[0].shape[1])
        return drawn, jnp.zeros(units.sizes.shape, jnp.int32), None

    drawn = jax.jit(lambda masks: map_bins(rows, [masks], draw)[0])(masks_of(leaves))
    for key, units, found in zip(keys, leaves, drawn, strict=True):
        assert np.array_equal(found, jax.random.uniform(key, units.split))


def test_keys_of_other_generators_are_drawn_leaf_by_leaf():
    assert not can_be_drawn(jax.random.key(0, impl="rbg"))


def test_units_that_cannot_lie_in_rows_say_so():
    axes = Axes((), (0,), (1,))
    assert rows_kind(NM(2, 4).units("kernel", (8, 4), axes)) is None
    assert rows_kind(ConstantFanIn().units("kernel", (8, 4), axes)) == (False, 1)
    # Layers stacked along an axis in the middle would have to be transposed.
    assert rows_kind(whole((3, 2, 5), layer=(0, 2))) is None
    blocks = Block((2, 2)).units("kernel", (8, 4), axes)
    single = Unstructured().units("kernel", (8, 4), axes)
    assert rows_kind(blocks) != rows_kind(single)
    # A neuron's weights that are not evenly spaced.
    assert rows_kind(neurons((3, 2, 5), (0, 2))) is None


def test_units_of_blocks_lie_in_rows():
    axes = Axes((), (0,), (1,))
    leaves = [
        Block((2, 2)).units("kernel", shape, axes) for shape in ((8, 4), (64, 64))
    ]
    shapes = [
        tuple(1 if a in u.inner else n for a, n in enumerate(u.split)) for u in leaves
    ]
    rng = np.random.default_rng(0)
    scores = [jnp.asarray(rng.random(shape, np.float32)) for shape in shapes]
    rows = Rows.of(leaves)

    def select(number, units, laid):
        assert units.size == 4
        mask = units.select(laid[0], 3)
        return mask, units.layer_vector(units.count(mask)), None

    masks, counts, _ = jax.jit(lambda x: map_bins(rows, [x], select))(scores)
    for units, found, score, count in zip(leaves, masks, scores, counts, strict=True):
        assert np.array_equal(found, units.select(score, 3))
        assert int(count) == 3


def test_bins_are_about_as_large_as_the_largest_leaf():
    leaves = [whole((n, 512)) for n in (1000, 400, 300, 300, 500, 250, 250, 10, 20)]
    rows = Rows.of(leaves)
    assert rows.height < 1600
    assert len(rows.bins) * rows.height < 1.05 * sum(u.shape[0] for u in leaves)
    assert sorted(i for bin in rows.bins for i in bin) == list(range(len(leaves)))
    one = Rows.of(leaves, together=True)
    assert one.bins == (tuple(range(len(leaves))),)


def test_an_odd_leaf_does_not_leave_bins_empty():
    rows = Rows.of([whole((n, 512)) for n in (1000, 600, 600, 600)])
    total = math.prod((len(rows.bins), rows.height))
    assert total <= 1.05 * 2800


def test_rows_are_as_wide_as_wastes_least():
    assert Rows.of(NEURONS[:5]).width == 12
    assert Rows.of([neurons((7, 50), (0,)), neurons((64, 50), (0,))]).width == 64
    assert Rows.of([neurons((4096, 8), (0,))]).width == 512


def test_every_row_belongs_to_one_layer():
    rows = Rows.of(LAYERS)
    for number, bin in enumerate(rows.bins):
        units = units_of_bin(rows, number)
        widths = np.bincount(
            np.asarray(units.layer), np.asarray(units.width)[:, 0], units.sizes.size + 1
        )
        assert widths[:-1].tolist() == np.asarray(units.sizes).tolist()
        assert widths[-1] == 0
        assert widths.sum() == sum(math.prod(LAYERS[i].shape) for i in bin)


def test_code_does_not_grow_with_the_number_layer_vector():
    def kernels(leaves):
        rows = Rows.of(leaves)
        assert len(rows.bins) > 1

        def select(number, units, laid):
            mask = units.select(laid[0], 5, laid[1])
            return mask, units.layer_vector(units.count(mask)), None

        def change(*fields):
            return map_bins(rows, fields, select)

        arrays = scores_of(leaves), masks_of(leaves)
        text = jax.jit(change).lower(*arrays).compile().as_text() or ""
        return len(re.findall(r" while\(", text)), text.count(" fusion(")

    few = [whole((512 * n, 2)) for n in (6, 5, 1)]
    many = [whole((512 * n, 2)) for n in (12, 11, 10, 8, 7, 5, 4, 3, 2, 1, 9)]
    (loops, fused), (more_loops, more_fused) = kernels(few), kernels(many)
    assert loops == more_loops
    # Two per leaf remain: its mask, and its number.
    assert more_fused - fused <= 2 * (len(many) - len(few)) + 8

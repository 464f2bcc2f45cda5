"""One update of the masks, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from tests.helpers.single_updates import KEY, array, bits, changed


def rigl(mask, **kwargs):
    options = {"every": 10, "stop": 100, "drop_fraction": 0.5, "decay": "constant"}
    return so.rigl(masks={"w": mask}, **(options | kwargs))


def test_rigl_drops_the_smallest_and_grows_by_gradient():
    # Active |w| = 4 3 2 1: half are dropped, 2 and 1. Of the inactive gradients
    # 0 0 (just dropped) 5 1 7 2, the two largest are 7 and 5.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    new = changed(
        rigl(mask),
        mask,
        array(4, -3, 2, -1, 0, 0, 0, 0),
        array(9, 9, 0, 0, 5, -1, -7, 2),
    )
    np.testing.assert_array_equal(new, bits(1, 1, 0, 0, 1, 0, 1, 0))


def test_what_was_just_dropped_may_come_back():
    # Dropped: 2 and 1; the gradient of the second, -8, is the largest of all inactive.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    new = changed(
        rigl(mask),
        mask,
        array(4, -3, 2, -1, 0, 0, 0, 0),
        array(9, 9, 0, -8, 5, 1, 7, 2),
    )
    np.testing.assert_array_equal(new, bits(1, 1, 0, 1, 0, 0, 1, 0))


def test_what_is_kept_is_not_grown_again():
    # The kept weights have the largest gradients of all; growth ignores them.
    mask = bits(1, 1, 0, 0, 0, 0)
    new = changed(rigl(mask), mask, array(2, 1, 0, 0, 0, 0), array(99, 3, 1, 5, 4, 2))
    np.testing.assert_array_equal(new, bits(1, 0, 0, 1, 0, 0))


def test_ties_keep_and_grow_the_lowest_index():
    mask = bits(0, 1, 1, 1, 1, 0, 0, 0)
    new = changed(rigl(mask), mask, array(0, 1, 1, 1, 1, 0, 0, 0), jnp.zeros(8))
    np.testing.assert_array_equal(new, bits(1, 1, 1, 1, 0, 0, 0, 0))


def test_the_number_dropped_is_rounded_down():
    # 0.3 of 5 active weights is 1.5: one is replaced.
    mask = bits(1, 1, 1, 1, 1, 0, 0, 0)
    topology = rigl(mask, drop_fraction=0.3)
    new = changed(
        topology, mask, array(5, 4, 3, 2, 1, 0, 0, 0), array(0, 0, 0, 0, 0, 1, 2, 3)
    )
    np.testing.assert_array_equal(new, bits(1, 1, 1, 1, 0, 0, 0, 1))


def test_the_cosine_slows_the_change():
    # alpha / 2 (1 + cos(pi 90 / 100)) = 0.5 * 0.0245: none of 8 weights is replaced.
    mask = bits(1, 1, 1, 1, 1, 1, 1, 1, 0, 0)
    topology = rigl(mask, decay="cosine")
    param, grad = jnp.arange(10.0), jnp.arange(10.0)
    np.testing.assert_array_equal(changed(topology, mask, param, grad, 90), mask)
    assert int((changed(topology, mask, param, grad, 0) & mask).sum()) == 4 + 2


def test_layers_of_a_stack_change_separately():
    # The second layer's weights and gradients are 100 times those of the first.
    mask = bits(1, 1, 0, 0)[:, None]
    stack = jnp.stack([mask, mask])
    param = jnp.stack([array(2, 1, 0, 0)[:, None], 100 * array(1, 2, 0, 0)[:, None]])
    grad = jnp.stack([array(0, 0, 1, 2)[:, None], 100 * array(0, 0, 2, 1)[:, None]])
    topology = rigl(stack, dims=so.NeuronDims(1, 2))
    new = changed(topology, stack, param, grad)
    np.testing.assert_array_equal(new[0, :, 0], bits(1, 0, 0, 1))
    np.testing.assert_array_equal(new[1, :, 0], bits(0, 1, 1, 0))


@pytest.mark.parametrize(
    "grad", [0.0, 1.0, np.nan, np.inf, -np.inf], ids=["0", "1", "nan", "inf", "-inf"]
)
def test_counts_are_conserved_whatever_the_gradient(grad):
    mask = jax.random.bernoulli(KEY, 0.3, (6, 9))
    new = changed(rigl(mask), mask, jnp.ones((6, 9)) * mask, jnp.full((6, 9), grad))
    assert int(new.sum()) == int(mask.sum())


def test_nan_gradients_are_grown_last():
    mask = bits(1, 1, 0, 0, 0, 0)
    grad = array(0, 0, np.nan, -np.inf, 0, 1)
    new = changed(rigl(mask), mask, array(2, 1, 0, 0, 0, 0), grad)
    np.testing.assert_array_equal(new, bits(1, 0, 0, 1, 0, 0))


def test_explored_is_everything_that_was_ever_active():
    mask = bits(1, 1, 0, 0, 0, 0)
    topology = rigl(mask, track_explored=True)
    masks, state = topology.init(KEY, {"w": jnp.ones(6)})
    np.testing.assert_array_equal(state.explored["w"], mask)
    for step, grad in enumerate([array(0, 0, 5, 0, 0, 0), array(0, 0, 0, 0, 5, 0)]):
        masks, state = topology.update(
            KEY,
            jnp.int32(step),
            masks,
            state,
            {"w": array(2, 1, 1, 1, 1, 1)},
            {"w": grad},
        )
    np.testing.assert_array_equal(masks["w"], bits(1, 0, 0, 0, 1, 0))
    np.testing.assert_array_equal(state.explored["w"], bits(1, 1, 1, 0, 1, 0))
    assert int(state.updated_at) == 1

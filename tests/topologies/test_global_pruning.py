"""One threshold for the whole network, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

import sparseopt_jax as so
from tests.helpers.falling_densities import PARAMS, SIZES, counts, planned, still
from tests.helpers.ranking import highest


def test_a_global_threshold_is_that_of_all_weights():
    topology = so.gradual_magnitude(0.8, every=2, stop=7, scope="global")
    masks = still(topology, 8)
    joined = np.concatenate([np.ravel(np.abs(PARAMS[name])) for name in SIZES])
    last = planned(topology)
    for step, now in enumerate(masks[1:]):
        left = (1 - min(step // 2 * 2, 6) / 6) ** 3
        total = sum(
            last[name] + round((size - last[name]) * left)
            for name, size in SIZES.items()
        )
        kept = highest(joined, total)
        np.testing.assert_array_equal(now["a"].ravel(), kept[:48])
        np.testing.assert_array_equal(now["b"].ravel(), kept[48:])


def test_a_global_threshold_leaves_every_layer_its_largest_weight():
    params = {**PARAMS, "b": 1e-6 * PARAMS["b"]}
    topology = so.one_shot(0.9, at=0, scope="global")
    _, now = still(topology, 1, params=params)
    assert counts(now) == {"a": 10, "b": 1}
    np.testing.assert_array_equal(now["b"], highest(np.abs(PARAMS["b"]), 1))
    np.testing.assert_array_equal(now["a"], highest(np.abs(PARAMS["a"]), 10))


def test_units_of_several_sizes_are_compared_by_their_mean_weight():
    # Of the 53 weights left one block of four is always kept; the others are the larger
    # single weights.
    topology = so.one_shot(0.5, at=0, scope="global", structure={"a": so.Block((2, 2))})
    params = {"a": jnp.ones((8, 6)), "b": jnp.full((6, 10), 2.0).at[0].set(0.5)}
    _, now = still(topology, 1, params=params)
    assert counts(now) == {"a": 4, "b": 49}


def test_a_global_density_rises_where_gradients_are():
    topology = so.granet(0.5, initial_sparsity=0.75, every=1, stop=3, drop_fraction=0.0)
    grads = jax.tree.map(lambda p: jnp.sin(7 * p), PARAMS)
    first, *_, last = still(topology, 3, grads=grads)
    assert [sum(counts(now).values()) for now in (first, last)] == [27, 54]
    joined = np.concatenate(
        [np.where(first[n], np.inf, np.abs(grads[n])).ravel() for n in SIZES]
    )
    found = np.concatenate([last[name].ravel() for name in SIZES])
    np.testing.assert_array_equal(found, highest(joined, 54))

"""Top-KAST, worked by hand and against NumPy."""

import jax
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.forward_training import KAST, array, trained
from tests.helpers.ranking import largest


def test_top_kast_leaves_the_smallest_weights_alone():
    history = trained(KAST)
    chosen_by = {0: 0, 1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 6: 4}
    for moment, (params, state) in enumerate(history):
        weights = history[chosen_by[moment]][0]["k"]
        np.testing.assert_array_equal(state.masks["k"], largest(weights, 12))
        still = ~largest(weights, 24)
        np.testing.assert_array_equal(state.topology_state.trained["k"], ~still)
        if moment + 1 < len(history):
            # Not even by momentum or weight decay.
            after = np.asarray(history[moment + 1][0]["k"])
            np.testing.assert_array_equal(after[still], np.asarray(params["k"])[still])
            assert (after[~still] != np.asarray(params["k"])[~still]).all()


def test_top_kast_penalizes_weights_by_how_they_are_used():
    # Of the weights 4 3 2 1 one is used and two are trained; the density is 1/4.
    method = so.top_kast(0.75, trained_sparsity=0.5, penalty=0.1)
    params = {"w": array([4], [-3], [2], [1])}
    tx = so.sparsify(optax.sgd(1.0), method)
    state = tx.init(params)
    updates, _ = tx.update({"w": array([1], [1], [1], [1])}, state, params)
    expected = [-1 - 0.1 * 4, -1 + 0.1 * 3 / 0.25, 0, 0]
    np.testing.assert_allclose(updates["w"][:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("distribution", ["erdos_renyi", "erdos_renyi_kernel"])
def test_what_is_used_is_trained(distribution):
    shapes = {"a": (5, 7), "b": (7, 9), "c": (3, 3, 2, 4)}
    params = {k: jax.ShapeDtypeStruct(shape, "float32") for k, shape in shapes.items()}
    for sparsity in np.linspace(0.1, 0.9, 41):
        method = so.top_kast(
            sparsity, trained_sparsity=sparsity - 0.01, distribution=distribution
        )
        used, trained = method.leaves(params), method.trained.leaves(params)
        for used_leaf, leaf in zip(used, trained, strict=True):
            assert used_leaf.active <= leaf.active

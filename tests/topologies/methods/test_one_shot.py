"""Pruning once, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from tests.helpers.falling_densities import PARAMS, SIZES, counts, planned, still
from tests.helpers.ranking import highest


def custom(key, param, grad):
    return -jnp.abs(param)


@pytest.mark.parametrize("score", ["magnitude", "saliency", custom])
def test_one_shot_keeps_the_best(score):
    topology = so.one_shot(0.75, at=2, score=score)
    grads = jax.tree.map(lambda p: jnp.sin(7 * p), PARAMS)
    masks = still(topology, 4, grads=grads)
    assert [counts(now) == SIZES for now in masks] == [True] * 3 + [False] * 2
    for name, k in planned(topology).items():
        weights = np.abs(PARAMS[name])
        scores = {
            "magnitude": weights,
            "saliency": weights * np.abs(grads[name]),
        }.get(score, -weights)
        for now in masks[3:]:
            np.testing.assert_array_equal(now[name], highest(scores, k))


def test_one_shot_at_random_has_the_planned_counts():
    topology = so.one_shot(0.75, at=0, score="random")
    _, now, then = still(topology, 2)
    assert counts(now) == planned(topology)
    assert (now["a"] != highest(np.abs(PARAMS["a"]), planned(topology)["a"])).any()
    np.testing.assert_array_equal(now["a"], then["a"])

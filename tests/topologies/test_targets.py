"""The number of units of every layer under a density schedule."""

import jax.numpy as jnp
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.falling_densities import KEY, PARAMS, SIZES, counts, planned, still


@pytest.mark.parametrize("initial", [0.0, 0.4])
def test_layers_of_their_own_sparsity_begin_like_the_others(initial):
    topology = so.gradual_magnitude(
        0.8, initial_sparsity=initial, distribution={"a": 0.5}, every=2, stop=4
    )
    first, *_, last = still(topology, 5)
    assert counts(first) == {
        name: round((1 - initial) * n) for name, n in SIZES.items()
    }
    assert counts(last) == {"a": 24, "b": 12}


def test_a_schedule_beyond_its_ends_leaves_every_layer_a_weight():
    # The sparsity goes from 0 through 0.95 to 0.5, where layers have different ones:
    # with a proportional extrapolation, the smaller one would fall below zero.
    turning = optax.piecewise_interpolate_schedule("linear", 0.95, {2: 1.0, 4: 10 / 19})
    topology = so.gradual_magnitude(
        schedule=lambda step: jnp.where(step == 0, 0.0, turning(step)),
        every=1,
        stop=5,
        distribution=lambda layers, sparsity: {
            "a": round(48 * (1 - sparsity)),
            "b": max(round(60 * (1 - 1.9 * sparsity)), 1),
        },
    )
    masks = still(topology, 5)
    for now in masks:
        assert all(1 <= n <= SIZES[name] for name, n in counts(now).items())
    assert counts(masks[-1]) == planned(topology)


def test_what_does_not_fit_in_the_end_fails_at_init():
    with pytest.raises(ValueError, match="'a' 0 of 48 weights"):
        topology = so.gradual_magnitude(0.99, distribution={"*": 0.99}, every=1, stop=5)
        topology.init(KEY, PARAMS)

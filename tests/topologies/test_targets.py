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


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("stop", [3, 7])
def test_a_rising_density_begins_low_and_is_reached(stop, scope):
    topology = so.gradual_magnitude(
        0.25,
        initial_sparsity=0.75,
        distribution={"a": 0.5},
        every=2,
        start=2,
        stop=stop,
        scope=scope,
    )
    begin, *_, last = still(topology, stop)
    assert sum(counts(begin).values()) == 12 + 15
    assert sum(counts(last).values()) == 24 + 45
    if scope == "layer":
        assert counts(begin) == {"a": 12, "b": 15}
        assert counts(last) == {"a": 24, "b": 45}


def test_granet_grows_in_its_only_update():
    topology = so.granet(0.25, initial_sparsity=0.75, every=9, start=2, stop=5)
    begin, *_, last = still(topology, 4)
    assert sum(counts(begin).values()) == 27
    assert sum(counts(last).values()) == 81


@pytest.mark.parametrize("initial", [0.5, 0.75])
def test_a_layer_moves_against_the_network(initial):
    # The network falls, but "b" rises; from 0.75 the network rises, but "a" falls.
    def distribution(layers, sparsity):
        if sparsity == initial:
            return {"a": 24, "b": 10}
        return {"a": 12, "b": 20} if initial == 0.5 else {"a": 12, "b": 40}

    topology = so.gradual_magnitude(
        0.6, initial_sparsity=initial, distribution=distribution, every=2, stop=5
    )
    masks = list(map(counts, still(topology, 5)))
    assert masks[0] == {"a": 24, "b": 10} and masks[-1] == planned(topology)
    assert masks[3]["a"] < 24 and masks[3]["b"] > 10


def test_a_layer_of_a_constant_number_keeps_sparser_masks():
    topology = so.gradual_magnitude(
        0.8,
        initial_sparsity=0.5,
        distribution={"a": 0.5},
        every=2,
        stop=5,
        masks={
            "a": jnp.arange(48).reshape(8, 6) < 6,
            "b": jnp.ones((6, 10), bool),
            "bias": optax.MaskedNode(),
        },
    )
    assert counts(still(topology, 5)[-1]) == {"a": 6, "b": 12}


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

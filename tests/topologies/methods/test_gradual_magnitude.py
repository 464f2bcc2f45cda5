"""Gradual magnitude pruning, against NumPy."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.falling_densities import PARAMS, SIZES, counts, planned, still
from tests.helpers.ranking import highest


def test_every_layer_follows_the_cubic():
    # Updates at 2, 5 and 8, the last before the stop.
    topology = so.gradual_magnitude(0.8, every=3, start=2, stop=9)
    last = planned(topology)
    masks = still(topology, 11)
    assert [step for step in range(11) if topology.due(step)] == [2, 5, 8]
    for step, now in enumerate(masks[1:]):
        # The result of the last update before.
        changed_at = max([t for t in (2, 5, 8) if t <= step], default=2)
        left = (1 - (changed_at - 2) / 6) ** 3
        for name, size in SIZES.items():
            expected = last[name] + round((size - last[name]) * left)
            np.testing.assert_array_equal(
                now[name], highest(np.abs(PARAMS[name]), expected)
            )
    assert counts(masks[-1]) == last
    sparsity = [1 - sum(counts(now).values()) / 108 for now in masks]
    cubic = 0.8 + (0 - 0.8) * (1 - (5 - 2) / 6) ** 3
    np.testing.assert_allclose(sparsity[6], cubic, atol=0.01)


def test_it_begins_with_the_largest_weights_of_the_initial_sparsity():
    topology = so.gradual_magnitude(0.8, initial_sparsity=0.5, every=2, stop=4)
    first, *_, last = still(topology, 5)
    assert sum(counts(first).values()) == 54
    for name, mask in first.items():
        np.testing.assert_array_equal(mask, highest(np.abs(PARAMS[name]), mask.sum()))
    assert counts(last) == planned(topology)
    assert all((first[name] | ~last[name]).all() for name in SIZES)


def test_a_schedule_of_optax_gives_the_sparsity():
    # Falls from 0.25 to 0, and rises to 0.75.
    schedule = optax.piecewise_interpolate_schedule("linear", 1.0, {2: 0.0})
    topology = so.gradual_magnitude(
        schedule=lambda step: 0.25 * schedule(step) + 0.25 * jnp.clip(step - 2, 0, 3),
        every=1,
        stop=6,
        distribution={"*": 0.75},
    )
    assert topology.sparsity == 0.75
    masks = still(topology, 6)
    sparsities = [0.25, 0.25, 0.125, 0.0, 0.25, 0.5, 0.75]
    for now, sparsity in zip(masks, sparsities, strict=True):
        for name, n in counts(now).items():
            assert abs(n - (1 - sparsity) * SIZES[name]) <= 0.5


def test_groups_fall_together_to_n_of_m():
    topology = so.gradual_magnitude(structure=so.NM(1, 2), every=1, start=1, stop=4)
    masks = still(topology, 6)
    for now in masks:
        for mask in now.values():
            groups = mask.reshape(mask.shape[0] // 2, 2, -1).sum(1)
            assert len(np.unique(groups)) == 1
    assert counts(masks[1]) == SIZES and counts(masks[-1]) == {"a": 24, "b": 30}
    weights = np.abs(PARAMS["a"]).reshape(4, 2, 6)
    np.testing.assert_array_equal(
        masks[-1]["a"].reshape(4, 2, 6), weights == weights.max(1, keepdims=True)
    )


gradual = functools.partial(so.gradual_magnitude, every=1, stop=5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gradual(), ValueError, "sparsity must be given"),
        (lambda: gradual(1.0), ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
        (
            lambda: gradual(0.5, initial_sparsity=1.0),
            ValueError,
            r"initial_sparsity must be in \[0, 1\), got 1.0",
        ),
        (lambda: gradual(0.5, scope="all"), ValueError, "or 'global', got 'all'"),
        (lambda: gradual(0.5, start=5), ValueError, "greater than start = 5, got 5"),
        (
            lambda: gradual(0.5, schedule=optax.linear_schedule(0.0, 0.5, 5)),
            ValueError,
            "pass sparsity or schedule, not both",
        ),
        (
            lambda: gradual(schedule=optax.constant_schedule(0.5)),
            ValueError,
            "different values at start and stop, got 0.5 at both",
        ),
        (
            lambda: gradual(schedule=optax.linear_schedule(0.0, 1.0, 5)),
            ValueError,
            r"schedule\(5\) must be in \[0, 1\), got 1.0",
        ),
        (
            lambda: gradual(masks={"a": jnp.ones((8, 6), bool)}),
            ValueError,
            "sparsity must be given: masks specify where the density starts",
        ),
        (
            lambda: gradual(0.5, masks=so.PREVIOUS_MASKS),
            ValueError,
            r"in so\.phases the topology starts from",
        ),
        (lambda: so.one_shot(0.5, at=-1), ValueError, "at must be at least 0"),
        (lambda: so.one_shot(0.5, at=1.5), TypeError, "at must be an integer"),
        (lambda: so.one_shot(0.5, at=True), TypeError, "at must be an .*, got True"),
        (
            lambda: so.one_shot(0.5, at=1, score="wanda"),
            ValueError,
            "magnitude, random, saliency, or a function, got 'wanda'",
        ),
        (lambda: so.one_shot(0.5, at=1, score=3), TypeError, "drop must be a function"),
        (lambda: so.granet(0.5, every=0, stop=5), ValueError, "every must be at least"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()

"""The initial masks of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.ranking import largest
from tests.helpers.single_updates import KEY


def test_first_masks_have_the_planned_counts_and_depend_on_the_name_alone():
    params = {
        "a": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)},
        "b": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    }
    topology = so.static(0.7)
    masks, state = topology.init(KEY, params)
    plan = {leaf.path: leaf.active for leaf in topology.leaves(params)}
    assert int(masks["a"]["kernel"].sum()) == plan["a/kernel"]
    assert int(masks["b"]["kernel"].sum()) == plan["b/kernel"]
    assert plan["a/kernel"] + plan["b/kernel"] == round(0.3 * (48 + 72))
    assert masks["a"]["bias"] == optax.MaskedNode()
    assert int(state.updated_at) == -1 and state.turned == ()
    np.testing.assert_array_equal(
        state.fan_ins["a"]["kernel"][0], masks["a"]["kernel"].sum(0)
    )
    other, _ = so.static(0.7, distribution={"a/*": 1 - plan["a/kernel"] / 48}).init(
        KEY, {"0": jnp.ones(1), "a": params["a"]}
    )
    np.testing.assert_array_equal(other["a"]["kernel"], masks["a"]["kernel"])


def test_each_layer_of_a_stack_gets_its_own_budget():
    params = {"kernel": jnp.ones((5, 8, 6))}
    masks, _ = so.static(0.75, dims=so.NeuronDims(1, 2)).init(KEY, params)
    np.testing.assert_array_equal(masks["kernel"].sum((1, 2)), 12)


def test_given_masks_need_no_sparsity():
    mask = jax.random.bernoulli(KEY, 0.5, (4, 4))
    masks, _ = so.static(masks={"a": mask, "b": None}).init(
        KEY, {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    )
    np.testing.assert_array_equal(masks["a"], mask)
    assert masks["b"] == optax.MaskedNode()


@pytest.mark.parametrize("structure", [so.Unstructured(), so.ConstantFanIn()])
def test_first_masks_give_every_neuron_its_least(structure):
    topology = so.static(0.8, min_fan_in=2, structure=structure)
    for seed in range(3):
        masks, _ = topology.init(jax.random.key(seed), {"w": jnp.ones((10, 8))})
        assert int(masks["w"].sum()) == 16
        np.testing.assert_array_equal(masks["w"].sum(0), 2)


WEIGHTS = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_start_above_zero_keeps_the_largest(scope):
    params = {"a": jnp.asarray(WEIGHTS), "b": 0.1 * jnp.asarray(WEIGHTS.T)}
    topology = so.gradual_magnitude(
        0.9, every=2, stop=9, initial_sparsity=0.5, scope=scope
    )
    masks, _ = topology.init(KEY, params)
    joined = np.concatenate([np.ravel(params[name]) for name in "ab"])
    found = np.concatenate([np.ravel(masks[name]) for name in "ab"])
    assert found.sum() == 600
    if scope == "global":
        np.testing.assert_array_equal(found, largest(joined, 600))
    else:
        for name in "ab":
            expected = largest(np.asarray(params[name]), int(masks[name].sum()))
            np.testing.assert_array_equal(masks[name], expected)
    compiled, _ = jax.jit(topology.init)(KEY, params)
    np.testing.assert_array_equal(compiled["b"], masks["b"])


def test_a_schedule_that_starts_above_zero_keeps_the_largest():
    schedule = optax.linear_schedule(0.5, 0.9, 8)
    topology = so.gradual_magnitude(schedule=schedule, every=2, stop=9)
    masks, _ = topology.init(KEY, {"a": WEIGHTS})
    np.testing.assert_array_equal(masks["a"], largest(WEIGHTS, 300))


def test_shapes_alone_begin_at_random():
    topology = so.gradual_magnitude(0.9, every=2, stop=9, initial_sparsity=0.5)
    shapes = {"a": jax.ShapeDtypeStruct((20, 30), jnp.float32)}
    masks, _ = topology.init(KEY, shapes)
    assert int(masks["a"].sum()) == 300
    assert (masks["a"] != largest(WEIGHTS, 300)).any()


def test_first_masks_keep_structures_and_what_is_not_finite():
    params = {"a": jnp.asarray(WEIGHTS).at[0, 0].set(jnp.nan)}
    topology = so.gradual_magnitude(
        0.9, every=2, stop=9, initial_sparsity=0.5, structure=so.Block(2), min_fan_in=0
    )
    masks, _ = topology.init(KEY, params)
    blocks = np.asarray(masks["a"]).reshape(20, 15, 2)
    np.testing.assert_array_equal(blocks.all(2), blocks.any(2))
    sums = np.abs(np.asarray(params["a"])).reshape(20, 15, 2).sum(2)
    expected = largest(np.nan_to_num(sums, nan=np.inf), 150)
    np.testing.assert_array_equal(blocks.any(2), expected)

"""All leaves together and one by one: the same results, bit for bit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.topologies import rewiring

WHEN: dict[str, Any] = {"every": 1, "stop": 100}
SHAPES = {
    "first": (5, 6),
    "conv": (3, 3, 4, 8),
    "wide": (40, 60),
    "query": (12, 3, 4),
    "last": (64, 34),
}


def params_of(seed, dtypes=None):
    """Return weights with ties and non-finite values."""
    rng = np.random.default_rng(seed)
    tree = {}
    for name, shape in SHAPES.items():
        x = np.round(rng.standard_normal(shape), 1)
        x[rng.random(shape) < 0.02] = np.nan
        x[rng.random(shape) < 0.02] = np.inf
        dtype = (dtypes or {}).get(name, jnp.float32)
        tree[name] = {"kernel": jnp.asarray(x, dtype), "bias": jnp.ones(shape[-1])}
    return tree


def unlike_any(key, param, grad):
    """Return a score that depends on the whole leaf and needs the key."""
    noise = jax.random.normal(key, param.shape)
    return jnp.abs(param) / jnp.nanmax(jnp.abs(param)) + jnp.abs(grad) + noise


def with_scores(topology, **scores):
    return dataclasses.replace(topology, **scores)


TOPOLOGIES = {
    "set": so.set_(0.7, **WHEN),
    "rigl": so.rigl(0.7, **WHEN),
    "rigl, blocks": so.rigl(0.5, structure=so.Block((1, 2)), **WHEN),
    "set, blocks": so.set_(
        0.5, structure={"last/*": so.Unstructured(), "*": so.Block((1, 2))}, **WHEN
    ),
    "rigl, fan-in": so.rigl(0.7, structure=so.ConstantFanIn(), **WHEN),
    "set, fan-in": so.set_(0.7, structure=so.ConstantFanIn(), **WHEN),
    "rigl, channels": so.rigl(0.5, structure=so.Channel(), **WHEN),
    "rigl, averaged": so.rigl(0.7, averaged_steps=2, every=2, stop=100),
    "rigl, corrected": so.rigl(0.7, corrected_growth=True, **WHEN),
    "rigl, at least 2": so.rigl(0.6, min_fan_in=2, **WHEN),
    "srigl": so.srigl(0.7, **WHEN),
    "srigl, most ablated": so.srigl(0.8, gamma_sal=0.9, **WHEN),
    "mest": so.mest(0.7, **WHEN),
    "snfs": so.snfs(0.7, **WHEN),
    "granet": so.granet(0.7, **WHEN),
    "gmp": so.gradual_magnitude(0.7, **WHEN),
    "gmp, global": so.gradual_magnitude(0.7, scope="global", **WHEN),
    "smet": so.set_smet(0.7, **WHEN),
    "a function": with_scores(so.rigl(0.7, **WHEN), grow=unlike_any),
    "all by gradients": with_scores(
        so.rigl(0.7, averaged_steps=2, every=2, stop=100), drop=so.scores.saliency
    ),
}


# Each way to lay out and rank rows once; the others wait for ``make test-slow``.
QUICK = (
    *("set", "rigl, blocks", "set, fan-in", "rigl, at least 2", "srigl", "granet"),
    "a function",
)


def after(topology, params, monkeypatch=None, updates=2):
    """Return masks and state after some updates, and how the last was made."""
    ways = []

    def one_by_one(*args):
        ways.append("one by one")

    def watched(*args):
        result = side_by_side(*args)
        ways.append("one by one" if result is None else "side by side")
        return result

    side_by_side = rewiring.rewire_side_by_side
    with pytest.MonkeyPatch.context() as patch:
        way = watched if monkeypatch is None else one_by_one
        patch.setattr(rewiring, "rewire_side_by_side", way)
        masks, state = topology.init(jax.random.key(0), params)

        def update(count, masks, state, params, grads):
            state = topology.observe(count, state, grads)
            key = jax.random.fold_in(jax.random.key(1), count)
            return topology.update(key, count, masks, state, params, grads)

        update = jax.jit(update)
        for count in range(updates):
            grads = jax.tree.map(jnp.nan_to_num, params_of(10 + count))
            masks, state = update(jnp.int32(count), masks, state, params, grads)
    return (masks, state), ways[-1]


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(x, y)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in TOPOLOGIES
    ],
)
def test_results_are_those_of_each_leaf_alone(name):
    topology, params = TOPOLOGIES[name], params_of(0)
    together, way = after(topology, params)
    assert way == "side by side"
    alone, way = after(topology, params, monkeypatch=True)
    assert way == "one by one"
    assert_same(together, alone)


@pytest.mark.parametrize(
    "name", ["set", pytest.param("rigl", marks=pytest.mark.slow), "granet"]
)
def test_leaves_may_have_different_types(name):
    dtypes = {"wide": jnp.bfloat16, "last": jnp.float16}
    params = params_of(0, dtypes)
    together, way = after(TOPOLOGIES[name], params)
    # Selections across layers need one type.
    assert way == ("one by one" if name == "granet" else "side by side")
    assert_same(together, after(TOPOLOGIES[name], params, monkeypatch=True)[0])


def test_groups_of_m_are_updated_leaf_by_leaf():
    topology = so.rigl(
        structure={"first/*": so.Unstructured(), "last/*": so.Unstructured()}
        | {"*": so.NM(1, 2)},
        sparsity=0.5,
        **WHEN,
    )
    assert after(topology, params_of(0))[1] == "one by one"


def test_keys_of_another_generator_draw_the_same_numbers():
    topology, params = so.set_(0.7, **WHEN), params_of(0)
    key, count = jax.random.key(0, impl="rbg"), jnp.int32(0)
    masks, state = topology.init(key, params)
    update = jax.jit(topology.update)
    together = update(key, count, masks, state, params, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewiring, "rewire_side_by_side", lambda *args: None)
        alone = jax.jit(lambda *args: topology.update(*args))(
            key, count, masks, state, params, params
        )
    assert_same(together, alone)


def test_code_is_that_of_one_layer_however_many_there_are():
    def loops(layers):
        topology = so.rigl(0.7, **WHEN)
        params = {
            f"layer_{i}": jax.ShapeDtypeStruct((20 + i, 64), jnp.float32)
            for i in range(layers)
        }
        masks, state = jax.eval_shape(topology.init, jax.random.key(0), params)
        update = jax.jit(topology.update).lower(
            jax.random.key(0), jnp.int32(0), masks, state, params, params
        )
        return update.as_text().count("stablehlo.while")

    assert loops(2) == loops(9)


def test_masks_of_neurons_pass_through_a_step_as_they_lie():
    # If they stayed in the order of rows, every step would convert them there and back.
    tx = so.sparsify(optax.sgd(0.1), so.srigl(0.5, every=10, stop=100))
    params = {"kernel": jax.ShapeDtypeStruct((24, 16), jnp.float32)}
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(tx.update, donate_argnums=1).lower(params, state, params).compile()
    _, entry = (step.as_text() or "").split("ENTRY ")
    assert " conditional(" in entry and "pred[24,16]{1,0}" in entry
    assert "pred[24,16]{0,1}" not in entry


def test_fan_ins_are_those_of_the_new_masks():
    # Of neurons along the first axes, and of a stack along the last.
    dims = so.NeuronDims(reduction_axis=2, output_axis=(0, 1))
    dims = {"query/*": dims, "conv/*": dims}
    topology = so.rigl(0.5, structure=so.ConstantFanIn(), dims=dims, **WHEN)
    (masks, state), way = after(topology, params_of(0))
    assert way == "side by side"
    assert_same(state.fan_ins, topology.fan_ins(masks))

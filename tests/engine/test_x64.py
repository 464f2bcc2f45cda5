"""With ``jax_enable_x64`` masks are the same, and no array of a state is wider."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.methods import (
    AFTER_TRAINING,
    GRADS,
    OPTIMIZERS,
    PARAMS,
    TOPOLOGIES,
    WHEN,
)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def types(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def doubled(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), tree)


def traced(tx, params, grads):
    """Return the first state's types, and check that those of the next are equal."""
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, grads, state, params)
    assert types(after) == types(state)
    assert types(updates) == types(params)
    return state


def check_traced(tx):
    state = traced(tx, PARAMS, GRADS)
    wide = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype.name.endswith("64")]
    assert not wide
    metrics = jax.eval_shape(so.metrics, PARAMS, state)
    assert all(leaf.dtype.itemsize <= 4 for leaf in jax.tree.leaves(metrics))
    traced(tx, doubled(PARAMS), doubled(GRADS))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_states_of_every_topology_keep_their_types(name):
    check_traced(so.sparsify(optax.sgd(0.1, momentum=0.9), TOPOLOGIES[name]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_every_optimizer_keep_their_types(name):
    check_traced(OPTIMIZERS[name](so.set_(0.5, **WHEN)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    [name for name, made in TOPOLOGIES.items() if made.moves and name != "phases"],
)
def test_updates_from_the_host_keep_their_types(name):
    tx = so.sparsify(optax.sgd(0.1), TOPOLOGIES[name], host_updates=True)
    state = traced(tx, PARAMS, GRADS)
    update = functools.partial(so.update_topology, tx)
    after, params = jax.eval_shape(update, GRADS, state, PARAMS)
    assert types(after) == types(state)
    assert types(params) == types(PARAMS)


def trained(tx, steps=4):
    """Return the masks, parameters and metrics of a short run, as NumPy arrays."""
    state = jax.jit(tx.init)(PARAMS)
    params = so.apply_masks(PARAMS, state)
    update = jax.jit(tx.update)
    masks = []
    for _ in range(steps):
        updates, state = update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        masks.append(so.get_masks(state))
    return jax.tree.map(np.asarray, (masks, params, state))


def check_same(tx):
    narrow = trained(tx)
    with jax.enable_x64(True):
        wide = trained(tx)
    assert jax.tree.structure(narrow) == jax.tree.structure(wide)
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# One of each kind of selection and of state.
RUN = ("set", "rigl_nm", "srigl", "snfs", "gradual_global")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in RUN else pytest.mark.slow)
        for name in TOPOLOGIES
    ],
)
def test_masks_and_weights_are_the_same(name):
    check_same(so.sparsify(optax.sgd(0.1, momentum=0.9), TOPOLOGIES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_the_same(name):
    check_same(OPTIMIZERS[name](so.set_(0.5, **WHEN)))


def test_compact_parameters_are_the_same():
    topology = so.set_(0.5, structure=so.Block((16, 16)), **WHEN)
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), topology, host_updates=True)
    dense = {"kernel": jnp.cos(jnp.arange(48.0 * 32)).reshape(48, 32)}
    x = jnp.sin(jnp.arange(48.0))

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum((x @ p["kernel"].dense()) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run():
        params, state = so.compact_params(dense, tx.init(dense))
        for number in range(4):
            params, state = step(params, state)
            if topology.due(number):
                state, params = so.update_topology(tx, dense, state, params)
        return jax.tree.map(np.asarray, (params, state))

    narrow = run()
    with jax.enable_x64(True):
        wide = run()
    jax.tree.map(np.testing.assert_array_equal, wide, narrow)
    assert types(wide) == types(narrow)


def test_initial_weights_are_the_same():
    masks = {"kernel": PARAMS["dense"]["kernel"] > 0}
    params = {"kernel": PARAMS["dense"]["kernel"]}
    expected = so.sparse_init(params, masks, 0)
    with jax.enable_x64(True):
        found = so.sparse_init(params, masks, 0)
    np.testing.assert_array_equal(found["kernel"], expected["kernel"])


@pytest.mark.parametrize("name", AFTER_TRAINING)
def test_pruning_is_the_same(name):
    expected = AFTER_TRAINING[name]()
    with jax.enable_x64(True):
        found = AFTER_TRAINING[name]()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert types(found) == types(expected)

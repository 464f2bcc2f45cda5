"""No type is promoted silently: everything runs under strict promotion."""

import functools

import jax
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


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def traced(tx):
    """Return the first state's types after a step, which tracing shows."""
    state = jax.eval_shape(tx.init, PARAMS)
    jax.eval_shape(tx.update, GRADS, state, PARAMS)
    return state


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology(name):
    topology = TOPOLOGIES[name]
    state = traced(so.sparsify(optax.sgd(0.1, momentum=0.9), topology))
    so.plan(PARAMS, topology)
    params = jax.eval_shape(so.apply_masks, PARAMS, state)
    jax.eval_shape(so.metrics, params, state)


LATER = ("snfs", "srigl", "granet", "ste", "phases")


@pytest.mark.parametrize(
    "name", ["rigl", *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)]
)
def test_without_compiling(name):
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), TOPOLOGIES[name])
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    for _ in range(2):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    so.metrics(params, state)
    so.summary(params, state)


# One of each kind of update.
FROM_THE_HOST = (
    *("set", "rigl", "rigl_nm", "srigl", "snfs"),
    *("gradual_global", "granet", "ste", "top_kast"),
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FROM_THE_HOST else pytest.mark.slow)
        for name, topology in TOPOLOGIES.items()
        if topology.moves and name != "phases"
    ],
)
def test_from_the_host(name):
    tx = so.sparsify(optax.sgd(0.1), TOPOLOGIES[name], host_updates=True)
    change = functools.partial(so.update_topology, tx)
    jax.eval_shape(change, GRADS, traced(tx), PARAMS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name):
    state = traced(OPTIMIZERS[name](so.set_(0.5, **WHEN)))
    jax.eval_shape(so.metrics, PARAMS, state)


@pytest.mark.parametrize("name", AFTER_TRAINING)
def test_after_training(name):
    AFTER_TRAINING[name]()

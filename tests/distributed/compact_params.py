"""Compact parameters with the batch split over devices give one device's results.

Needs eight devices: ``tests/distributed/test_devices.py`` provides them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so

TOPOLOGY = so.rigl(
    0.5, every=2, stop=90, drop_fraction=0.9, structure=so.Block((16, 16))
)
TX = so.sparsify(optax.adamw(1e-2), TOPOLOGY, host_updates=True)
X = jax.random.normal(jax.random.key(1), (8, 32))


def start():
    kernel = jax.random.normal(jax.random.key(0), (32, 48))
    params = {"kernel": kernel, "bias": jnp.zeros(48)}
    opt_state = TX.init(params)
    return so.apply_masks(params, opt_state), opt_state


def loss(params, x):
    params = so.dense_params(params)
    return jnp.mean((jnp.tanh(x @ params["kernel"] + params["bias"]) - 1) ** 2)


def train(compiled, average, params, opt_state, x):
    """Take some steps, with two updates of the masks."""

    @compiled
    def gradient(params, x):
        return average(so.dense_gradient(loss)(params, x))

    @compiled
    def update(grads, opt_state, params):
        return so.update_topology(TX, grads, opt_state, params)

    @compiled
    def step(params, opt_state, x):
        grads = average(jax.grad(loss)(params, x))
        updates, opt_state = TX.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for i in range(4):
        if TOPOLOGY.due(i):
            opt_state, params = update(gradient(params, x), opt_state, params)
        params, opt_state = step(params, opt_state, x)
    return so.dense_params(params)["kernel"], so.get_masks(opt_state)["kernel"]


@functools.cache
def on_one_device():
    return train(jax.jit, lambda x: x, *start(), X)


def assert_as_on_one_device(found):
    kernel, mask = on_one_device()
    np.testing.assert_allclose(found[0], jnp.broadcast_to(kernel, found[0].shape), 1e-5)
    np.testing.assert_array_equal(found[1], jnp.broadcast_to(mask, found[1].shape))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_that_is_split_over_a_mesh(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    state = jax.device_put(start(), NamedSharding(mesh, P()))
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        found = train(jax.jit, lambda x: x, *so.compact_params(*state), x)
    assert_as_on_one_device(found)


def _columns_on(mesh):
    """Take steps and an update of a matrix whose columns are split as a stack."""
    topology = so.rigl(
        0.5,
        every=2,
        stop=90,
        drop_fraction=0.9,
        structure=so.Block((16, 16)),
        dims=so.NeuronDims((1,), (2,)),
    )
    tx = so.sparsify(optax.adamw(1e-2), topology, host_updates=True)
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 32, 48))}
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)
    params, opt_state = so.compact_params(params, opt_state)
    split = NamedSharding(mesh, P("model"))
    opt_state = jax.device_put(opt_state, so.state_sharding(tx, params, split))
    params = jax.device_put(params, split)
    apply_fn = so.sparse_apply(
        lambda params, x: jnp.einsum("bn,dnm->bdm", x, params["kernel"]), by="block"
    )

    def loss(params, x):
        return jnp.mean((jnp.tanh(apply_fn(params, x)) - 1) ** 2)

    @jax.jit
    def step(params, opt_state, x):
        updates, opt_state = tx.update(jax.grad(loss)(params, x), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    update = jax.jit(lambda *state: so.update_topology(tx, *state))
    gradient = jax.jit(so.dense_gradient(loss))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P()))
        for i in range(4):
            if topology.due(i):
                opt_state, params = update(gradient(params, x), opt_state, params)
            params, opt_state = step(params, opt_state, x)
        text = step.lower(params, opt_state, x).compile().as_text() or ""
    assert params["kernel"].active.sharding.spec[0] == "model"
    assert "all-gather" not in text
    return jax.device_get((params["kernel"].active, opt_state))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_columns_that_are_split_as_a_stack(kind):
    found, expected = (
        _columns_on(jax.make_mesh((size,), ("model",), axis_types=(kind,)))
        for size in (8, 1)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), found, expected
    )


def test_replicas_under_pmap():
    state = jax.tree.map(lambda x: jnp.stack([x] * 8), start())
    found = train(
        functools.partial(jax.pmap, axis_name="devices"),
        lambda grads: jax.lax.pmean(grads, "devices"),
        *so.compact_params(*state),
        X[:, None],
    )
    assert_as_on_one_device(found)


def test_a_leaf_that_is_split_within_its_blocks_is_refused():
    mesh = jax.make_mesh((2,), ("model",))
    params, opt_state = start()
    split = NamedSharding(mesh, P("model"))
    params |= {"kernel": jax.device_put(params["kernel"], split)}
    with pytest.raises(ValueError, match=r"'kernel'.*axis 0"):
        so.compact_params(params, opt_state)

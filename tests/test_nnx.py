"""Flax NNX: masked models, optimizers, changes from the host."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparseopt_jax as so


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def batch(seed):
    x = jax.random.normal(jax.random.key(seed), (32, 8))
    return x, (x[:, 0] > 0) + 2 * (x[:, 1] > 0)


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def step(model, optimizer, x, y):
    value, grads = nnx.value_and_grad(loss)(model, x, y)
    optimizer.update(model, grads, batch_stats=nnx.state(model, nnx.BatchStat))
    return value, grads


def make(tx):
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    so.nnx.mask_model(model, optimizer)
    return model, optimizer


def assert_zero_where_masked(model, optimizer):
    kernel, mask = model.first.kernel[...], so.get_masks(optimizer)["first"]["kernel"]
    assert not np.asarray(kernel)[~np.asarray(mask)].any()
    return np.asarray(mask)


@pytest.mark.parametrize("make_topology", [so.rigl, so.set_])
def test_trains_sparse_from_the_start(make_topology):
    topology = make_topology(0.6, every=5, stop=60)
    model, optimizer = make(so.sparse_sgd(0.2, topology, sparseopt=True))
    first = assert_zero_where_masked(model, optimizer)
    losses = []
    for seed in range(60):
        value, _ = step(model, optimizer, *batch(seed))
        losses.append(float(value))
        mask = assert_zero_where_masked(model, optimizer)
        assert mask.sum() == first.sum()
    assert (mask != first).any()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_batch_statistics_reach_the_correction():
    model = Net(nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)
    links = so.infer_norm_links(
        lambda state, x: nnx.merge(graph, state)(x), state, jnp.ones((2, 8))
    )
    assert dict(links) == {"first/kernel": "norm"}
    inner = optax.chain(so.scale_by_batch_variance(links), optax.sgd(0.1))
    model, optimizer = make(so.sparsify(inner, so.static(0.5)))
    for seed in range(3):
        step(model, optimizer, *batch(seed))
    assert_zero_where_masked(model, optimizer)


def test_changes_from_the_host_in_place():
    topology = so.rigl(0.6, every=2, stop=100)
    tx = so.sparsify(optax.adam(0.01), topology, host_updates=True)
    model, optimizer = make(tx)
    change = nnx.jit(so.nnx.update_topology)
    before = assert_zero_where_masked(model, optimizer)
    _, grads = step(model, optimizer, *batch(0))
    np.testing.assert_array_equal(assert_zero_where_masked(model, optimizer), before)
    change(model, optimizer, grads)
    after = assert_zero_where_masked(model, optimizer)
    assert (after != before).any() and after.sum() == before.sum()
    grown = after & ~before
    np.testing.assert_array_equal(np.asarray(model.first.kernel[...])[grown], 0.0)
    weights = np.asarray(model.first.kernel[...])
    step(model, optimizer, *batch(1))
    np.testing.assert_array_equal(model.first.kernel[...], weights)


def test_changes_from_the_host_that_read_no_gradients():
    topology = so.set_(0.6, every=2, stop=100)
    tx = so.sparsify(optax.sgd(0.01), topology, host_updates=True)
    model, optimizer = make(tx)
    before = assert_zero_where_masked(model, optimizer)
    nnx.jit(so.nnx.update_topology)(model, optimizer, None)
    after = assert_zero_where_masked(model, optimizer)
    assert (after != before).any() and after.sum() == before.sum()


def test_a_dense_optimizer_is_an_error():
    with pytest.raises(ValueError, match="no masks found"):
        make(optax.adam(0.1))


@pytest.mark.parametrize(
    "make_topology", [so.rigl, pytest.param(so.set_, marks=pytest.mark.slow)]
)
def test_packed_and_compact_masks_train_the_same(make_topology):
    topology = make_topology(0.6, every=3, stop=60, track_explored=True)
    kernels = []
    for options in ({}, {"packed": True}, {"compact": True}):
        tx = so.sparsify(optax.sgd(0.2, momentum=0.9), topology, **options)
        model, optimizer = make(tx)
        for seed in range(8):
            step(model, optimizer, *batch(seed))
        assert_zero_where_masked(model, optimizer)
        kernels.append(np.asarray(model.first.kernel[...]))
    np.testing.assert_array_equal(*kernels[:2])
    np.testing.assert_allclose(kernels[2], kernels[0], rtol=1e-5, atol=1e-7)


def test_a_compact_model_is_trained_in_place_as_a_dense_one():
    topology = so.rigl(
        0.75, every=2, stop=90, drop_fraction=0.9, structure=so.Block((16, 16))
    )
    tx = so.sparsify(optax.adam(0.01), topology, host_updates=True)
    x = jax.random.normal(jax.random.key(1), (8, 64))

    def make():
        model = nnx.Linear(64, 96, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        so.nnx.mask_model(model, optimizer)
        return model, optimizer

    def loss(model, x):
        return jnp.mean((jnp.tanh(so.nnx.sparse_model(model, by="block")(x)) - 1) ** 2)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(loss)(model, x))

    @nnx.jit
    def update(model, optimizer, x):
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        gradient = so.dense_gradient(
            lambda params, x: loss(nnx.merge(graph, params, rest), x)
        )
        so.nnx.update_topology(model, optimizer, gradient(params, x))

    def train(model, optimizer):
        for number in range(4):
            if topology.due(number):
                update(model, optimizer, x)
            step(model, optimizer, x)

    dense, compact = make(), make()
    so.nnx.compact_model(*compact)
    before = so.get_masks(compact[1])["kernel"]
    assert so.optimizer_bytes(compact[1].opt_state) < so.optimizer_bytes(
        dense[1].opt_state
    )
    train(*dense)
    train(*compact)
    assert (so.get_masks(compact[1])["kernel"] != before).any()
    so.nnx.dense_model(*compact)
    states = [nnx.as_pure(nnx.state(made)) for made in (dense, compact)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states
    )

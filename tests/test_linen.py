"""Flax linen's train state, sparse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import sparseopt_jax as so
from tests.compilations import compilations

KEY = jax.random.key(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(16, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(4)(x)


def loss(params, state, x, y):
    logits, changed = state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats}, x, mutable=["batch_stats"]
    )
    error = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return error, changed["batch_stats"]


def make(tx, cls=so.linen.TrainState, **kwargs):
    model = Net()
    variables = model.init(KEY, jnp.ones((2, 8)))
    return cls.create(apply_fn=model.apply, tx=tx, **variables, **kwargs)


def batch(seed):
    x = jax.random.normal(jax.random.key(seed), (32, 8))
    return x, (x[:, 0] > 0) + 2 * (x[:, 1] > 0)


def step(state, x, y):
    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(
        state.params, state, x, y
    )
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), value


def test_trains_sparse_from_the_start_and_compiles_once():
    state = make(
        so.sparse_sgd(0.2, so.rigl(0.6, every=5, stop=60), momentum=0.9, sparseopt=True)
    )
    jitted = jax.jit(step)
    losses = []
    with compilations() as compiled:
        for seed in range(80):
            kernel, mask = (
                t["Dense_0"]["kernel"] for t in (state.params, so.get_masks(state))
            )
            assert not np.asarray(kernel)[~np.asarray(mask)].any()
            state, value = jitted(state, *batch(seed))
            losses.append(float(value))
    assert compiled.count("step") == 1
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert int(state.step) == 80


def test_batch_stats_reach_the_optimizer_and_the_state():
    links = {"Dense_0/kernel": "BatchNorm_0"}
    inner = optax.chain(so.scale_by_batch_variance(links), optax.sgd(0.1))
    state = make(so.sparsify(inner, so.static(0.5)))
    assert (state.batch_stats["BatchNorm_0"]["var"] == 1).all()
    state, _ = jax.jit(step)(state, *batch(0))
    assert (state.batch_stats["BatchNorm_0"]["var"] != 1).all()
    # Without new statistics those at hand are handed over.
    state.apply_gradients(grads=state.params)


def test_extra_arguments_reach_the_optimizer_and_fields_are_replaced():
    class WithAverage(so.linen.TrainState):
        average: dict = struct.field(default_factory=dict)

    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: (), update)
    state = make(so.sparsify(spy, so.static(0.5)), WithAverage, average={"a": 1})
    state = state.apply_gradients(grads=state.params, value=3.0, average={"a": 2})
    assert seen["value"] == 3.0 and seen["average"] == {"a": 2}
    assert state.average == {"a": 2} and "batch_stats" in seen


def test_a_dense_optimizer_works_too():
    state = make(optax.adam(0.1))
    state, _ = jax.jit(step)(state, *batch(0))
    assert int(state.step) == 1


def test_zeros_stay_with_an_optimizer_behind_the_masks():
    tx = optax.chain(
        so.sparseopt(so.rigl(0.6, every=5, stop=60)), optax.sgd(0.2, momentum=0.9)
    )
    state = make(tx)
    first = so.get_masks(state)["Dense_0"]["kernel"]
    for seed in range(12):
        state, _ = step(state, *batch(seed))
        kernel, mask = (
            t["Dense_0"]["kernel"] for t in (state.params, so.get_masks(state))
        )
        np.testing.assert_array_equal(np.asarray(kernel)[~np.asarray(mask)], 0.0)
    assert (first != mask).any()

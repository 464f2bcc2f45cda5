"""Flax linen's train state, sparse."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.jax_utils import replicate, unreplicate
from flax.serialization import from_state_dict, to_state_dict

import sparseopt_jax as so
from tests.helpers.compilations import compilations

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
    # Without new statistics the current ones are passed.
    state.apply_gradients(grads=state.params)


def test_extra_arguments_reach_the_optimizer_and_fields_are_replaced():
    class WithAverage(so.linen.TrainState):
        average: dict = struct.field(default_factory=dict)

    seen = {}

    def update(updates, state, params=None, *, batch_stats, **extra_args):
        seen.update(extra_args, batch_stats=batch_stats)
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
    jitted = jax.jit(step)
    for seed in range(12):
        state, _ = jitted(state, *batch(seed))
        kernel, mask = (
            t["Dense_0"]["kernel"] for t in (state.params, so.get_masks(state))
        )
        np.testing.assert_array_equal(np.asarray(kernel)[~np.asarray(mask)], 0.0)
    assert (first != mask).any()


class WithKey(so.linen.TrainState):
    dropout_rng: jax.Array


class LikeFlaxImagenet(so.linen.TrainState):
    batch_stats: Any
    dynamic_scale: Any


class AddedInTurn(WithKey):
    ema: Any = None
    loss_scale: jax.Array
    schedule: Any = struct.field(pytree_node=False, default=None)


STATES = {
    WithKey: {"dropout_rng": KEY},
    LikeFlaxImagenet: {"dynamic_scale": jnp.float32(2.0)},
    AddedInTurn: {"dropout_rng": KEY, "loss_scale": jnp.float32(2.0)},
}


@pytest.mark.parametrize("cls", STATES)
def test_a_derived_state_may_have_fields_without_defaults(cls):
    def flat(state):
        return jax.tree.map(
            lambda x: (
                jax.random.key_data(x)
                if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
                else x
            ),
            state,
        )

    tx = so.sparse_sgd(0.1, so.static(0.5), momentum=0.9)
    state = make(tx, cls, **STATES[cls])
    stepped, _ = jax.jit(step)(state, *batch(0))
    assert type(stepped) is cls and int(stepped.step) == 1
    assert set(stepped.batch_stats) == {"BatchNorm_0"}
    # As stored and copied to devices.
    stepped = flat(stepped)
    loaded = from_state_dict(flat(state), to_state_dict(stepped))
    jax.tree.map(np.testing.assert_array_equal, loaded, stepped)
    alone = unreplicate(replicate(stepped, jax.local_devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, alone, stepped)
    for name, value in STATES[cls].items():
        assert getattr(state.replace(**{name: None}), name) is None
        assert getattr(state, name) is value


def test_states_are_still_made_by_position():
    class WithAverage(so.linen.TrainState):
        average: Any = None

    state = WithAverage(0, None, {}, optax.sgd(0.1), (), "statistics", "average")
    assert (state.batch_stats, state.average) == ("statistics", "average")
    with pytest.raises(TypeError, match="dropout_rng"):
        make(optax.sgd(0.1), WithKey)


def test_what_a_line_search_asks_for_reaches_it():
    seen = {}

    def update(updates, state, params=None, *, value, grad, value_fn):
        seen.update(value=value, grad=grad, value_fn=value_fn)
        return updates, state

    searching = optax.GradientTransformationExtraArgs(lambda params: (), update)
    state = make(searching).replace(batch_stats=None)
    given = {"value": 3.0, "grad": state.params, "value_fn": loss}
    state = state.apply_gradients(grads=state.params, **given)
    assert seen == given and int(state.step) == 1

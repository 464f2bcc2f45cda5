"""Zeros at inactive weights, beside weights that stay dense."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparseopt_jax as so


def test_apply_updates_zeroes_by_the_new_masks():
    params = {"k": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.ones(2)}
    masks = {"k": jnp.array([[True, False], [False, True]]), "b": optax.MaskedNode()}
    tx = so.sparsify(optax.sgd(0.1), so.static(masks=masks))
    updates = jax.tree.map(jnp.ones_like, params)
    params = so.apply_updates(params, updates, tx.init(params))
    np.testing.assert_array_equal(params["k"], [[2, 0], [0, 5]])
    np.testing.assert_array_equal(params["b"], 2.0)


GRADS = {"k": jnp.sin(3 * jnp.arange(48.0)).reshape(6, 8)}
MOVING = so.rigl(0.5, every=2, start=1, stop=40, drop_fraction=0.5)


def test_lookahead_around_keeps_fast_and_slow_weights_sparse():
    tx = optax.lookahead(so.sparsify(optax.sgd(0.1), MOVING), 3, 0.5)
    params: Any = optax.LookaheadParams.init_synced(GRADS)
    state: Any = tx.init(params)
    update: Any = jax.jit(tx.update)
    masks = [so.get_masks(state)["k"]]
    for step in range(7):
        grads = {"k": jnp.cos((step + 1) * params.fast["k"])}
        updates, state = update(grads, state, params)
        params = so.apply_updates(params, updates, state)
        masks.append(so.get_masks(state)["k"])
        for weights in params:
            assert not jnp.where(masks[-1], 0, weights["k"]).any()
            assert weights["k"].any()
    assert (masks[0] & ~masks[-1]).any()


@pytest.mark.parametrize(
    ("around", "message"),
    [
        (
            lambda tx: optax.lookahead(tx, 3, 0.5),
            "LookaheadState.*so.apply_updates",
        ),
        (
            lambda tx: optax.contrib.schedule_free(tx, 0.1),
            r"sparsify\(schedule_free\(",
        ),
        (optax.contrib.mechanize, r"MechanicState.*sparsify\(mechanize\("),
    ],
)
@pytest.mark.parametrize(
    "begin",
    [
        lambda tx: so.apply_masks(GRADS, tx.init(GRADS)),
        lambda tx: so.linen.TrainState.create(apply_fn=None, params=GRADS, tx=tx),
    ],
)
def test_averages_around_are_announced(around, message, begin):
    with pytest.warns(UserWarning, match=message):
        begin(optax.chain(around(so.sparsify(optax.sgd(0.1), MOVING))))
    begin(around(so.sparsify(optax.sgd(0.1), so.ste(0.5))))  # its weights stay dense


def beside_dense_weights(rest):
    """Return an optimizer of a part with sparse weights, and of one with dense ones."""
    return optax.partition(
        {"x": rest, "y": so.sparsify(optax.sgd(0.1), so.ste(0.5))},
        functools.partial(jax.tree_util.tree_map_with_path, lambda at, _: at[0].key),
    )


def test_only_the_owners_of_sparse_weights_zero_them():
    params = {"x": jnp.ones((4, 4)), "y": jnp.arange(1.0, 17).reshape(4, 4)}
    topology = so.static(0.75)
    tx = beside_dense_weights(optax.chain(so.sparseopt(topology), optax.sgd(0.1)))
    state = tx.init(params)
    masks = so.get_masks(state)
    assert int(masks["x"].sum()) == 4 and int(masks["y"].sum()) == 8
    moved = so.apply_updates(params, jax.tree.map(jnp.zeros_like, params), state)
    np.testing.assert_array_equal(moved["x"], masks["x"])
    np.testing.assert_array_equal(moved["y"], params["y"])
    for found in (
        so.linen.TrainState.create(apply_fn=None, params=params, tx=tx).params,
        weights_of_an_nnx_model(params, tx),
    ):
        np.testing.assert_array_equal(found["x"], masks["x"])
        np.testing.assert_array_equal(found["y"], params["y"])


def weights_of_an_nnx_model(params, tx):
    class Net(nnx.Module):
        def __init__(self):
            self.x, self.y = nnx.Param(params["x"]), nnx.Param(params["y"])

    model = Net()
    so.nnx.mask_model(model, nnx.Optimizer(model, tx, wrt=nnx.Param))
    return {"x": model.x[...], "y": model.y[...]}


def test_an_inner_optimizer_is_reset_with_the_weights_of_its_owner():
    def init(params):
        return {"initial": params}

    def update(updates, state, params=None):
        return updates, state

    params = {"x": jnp.ones((4, 4)), "y": jnp.arange(1.0, 17).reshape(4, 4)}
    keeps_weights = optax.GradientTransformation(init, update)
    tx = beside_dense_weights(optax.chain(so.sparseopt(so.static(0.75)), keeps_weights))
    state = tx.init(params)
    new = so.reset_inner(tx, params, state).inner_states["x"].inner_state[1]
    np.testing.assert_array_equal(new["initial"]["x"], so.get_masks(state)["x"])

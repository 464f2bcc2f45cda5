"""Masks in the forward pass: the dense weights are trained."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.forward_training import (
    HALF,
    KAST,
    KEY,
    PARAMS,
    RNG,
    grads_at,
    momentum,
    trained,
)
from tests.helpers.ranking import largest


def test_masks_are_the_largest_of_the_weights_after_every_step():
    before = None
    for params, state in trained(HALF):
        mask = np.asarray(so.get_masks(state)["k"])
        np.testing.assert_array_equal(mask, largest(params["k"], 24))
        np.testing.assert_array_equal(
            state.topology_state.fan_ins["k"], mask.sum(0, keepdims=True)
        )
        if before is not None:
            assert int(state.topology_state.grown["k"]) == (mask & ~before).sum()
        before = mask
    assert (before != so.get_masks(trained(HALF)[0][1])["k"]).any()


def test_dense_weights_are_those_of_the_inner_optimizer():
    inner = momentum()
    params, state = PARAMS, inner.init(PARAMS)
    update = jax.jit(inner.update)
    for step, (found, _) in enumerate(trained(HALF)[1:]):
        updates, state = update(grads_at(step), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(found["k"], params["k"], rtol=1e-6)
        assert (np.asarray(found["k"]) != 0).all()


def test_masks_are_chosen_when_due():
    # After steps 1 and 4.
    method = so.ste(0.5, every=3, start=1, stop=5)
    assert [step for step in range(8) if method.due(step)] == [1, 4]
    assert [method.next_due(jnp.int32(step)) for step in range(3)] == [1, 1, 4]
    history = trained(method)
    chosen_by = {0: 0, 1: 0, 2: 2, 3: 2, 4: 2, 5: 5, 6: 5}
    for moment, (_, state) in enumerate(history):
        weights = history[chosen_by[moment]][0]["k"]
        np.testing.assert_array_equal(so.get_masks(state)["k"], largest(weights, 24))
    changed_at = [int(state.topology_state.updated_at) for _, state in history]
    assert changed_at == [-1, -1, 1, 1, 1, 4, 4]


@pytest.mark.parametrize("structure", [so.NM(2, 4), so.Channel(), so.Block(2)], ids=str)
def test_masks_keep_to_the_structure(structure):
    method = so.ste(0.5, structure=structure)
    masks, _ = method.init(KEY, PARAMS)
    so.static(masks=masks, structure=structure).leaves(PARAMS)
    plans = {plan.path: plan for plan in method.leaves(PARAMS)}
    assert int(masks["k"].sum()) == plans["k"].active == 24
    sums = plans["k"].units.sum(jnp.abs(PARAMS["k"]))
    chosen = np.asarray(plans["k"].units.all(masks["k"]))
    if plans["k"].units.is_layer_wide:
        np.testing.assert_array_equal(chosen, largest(sums, chosen.sum()))
    else:
        kept = np.where(chosen, sums, np.inf).min(1)
        assert (kept >= np.where(chosen, -1, sums).max(1)).all()


def test_shapes_have_masks_of_the_same_numbers():
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    tx = so.sparsify(momentum(), so.top_kast(0.5, trained_sparsity=0.25))
    state = tx.init(shapes)
    assert int(state.masks["k"].sum()) == 24
    assert int(state.topology_state.trained["k"].sum()) == 36
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))


@pytest.mark.parametrize("method", [HALF, KAST], ids=lambda method: method.name)
def test_dense_weights_are_never_zeroed(method):
    tx = so.sparsify(optax.sgd(0.1), method)
    state = tx.init(PARAMS)
    updates, state = tx.update(grads_at(0), state, PARAMS)
    expected = optax.apply_updates(PARAMS, updates)
    found = so.apply_updates(PARAMS, updates, state)
    chex.assert_trees_all_equal(found, expected)
    forward = so.apply_masks(expected, state)
    np.testing.assert_array_equal(forward["k"] != 0, so.get_masks(state)["k"])
    begin = so.linen.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    chex.assert_trees_all_equal(begin.params, PARAMS)
    after = begin.apply_gradients(grads=grads_at(0))
    chex.assert_trees_all_equal(after.params, expected)


def test_a_train_step_sees_masked_weights_and_trains_dense_ones():
    def loss_fn(params, x):
        return jnp.mean((x @ params["k"] + params["b"]) ** 2)

    tx = so.sparsify(optax.sgd(0.1), HALF)
    state = so.linen.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    x = jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32)
    new, metrics = so.make_train_step(loss_fn)(state, x)
    forward = so.apply_masks(PARAMS, state.opt_state)
    loss, grads = jax.value_and_grad(loss_fn)(forward, x)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(
        new.params["k"], PARAMS["k"] - 0.1 * grads["k"], rtol=1e-5
    )
    assert float(loss_fn(PARAMS, x)) != pytest.approx(float(loss), rel=1e-3)


def assert_same(history, expected, rtol=1e-5):
    for (params, state), (other, own_state) in zip(history, expected, strict=False):
        np.testing.assert_array_equal(
            so.get_masks(state)["k"], so.get_masks(own_state)["k"]
        )
        np.testing.assert_allclose(params["k"], other["k"], rtol=rtol, atol=1e-6)


def test_compiled_equals_eager():
    eager = trained(KAST, 4, compiled=False)
    assert_same(eager, trained(KAST))
    for (_, state), (_, other) in zip(eager, trained(KAST), strict=False):
        assert jax.tree.structure(state) == jax.tree.structure(other)


def test_packed_masks_are_the_same():
    assert_same(trained(KAST, packed=True), trained(KAST), rtol=0)


def test_the_state_can_be_carried():
    tx = so.sparsify(momentum(), KAST)

    def step(now, grads):
        params, state = now
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[grads_at(step) for step in range(6)]
    )
    now, _ = jax.jit(lambda now: jax.lax.scan(step, now, stacked))(
        (PARAMS, tx.init(PARAMS))
    )
    assert_same([now], trained(KAST)[-1:])


@pytest.mark.parametrize("packed", [False, True], ids=["bools", "packed"])
def test_choices_from_the_host_are_those_within_the_step(packed):
    tx = so.sparsify(momentum(), KAST, host_updates=True, packed=packed)
    update = jax.jit(tx.update)
    change = jax.jit(functools.partial(so.update_topology, tx))
    params, state = PARAMS, tx.init(PARAMS)
    history = [(params, state)]
    for step in range(6):
        updates, state = update(grads_at(step), state, params)
        params = optax.apply_updates(params, updates)
        if KAST.due(step):
            before = params
            state, params = change(grads_at(step), state, params)
            chex.assert_trees_all_equal(params, before)
        history.append((params, state))
    assert_same(history, trained(KAST))
    assert int(state.topology_state.updated_at) == 3


def test_within_multi_steps_masks_follow_the_steps_that_are_taken():
    tx = optax.MultiSteps(so.sparsify(momentum(), HALF), 2).gradient_transformation()
    params, state = PARAMS, tx.init(PARAMS)
    update = jax.jit(tx.update)
    for step in range(6):
        updates, state = update(grads_at(step // 2), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(
            so.get_masks(state)["k"], largest(params["k"], 24)
        )
    assert_same([(params, state)], [trained(HALF)[3]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: so.ste(), ValueError, "sparsity must be given"),
        (lambda: so.ste(1.0), ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
        (lambda: so.ste(0.5, masks=PARAMS), TypeError, "argument 'masks'"),
        (lambda: so.sr_ste(min_fan_in=1), TypeError, "argument 'min_fan_in'"),
        (lambda: so.ste(0.5, every=0), ValueError, "every must be at least 1 step"),
        (lambda: so.sr_ste(decay=-0.1), ValueError, "decay must be at .* got -0.1"),
        (lambda: so.sr_ste(decay=np.nan), ValueError, "decay must be at .* got nan"),
        (
            lambda: so.top_kast(0.5, trained_sparsity=0.4, penalty=-1.0),
            ValueError,
            "penalty must be at least 0, got -1.0",
        ),
        (
            lambda: so.top_kast(0.5, trained_sparsity=0.6),
            ValueError,
            "trained_sparsity must be at most sparsity = 0.5, got 0.6",
        ),
        (
            lambda: so.top_kast(0.5, trained_sparsity=-0.1),
            ValueError,
            r"trained_sparsity must be in \[0, 1\), got -0.1",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_calls_are_named():
    tx = so.sparsify(optax.sgd(0.1), HALF)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"tx.update\(grads, opt_state, params\)"):
        tx.update(PARAMS, state)
    with pytest.raises(ValueError, match="masks must not be passed to update"):
        tx.update(PARAMS, state, PARAMS, masks=state.masks)
    with pytest.raises(
        TypeError, match=r"ste keeps the weights .* dense, which needs sparsify"
    ):
        so.sparseopt(HALF)

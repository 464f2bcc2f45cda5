"""The ready-made optimizers equal the chains in their docstrings."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

KEY = jax.random.key(0)
PARAMS = {
    "kernel": jax.random.normal(KEY, (12, 8)),
    "bias": jnp.ones(8),
    "scale": jnp.ones((2, 8)),
}
MASK = {"kernel": True, "bias": False, "scale": False}
TOPOLOGY = so.rigl(0.75, every=3, stop=20)
SCHEDULE = optax.linear_schedule(0.1, 0.0, 20)


def train(tx, steps=8):
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    update = jax.jit(tx.update)
    for seed in range(steps):
        noise = jax.random.normal(jax.random.key(seed), (8,))
        grads = jax.tree.map(lambda p, noise=noise: p - noise, params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


ALIASES = [so.sparse_sgd, so.sparse_adamw, so.sparse_lars, so.sparse_lamb]


@pytest.mark.parametrize("alias", ALIASES)
def test_nothing_is_corrected_unless_asked(alias):
    assert inspect.signature(alias).parameters["sparseopt"].default is False


@pytest.mark.parametrize("alias", [*ALIASES, so.smet])
@pytest.mark.parametrize("option", ["packed", "compact"])
def test_masks_are_kept_as_sparsify_keeps_them(alias, option):
    options = {"packed": False, "compact": False} | {option: True}
    ready = alias(0.1, TOPOLOGY, **options).init(PARAMS)
    by_hand = so.sparsify(optax.sgd(0.1), TOPOLOGY, **options).init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, ready.masks, by_hand.masks)


@pytest.mark.parametrize("alias", [*ALIASES, so.smet])
def test_updates_of_the_masks_may_be_left_to_the_host(alias):
    tx = alias(0.1, so.set_(0.75, every=1, stop=20), host_updates=True)
    state = tx.init(PARAMS)
    _, new = tx.update(PARAMS, tx.update(PARAMS, state, PARAMS)[1], PARAMS)
    jax.tree.map(np.testing.assert_array_equal, new.masks, state.masks)


@pytest.mark.parametrize("sparseopt", [True, False])
def test_sparse_sgd(sparseopt):
    first = [so.scale_by_sparseopt()] if sparseopt else []
    by_hand = optax.chain(
        *first,
        optax.add_decayed_weights(1e-2, MASK),
        optax.sgd(SCHEDULE, momentum=0.9, nesterov=True),
    )
    ready = so.sparse_sgd(
        SCHEDULE,
        TOPOLOGY,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-2,
        sparseopt=sparseopt,
        key=3,
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        train(ready),
        train(so.sparsify(by_hand, TOPOLOGY, key=3)),
    )


@pytest.mark.parametrize("sparseopt", [True, False])
def test_sparse_adamw(sparseopt):
    between = [so.scale_by_sparseopt()] if sparseopt else []
    by_hand = optax.chain(
        optax.scale_by_adam(0.8, 0.95, 1e-6),
        *between,
        optax.add_decayed_weights(1e-2, MASK),
        optax.scale_by_learning_rate(SCHEDULE),
    )
    options = {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 1e-2, "key": 3}
    ready = so.sparse_adamw(SCHEDULE, TOPOLOGY, sparseopt=sparseopt, **options)
    jax.tree.map(
        np.testing.assert_array_equal,
        train(ready),
        train(so.sparsify(by_hand, TOPOLOGY, key=3)),
    )


@pytest.mark.parametrize("make", [so.sparse_sgd, so.sparse_adamw])
def test_the_correction_makes_a_difference(make):
    with_it, without = (train(make(0.1, TOPOLOGY, sparseopt=s)) for s in (True, False))
    assert not np.allclose(with_it["kernel"], without["kernel"], rtol=1e-2)

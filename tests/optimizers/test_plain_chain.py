"""Masks and SparseOpt as a link of a plain chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

KEY = jax.random.key(0)


def test_the_first_link_of_a_plain_chain_corrects_and_masks():
    mask = jnp.arange(8)[:, None] < jnp.array([1, 4, 8])
    params = {"w": jnp.ones((8, 3)), "b": jnp.ones(3)}
    grads = {"w": jax.random.normal(KEY, (8, 3)), "b": jnp.ones(3)}
    tx = optax.chain(
        so.sparseopt(so.static(masks={"w": mask, "b": None})), optax.sgd(0.1)
    )
    state = tx.init(params)
    params = so.apply_masks(params, state)
    updates, state = tx.update(grads, state, params)
    params = so.apply_updates(params, updates, state)
    density = np.array([1, 4, 8]) / 8
    scaled = grads["w"] * np.sqrt(density / density.mean())
    np.testing.assert_allclose(
        params["w"], np.where(mask, 1 - 0.1 * scaled, 0), rtol=1e-6
    )
    np.testing.assert_allclose(params["b"], 0.9)


@pytest.mark.parametrize("make", [so.set_, so.rigl])
def test_the_first_link_moves_the_topology_and_keeps_exact_zeros(make):
    params = {"w": jax.random.normal(KEY, (12, 8)), "b": jnp.zeros(8)}
    tx = optax.chain(
        so.sparseopt(make(0.75, every=3, stop=100)), optax.sgd(0.1, momentum=0.9)
    )
    state = tx.init(params)
    params = so.apply_masks(params, state)
    first = so.get_masks(state)["w"]

    @jax.jit
    def step(params, state, key):
        grads = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), params)
        updates, state = tx.update(grads, state, params)
        return so.apply_updates(params, updates, state), state

    for seed in range(10):
        params, state = step(params, state, jax.random.key(seed))
        mask = so.get_masks(state)["w"]
        assert int(mask.sum()) == 24
        assert not np.asarray(params["w"])[~np.asarray(mask)].any()
    assert (mask != first).any()

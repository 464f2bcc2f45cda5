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


def trained(make, **options):
    """Return the first masks, and parameters and masks after ten steps of a chain."""
    params = {"w": jax.random.normal(KEY, (12, 8)), "b": jnp.zeros(8)}
    topology = make(0.75, every=3, stop=100)
    link = so.sparseopt(topology, **options)
    tx = optax.chain(link, optax.sgd(0.1, momentum=0.9))
    state = tx.init(params)
    params = so.apply_masks(params, state)
    first = so.get_masks(state)["w"]
    from_host = options.get("host_updates", False)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return so.apply_updates(params, updates, state), state

    @jax.jit
    def update(params, state, grads):
        state, params = so.update_topology(tx, grads, state, params)
        return params, state

    for count in range(10):
        noise = jax.random.normal(jax.random.key(count), (12, 8))
        grads = {"w": params["w"] + noise, "b": params["b"]}
        due = from_host and topology.due(count)
        if due and topology.replaces_step:
            params, state = update(params, state, grads)
        params, state = step(params, state, grads)
        if due and not topology.replaces_step:
            params, state = update(params, state, grads)
        mask = so.get_masks(state)["w"]
        assert int(mask.sum()) == 24
        assert not np.asarray(params["w"])[~np.asarray(mask)].any()
    return first, params, mask


@pytest.mark.parametrize("make", [so.set_, so.rigl])
def test_the_first_link_moves_the_topology_and_keeps_exact_zeros(make):
    first, params, mask = trained(make)
    assert (mask != first).any()
    _, from_bits, same_mask = trained(make, packed=True)
    np.testing.assert_array_equal(mask, same_mask)
    np.testing.assert_array_equal(params["w"], from_bits["w"])


@pytest.mark.parametrize("make", [so.set_, so.rigl])
def test_the_host_updates_the_masks_of_a_link(make):
    first, params, mask = trained(make, host_updates=True)
    assert (mask != first).any()
    if make is so.rigl:  # at the same steps, before them
        _, in_graph, same_mask = trained(make)
        np.testing.assert_array_equal(mask, same_mask)
        np.testing.assert_allclose(params["w"], in_graph["w"], rtol=1e-6)

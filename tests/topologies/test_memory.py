"""Growth that remembers gradients of earlier steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.host_loop import step_with_update
from tests.helpers.single_updates import KEY


def averaged(steps, **options):
    options = {"every": 5, "start": 3, "stop": 40} | options
    return so.rigl(0.5, averaged_steps=steps, drop_fraction=0.5, **options)


def test_the_mean_is_of_the_window_before_a_change():
    # Updates at 3, 8, 13: windows 1-3, 6-8, 11-13.
    topology = averaged(3)
    grads = np.random.default_rng(0).normal(size=(14, 4, 4)).astype(np.float32)
    _, state = topology.init(KEY, {"w": grads[0]})
    observe = jax.jit(topology.observe)
    for count, grad in enumerate(grads):
        state = observe(jnp.int32(count), state, {"w": grad})
        if topology.due(count):
            mean = grads[count - 2 : count + 1].mean(0)
            np.testing.assert_allclose(state.memory["w"] / 3, mean, rtol=1e-5)


def test_growth_is_by_the_mean_and_by_nothing_outside_of_it():
    params = {"w": jax.random.normal(KEY, (6, 6))}
    tx = so.sparsify(optax.sgd(0.0), averaged(3))
    first = tx.init(params)
    params = so.apply_masks(params, first)
    update = jax.jit(tx.update)
    grads = np.random.default_rng(1).normal(size=(9, 6, 6)).astype(np.float32)

    def masks_of(grads):
        state, masks = first, []
        for grad in grads:
            _, state = update({"w": grad}, state, params)
            masks.append(np.asarray(so.get_masks(state)["w"]))
        return masks

    masks = masks_of(grads)
    old, new = masks[7], masks[8]
    active = np.where(old, np.abs(params["w"]), -1)
    dropped = int(0.25 * (1 + np.cos(np.pi * 8 / 40)) * old.sum())
    kept = np.zeros(36, bool)
    kept[np.argsort(-active.ravel(), kind="stable")[: old.sum() - dropped]] = True
    mean = np.where(kept.reshape(6, 6), -1, np.abs(grads[6:9].mean(0)))
    grown = np.zeros(36, bool)
    grown[np.argsort(-mean.ravel(), kind="stable")[:dropped]] = True
    np.testing.assert_array_equal(new, (kept | grown).reshape(6, 6))
    assert (grown != kept)[~old.ravel()].any()
    # Gradients outside the windows, however large, change nothing; those inside do.
    loud = grads.copy()
    loud[[0, 4, 5]] *= 1e6
    np.testing.assert_array_equal(masks_of(loud), masks)
    loud[6, ::2] *= 1e6
    assert (masks_of(loud)[8] != new).any()


@pytest.mark.parametrize("make", [functools.partial(averaged, 3), so.snfs])
def test_remembered_gradients_from_the_host_are_those_within_the_step(make):
    topology = make() if make is not so.snfs else so.snfs(0.5, every=4, stop=30)
    params = {"k": jax.random.normal(KEY, (6, 6)), "b": jnp.zeros(6)}
    runs = []
    for host_updates in (False, True):
        tx = so.sparsify(optax.sgd(0.1), topology, host_updates=host_updates)
        update = jax.jit(tx.update)
        change = jax.jit(functools.partial(so.update_topology, tx))
        state = tx.init(params)
        p, masks = so.apply_masks(params, state), []
        for step in range(10):
            keys = jax.random.split(jax.random.key(step))
            grads = {
                "k": jax.random.normal(keys[0], (6, 6)),
                "b": jax.random.normal(keys[1], (6,)),
            }
            due = host_updates and topology.due(step)
            state, p = step_with_update(
                topology, update, change, grads, state, p, due=due
            )
            masks.append(so.get_masks(state)["k"])
        np.testing.assert_allclose(p["k"] != 0, masks[-1])
        runs.append((masks, state.topology_state.memory))
    np.testing.assert_array_equal(*(masks for masks, _ in runs))
    np.testing.assert_allclose(*(memory["k"] for _, memory in runs), rtol=1e-6)
    assert (runs[0][0][0] != runs[0][0][-1]).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"averaged_steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"averaged_steps": 1.5}, TypeError, "steps must be an integer, got 1.5"),
        (
            {"averaged_steps": 6},
            ValueError,
            "gradients of 6 steps cannot be averaged if .* updated every 5: average",
        ),
    ],
)
def test_windows_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        so.rigl(0.5, every=5, stop=10, **options)

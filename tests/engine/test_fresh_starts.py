"""Grown weights start with the optimizer's initial state, in every form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.host_loop import step_with_update

PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (6, 8)), "bias": jnp.ones(8)}
GRADS = [
    jax.tree.map(lambda x, k=k: jax.random.normal(k, x.shape), PARAMS)
    for k in jax.random.split(jax.random.key(1), 8)
]
SCHEDULE = {"every": 3, "start": 2, "stop": 6, "drop_fraction": 0.5}
FORMS = {
    "step": {},
    "packed": {"packed": True},
    "host": {"host_updates": True},
    "compact": {"compact": True},
}
# Optimizers whose initial state a zero gradient changes, or whose state has a shape of
# its own.
INNER = {
    "initial_scale": lambda: optax.rmsprop(0.01, initial_scale=1.0),
    "yogi": lambda: optax.yogi(0.01),
    "sign_in": lambda: so.sign_in(optax.adamw(0.1, weight_decay=0.5), every=100),
    "noise": lambda: optax.chain(
        optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.1, momentum=0.9)
    ),
    "lbfgs": lambda: optax.chain(
        optax.scale_by_lbfgs(memory_size=2), optax.scale(-0.1)
    ),
}


def trained(inner, topology, form, steps=5):
    """Return weights, masks and state of each step, in the form of a plain step."""
    plain = so.sparsify(INNER[inner](), topology)
    tx = so.sparsify(INNER[inner](), topology, **FORMS[form])
    update = jax.jit(tx.update)
    change = jax.jit(functools.partial(so.update_topology, tx))
    state = tx.init(PARAMS)
    params, found = so.apply_masks(PARAMS, state), []
    for count, grads in enumerate(GRADS[:steps]):
        due = form == "host" and bool(topology.due(count))
        state, params = step_with_update(
            topology, update, change, grads, state, params, due=due
        )
        inner_state = so.convert_state(plain, params, state).inner_state
        found.append((params["kernel"], so.get_masks(state)["kernel"], inner_state))
    return found


def per_weight(tree):
    """Return the arrays with an entry, or several, for every weight of the kernel."""
    return [np.asarray(x) for x in jax.tree.leaves(tree) if x.shape[-2:] == (6, 8)]


@pytest.mark.parametrize("method", [so.set_, so.rigl])
@pytest.mark.parametrize("inner", INNER)
def test_grown_weights_start_fresh_in_every_form(inner, method):
    topology = method(0.5, **SCHEDULE)
    # Noise is drawn per entry, so a compact sparsify refuses it.
    forms = [form for form in FORMS if (inner, form) != ("noise", "compact")]
    runs = {form: trained(inner, topology, form) for form in forms}
    (_, before, _), (params, mask, _) = runs["step"][1:3]
    grown = np.asarray(mask & ~before)
    assert grown.any()
    kept = jnp.where(mask & before, params, 0)
    initial = INNER[inner]().init(PARAMS | {"kernel": kept})
    for form, run in runs.items():
        _, _, state = run[2]
        for found, expected in zip(per_weight(state), per_weight(initial), strict=True):
            np.testing.assert_array_equal(
                found[..., grown], expected[..., grown], err_msg=form
            )
        for (one, mask, _), (other, masks, _) in zip(run, runs["step"], strict=True):
            np.testing.assert_array_equal(mask, masks, err_msg=form)
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=form)

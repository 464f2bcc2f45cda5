"""Leaves that the inner optimizer never changes keep their masks and their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

KEYS = jax.random.split(jax.random.key(0))
PARAMS = {
    "base": {"kernel": jax.random.normal(KEYS[0], (12, 16))},
    "head": {"kernel": jax.random.normal(KEYS[1], (16, 4))},
}
LABELS = {"base": "frozen", "head": "trained"}
SCHEDULE = {"every": 2, "stop": 40}
TOPOLOGIES = {
    "set": so.set_(0.6, **SCHEDULE),
    "rigl": so.rigl(0.6, **SCHEDULE),
    "rigl_averaged": so.rigl(0.6, averaged_steps=2, **SCHEDULE),
    "snfs": so.snfs(0.6, **SCHEDULE),
    "srigl": so.srigl(0.6, **SCHEDULE),
    "granet": so.granet(0.8, every=2, stop=40),
    "gradual_magnitude": so.gradual_magnitude(0.8, every=2, stop=40),
    "phases": so.phases(
        (0, so.set_(0.6, **SCHEDULE)), (6, so.rigl(0.6, every=2, start=6, stop=40))
    ),
}
WRAPPERS = {
    "partition": lambda: optax.partition(
        {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()}, LABELS
    ),
    "masked": lambda: optax.chain(
        optax.adam(1e-2),
        optax.masked(optax.set_to_zero(), {"base": True, "head": False}),
    ),
    "scaled_after": lambda: optax.chain(
        optax.masked(optax.set_to_zero(), {"base": True, "head": False}),
        optax.sgd(0.1),
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(WRAPPERS["partition"](), 2),
}
FORMS = {
    "plain": {},
    "packed": {"packed": True},
    "host": {"host_updates": True},
    "compact": {"compact": True},
}


def trained(tx, topology, steps=8, host=False):
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    first = params, so.get_masks(state)
    x = jax.random.normal(jax.random.key(2), (32, 12))

    @jax.jit
    def gradient(params):
        def loss(p):
            return jnp.mean((x @ p["base"]["kernel"] @ p["head"]["kernel"]) ** 2)

        return jax.grad(loss)(params)

    update = jax.jit(tx.update)
    for step in range(steps):
        grads = gradient(params)
        before = topology.replaces_step
        if host and before and topology.due(step):
            state, params = so.update_topology(tx, grads, state, params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if host and not before and topology.due(step):
            state, params = so.update_topology(tx, grads, state, params)
    return first, (params, so.get_masks(state))


def assert_base_rests_and_head_moves(first, last):
    for one, other in zip(first, last, strict=True):
        np.testing.assert_array_equal(one["base"]["kernel"], other["base"]["kernel"])
    assert (first[1]["head"]["kernel"] != last[1]["head"]["kernel"]).any()


@pytest.mark.filterwarnings("ignore:the inner optimizer never changes")
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_no_topology_touches_them(name):
    topology = TOPOLOGIES[name]
    tx = so.sparsify(WRAPPERS["partition"](), topology)
    assert_base_rests_and_head_moves(*trained(tx, topology))


@pytest.mark.filterwarnings("ignore:the inner optimizer never changes")
@pytest.mark.parametrize(
    ("form", "wrapper"),
    [
        pytest.param(
            form,
            wrapper,
            marks=(
                [] if form == "plain" or wrapper == "partition" else pytest.mark.slow
            ),
        )
        for form in FORMS
        for wrapper in WRAPPERS
    ],
)
def test_however_they_are_frozen_and_stored(form, wrapper):
    for name in ("set", "rigl"):
        topology = TOPOLOGIES[name]
        tx = so.sparsify(WRAPPERS[wrapper](), topology, **FORMS[form])
        found = trained(tx, topology, host=form == "host")
        assert_base_rests_and_head_moves(*found)


def test_masks_chosen_for_them_are_told():
    tx = so.sparsify(WRAPPERS["partition"](), TOPOLOGIES["rigl"])
    with pytest.warns(UserWarning, match=r"never changes base/kernel: .*where="):
        tx.init(PARAMS)


def test_nothing_is_said_where_they_are_excluded_or_masks_are_given():
    inner = WRAPPERS["partition"]()
    only_head = so.rigl(0.6, where=lambda path, leaf: "head" in path, **SCHEDULE)
    so.sparsify(inner, only_head).init(PARAMS)
    masks = jax.tree.map(lambda x: x > 0, PARAMS)
    so.sparsify(inner, so.rigl(masks=masks, **SCHEDULE)).init(PARAMS)
    so.sparsify(inner, so.static(0.6)).init(PARAMS)


def test_a_learning_rate_of_zero_freezes_nothing():
    topology = TOPOLOGIES["rigl"]
    first, last = trained(so.sparsify(optax.sgd(0.0), topology), topology)
    assert (first[1]["base"]["kernel"] != last[1]["base"]["kernel"]).any()

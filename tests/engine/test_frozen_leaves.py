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


def from_host(trained):
    frozen = optax.masked(optax.set_to_zero(), {"base": True, "head": False})
    inner = optax.chain(trained, frozen)
    return so.sparsify(inner, TOPOLOGIES["rigl"], host_updates=True)


def scaled():
    """Return a transformation whose update needs arguments of its own."""

    def update(updates, state, params=None, *, temperature, **extra_args):
        return optax.tree.scale(temperature, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


ASKING = {
    "value": lambda: optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=3)
    ),
    "loss": lambda: optax.chain(
        optax.sgd(0.1), optax.scale_by_backtracking_linesearch(3)
    ),
    "gradient": lambda: optax.contrib.sam(
        optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True
    ),
    "statistics": lambda: optax.chain(
        so.scale_by_batch_variance({"head/kernel": "norm"}), optax.sgd(0.1)
    ),
    "masks": lambda: optax.chain(
        optax.GradientTransformationExtraArgs(
            optax.init_empty_state, jax.jit(so.scale_by_sparseopt().update)
        ),
        optax.sgd(0.1),
    ),
}


@pytest.mark.parametrize("name", ASKING)
def test_they_are_found_without_the_arguments_of_a_step(name):
    tx = from_host(ASKING[name]())
    with pytest.warns(UserWarning, match="never changes base/kernel"):
        state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    first = params, so.get_masks(state)
    state, params = so.update_topology(tx, PARAMS, state, params)
    assert_base_rests_and_head_moves(first, (params, so.get_masks(state)))


def test_arguments_of_a_transformation_of_ones_own_are_passed():
    tx = from_host(optax.chain(scaled(), optax.sgd(0.1)))
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    first = params, so.get_masks(state)
    with pytest.raises(ValueError, match=r"tx\.update \(TypeError: .*temperature"):
        so.update_topology(tx, PARAMS, state, params)
    change = jax.jit(
        lambda state, params, value: so.update_topology(
            tx, PARAMS, state, params, temperature=value
        )
    )
    state, params = change(state, params, 0.5)
    assert_base_rests_and_head_moves(first, (params, so.get_masks(state)))

"""Optimizer states in the tools that save, send, compare and map pytrees."""

import copy
import functools
import io

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import jax_utils
from jax.experimental import multihost_utils

import sparseopt_jax as so

PARAMS = {
    "dense": {"kernel": jnp.linspace(-1, 1, 72).reshape(8, 9), "bias": jnp.ones(9)},
    "layers": [jnp.linspace(1, 2, 16).reshape(4, 4), jnp.ones(4)],
}
MOVING = so.set_(0.5, every=2, stop=20, track_explored=True)


def chained(topology, **options):
    return optax.chain(
        optax.clip(10.0), so.sparsify(optax.adam(1e-2), topology, **options)
    )


MAKERS = {
    "plain": lambda: chained(MOVING),
    "packed": lambda: chained(MOVING, packed=True),
    "compact": lambda: chained(MOVING, compact=True),
    "compact blocks": lambda: chained(
        so.set_(0.5, every=2, stop=20, structure=so.Block((2, 1))), compact=True
    ),
    "compact and full": lambda: chained(
        so.static(0.5, distribution={"dense/*": 0.5, "layers/*": 0.0}), compact=True
    ),
    "rigl": lambda: chained(so.rigl(0.5, every=2, stop=20)),
    "ste": lambda: chained(so.ste(0.5)),
    "packed ste": lambda: chained(so.ste(0.5), packed=True),
    "top_kast": lambda: chained(
        so.top_kast(0.5, trained_sparsity=0.25, every=2, stop=20)
    ),
    "snfs": lambda: chained(so.snfs(0.5, every=2, stop=20)),
    "phases": lambda: chained(
        so.phases((0, so.static(0.2)), (2, so.rigl(0.5, every=2, start=2, stop=20)))
    ),
    "sparseopt": lambda: optax.chain(
        so.sparseopt(so.set_(0.5, every=2, stop=20)), optax.sgd(0.1, momentum=0.9)
    ),
}
# Their states contain nothing that others lack: they wait for ``make test-slow``.
LATER = ("compact blocks", "rigl", "packed ste", "snfs")
every_form = pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[pytest.mark.slow] if form in LATER else [])
        for form in MAKERS
    ],
)


@functools.cache
def trained(form):
    """Return a transformation, its step, and parameters and state after three steps."""
    tx = MAKERS[form]()

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda x: jnp.sin(3 * x), params)
        updates, state = tx.update(grads, state, params)
        return so.apply_updates(params, updates, state), state

    state = tx.init(PARAMS)
    params = PARAMS
    if not form.endswith(("ste", "kast")):
        params = so.apply_masks(PARAMS, state)
    for _ in range(3):
        params, state = step(params, state)
    return tx, step, params, state


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def by_flax(state, template):
    return flax.serialization.from_bytes(template, flax.serialization.to_bytes(state))


def by_state_dict(state, template):
    as_dict = flax.serialization.to_state_dict(state)
    return flax.serialization.from_state_dict(template, as_dict)


def by_savez(state, template):
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(state))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        leaves = [arrays[name] for name in arrays]
    return jax.tree.structure(template).unflatten(leaves)


def by_equinox(state, template):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, template)


def by_orbax(state, template, directory):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(directory / "state", template)


WAYS = {
    "flax": by_flax,
    "state dict": by_state_dict,
    "savez": by_savez,
    "equinox": by_equinox,
    "numpy": lambda state, _: jax.tree.map(np.asarray, state),
    "deepcopy": lambda state, _: copy.deepcopy(state),
    "device_put": lambda state, _: jax.device_put(state, jax.devices()[0]),
    "broadcast": lambda state, _: multihost_utils.broadcast_one_to_all(state),
}


# Every form in the first way, and the plain one in all ways.
@pytest.mark.parametrize(
    ("form", "way"),
    [
        pytest.param(
            *(form, way),
            marks=[pytest.mark.slow]
            if form in LATER or (form != "plain" and way != "flax")
            else [],
        )
        for form in MAKERS
        for way in WAYS
    ],
)
def test_a_state_comes_back_and_goes_on_bit_for_bit(form, way):
    tx, step, params, state = trained(form)
    back = WAYS[way](state, tx.init(PARAMS))
    assert_same(back, state)
    assert_same(so.get_masks(back), so.get_masks(state))
    assert_same(step(params, back), step(params, state))


@pytest.mark.parametrize("form", ["plain", "packed", "compact", "top_kast"])
def test_numpy_states_step_without_jit(form):
    tx, _, params, state = trained(form)
    numpy = jax.tree.map(np.asarray, state)
    assert_same(tx.update(params, numpy, params), tx.update(params, state, params))


@pytest.mark.parametrize("form", ["plain", "packed", "compact", "compact and full"])
def test_orbax_restores_with_a_target_and_masks_without(form, tmp_path):
    tx, step, params, state = trained(form)
    back = by_orbax(state, tx.init(PARAMS), tmp_path)
    assert_same(step(params, back), step(params, state))
    with ocp.StandardCheckpointer() as checkpointer:
        plain = checkpointer.restore(tmp_path / "state")
    assert isinstance(plain, list) and isinstance(plain[1], dict)
    assert_same(so.get_masks(plain), so.get_masks(state))
    assert_same(so.apply_masks(params, plain), so.apply_masks(params, state))


@every_form
def test_masks_are_found_in_state_dictionaries(form):
    _, _, params, state = trained(form)
    saved = flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))
    expected = so.apply_masks(params, state)
    for tree in (saved, {"opt_state": saved, "step": 3}):
        assert_same(so.apply_masks(params, tree), expected)
    if "ste" not in form and form != "top_kast":
        assert str(so.summary(params, saved)) == str(so.summary(params, state))


few_forms = pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            form, marks=[] if form in ("plain", "packed") else pytest.mark.slow
        )
        for form in MAKERS
    ],
)


@few_forms
def test_states_pass_through_the_tools_that_read_them(form):
    _, _, _, state = trained(form)
    multihost_utils.assert_equal(state, "differs")
    gathered = multihost_utils.process_allgather(state)
    assert jax.tree.structure(gathered) == jax.tree.structure(state)
    assert np.isfinite(optax.tree.norm(state))
    jax.block_until_ready(state)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, state, state)))
    zeros = optax.tree.zeros_like(state)
    assert jax.tree.structure(zeros) == jax.tree.structure(state)
    for leaf in jax.tree.leaves(state):
        np.save(io.BytesIO(), leaf, allow_pickle=False)


@few_forms
def test_states_are_gathered_and_replicated_under_pmap(form):
    _, _, _, state = trained(form)
    replicated = jax_utils.replicate(state)
    gathered = jax.pmap(
        lambda x: jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, "i")[0], x),
        axis_name="i",
    )(replicated)
    assert_same(jax_utils.unreplicate(gathered), state)
    masks = so.get_masks(replicated)
    assert_same(jax_utils.unreplicate(masks), so.get_masks(state))

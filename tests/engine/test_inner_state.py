"""Parameter-like leaves in any optimizer's state, and amended steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.engine.inner_state import map_weight_state


def update_through(step, hold, refresh):
    return InnerProgram.of(step).run((), hold, refresh)


PARAMS = {
    "kernel": jnp.ones((2, 3)),
    "a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
}
MASKS = {
    "kernel": optax.MaskedNode(),
    "a": {"kernel": jnp.ones((2, 3), bool), "bias": optax.MaskedNode()},
}


def touched(tx, params=PARAMS, masks=MASKS):
    """Return the paths of the state's leaves that belong to a sparse weight."""
    state = tx.init(params)
    marked = map_weight_state(lambda mask, leaf, other: "here", masks, state, state)
    leaves = jax.tree_util.tree_leaves_with_path(marked)
    return [jax.tree_util.keystr(path) for path, leaf in leaves if leaf == "here"]


def test_finds_moments_by_the_end_of_their_path():
    assert touched(optax.adam(0.1)) == [
        "[0].mu['a']['kernel']",
        "[0].nu['a']['kernel']",
    ]


def test_finds_them_inside_wrappers():
    labels = {"kernel": "x", "a": {"kernel": "y", "bias": "x"}}
    tx = optax.partition({"x": optax.sgd(0.1), "y": optax.adam(0.1)}, labels)
    assert len(touched(tx)) == 2
    assert (
        len(touched(optax.masked(optax.adam(0.1), {"kernel": False, "a": True}))) == 2
    )
    tx = optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9)
    assert len(touched(tx)) == 1
    assert len(touched(optax.MultiSteps(optax.adam(0.1), 2))) == 3


def test_leaves_of_another_shape_are_no_weights():
    assert touched(optax.scale_by_factored_rms(min_dim_size_to_factor=1)) == []
    assert touched(optax.novograd(0.1)) == ["[0].mu['a']['kernel']"]


def test_memory_of_several_steps_belongs_to_its_weight():
    found = touched(optax.scale_by_lbfgs(memory_size=2))
    names = ("params", "updates", "diff_params_memory", "diff_updates_memory")
    assert found == [f".{name}['a']['kernel']" for name in names]


def test_a_cached_gradient_is_a_field_not_a_parameter_of_that_name():
    masks = {"grad": jnp.ones((2, 3), bool), "value": optax.MaskedNode()}
    params = {"grad": jnp.ones((2, 3)), "value": jnp.float32(1)}
    assert touched(optax.sgd(0.1, momentum=0.9), params, masks) == ["[0].trace['grad']"]
    search = optax.scale_by_backtracking_linesearch(10, store_grad=True)
    assert touched(search) == []


def test_a_bare_array_has_the_empty_path():
    params = jnp.ones((2, 3))
    assert touched(optax.adam(0.1), params, jnp.ones((2, 3), bool)) == [
        "[0].mu",
        "[0].nu",
    ]


def test_updates_come_from_the_amended_state():
    # The step updates a momentum and moves by it: a doubled one doubles the update.
    def step():
        momentum = 3.0 * jnp.arange(4.0)
        return {"u": -momentum, "same": jnp.ones(2)}, (momentum, jnp.int32(1))

    updates, state = update_through(step, lambda s: (2 * s[0], s[1]), lambda s: s)
    np.testing.assert_array_equal(state[0], 6 * jnp.arange(4.0))
    np.testing.assert_array_equal(updates["u"], -6 * jnp.arange(4.0))
    np.testing.assert_array_equal(updates["same"], 1.0)


def test_a_state_that_is_passed_on_is_amended_too():
    old = jnp.arange(3.0)
    updates, state = update_through(
        lambda: (old + 1, old), lambda s: s, lambda s: 5 * s
    )
    np.testing.assert_array_equal(state, 5 * old)
    np.testing.assert_array_equal(updates, old + 1)


def test_the_step_is_compiled_once_and_in_place():
    # The purpose of the function: no copy of the momentum in the compiled step.
    mask = jnp.arange(64 * 64).reshape(64, 64) % 3 == 0
    tx = optax.sgd(0.1, momentum=0.9)
    params = {"k": jnp.ones((64, 64))}

    def step(state, params, grads):
        updates, state = update_through(
            lambda: tx.update(grads, state, params),
            lambda s: s,
            lambda s: jax.tree.map(lambda x: jnp.where(mask, x, 0), s),
        )
        return state, optax.apply_updates(params, updates)

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(
        tx.init(params), params, params
    )
    text = compiled.compile().as_text()
    assert "f32[64,64]" in text
    assert not [
        line for line in text.splitlines() if " copy(" in line and "f32[64,64]" in line
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_an_optimizer_that_mixes_weights_does_not_see_refreshed_state(nested):
    # The reset entry would make the norm, and with it every update, infinite.
    def normalized(v):
        return v / jnp.sqrt(jnp.sum(v**2))

    def step():
        v = 2.0 * jnp.ones(4)
        return (jax.jit(normalized) if nested else normalized)(v), v

    updates, state = update_through(step, lambda s: s, lambda s: s.at[3].set(jnp.inf))
    np.testing.assert_array_equal(state, [2, 2, 2, np.inf])
    np.testing.assert_array_equal(updates, 0.5)


@pytest.mark.parametrize("nested", [False, True])
def test_an_elementwise_one_is_computed_from_it(nested):
    def scaled(v):
        return jnp.where(v > 0, jnp.sqrt(v), 0.0) * 3.0

    def step():
        v = 4.0 * jnp.ones(4)
        return (jax.jit(scaled) if nested else scaled)(v), v

    updates, _ = update_through(step, lambda s: s, lambda s: s.at[3].set(9.0))
    np.testing.assert_array_equal(updates, [6, 6, 6, 9])

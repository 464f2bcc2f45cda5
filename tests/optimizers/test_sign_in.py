"""Sign-In against hand-worked weights and a NumPy loop, and its effect on masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparseopt_jax as so
from sparseopt_jax.optimizers.sign_in import Factors
from tests.helpers.examples import examples
from tests.helpers.moving_masks import KEY, PARAMS, gradients, ten_steps

EPS = float(jnp.finfo(jnp.float32).eps)


def row(*values):
    return jnp.array([values], jnp.float32)


def train(tx, params, steps, first=0, compiled=jax.jit):
    """Return parameters and states, initially and after each step."""
    state = tx.init(params)
    update = compiled(tx.update)
    history = [(params, state)]
    for step in range(first, first + steps):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    return history


def factors(state):
    state = optax.tree.get(state, "SignInState")
    return (np.asarray(x["kernel"], np.float64) for x in (state.m, state.w))


def assert_balanced(state, theta):
    m, w = factors(state)
    np.testing.assert_allclose(m**2 - w**2, 1, atol=4 * EPS * np.max(m**2))
    # Denormal numbers are flushed to zero in computations.
    np.testing.assert_allclose(m * w, theta, rtol=4 * EPS, atol=1e-37)
    assert (m >= 1).all()


# The step.


def test_by_hand():
    # theta = sqrt(2) = m w with m^2 - w^2 = 1: m = sqrt(2), w = 1. A gradient of 1:
    # m - 0.1 w = sqrt(2) - 0.1, w - 0.1 m = 1 - 0.1 sqrt(2); their product less
    # sqrt(2) is 0.01 sqrt(2) - 0.3.
    theta = row(2**0.5)
    tx = so.sign_in(optax.sgd(0.1), every=10)
    state = tx.init(theta)
    np.testing.assert_allclose((state.m, state.w), (row(2**0.5), row(1)), rtol=1e-6)
    updates, state = tx.update(row(1), state, theta)
    np.testing.assert_allclose(updates, row(0.01 * 2**0.5 - 0.3), rtol=1e-6)
    np.testing.assert_allclose(state.m, row(2**0.5 - 0.1), rtol=1e-6)
    np.testing.assert_allclose(state.w, row(1 - 0.1 * 2**0.5), rtol=1e-6)


def test_zero_and_the_other_sign_by_hand():
    # 2/3: m^2 = 4/3, w^2 = 1/3; zero: m = 1, w = 0.
    state = so.sign_in(optax.sgd(0.1), every=1).init(row(2 / 3, -2 / 3, 0))
    np.testing.assert_allclose(state.m, row(2, 2, 3**0.5) / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(state.w, row(1, -1, 0) / 3**0.5, rtol=1e-6)
    assert state.m[0, 2] == 1 and state.w[0, 2] == 0


def by_loop(params, steps, rate, momentum, every):
    """Train factors instead of weights, one at a time, in float64."""
    params = {name: np.array(p, np.float64) for name, p in params.items()}
    m, w = np.zeros((12, 8)), np.zeros((12, 8))
    trace = [np.zeros((12, 8)), np.zeros((12, 8)), np.zeros(8)]
    for step in range(steps):
        grads = {name: np.asarray(g, np.float64) for name, g in gradients(step).items()}
        for i in range(8):
            trace[2][i] = grads["bias"][i] + momentum * trace[2][i]
            params["bias"][i] -= rate * trace[2][i]
        for place in np.ndindex(12, 8):
            theta = params["kernel"][place]
            if step % every == 0:
                m[place] = np.sqrt((1 + np.sqrt(1 + 4 * theta**2)) / 2)
                w[place] = theta / m[place]
            of_m, of_w = (
                w[place] * grads["kernel"][place],
                m[place] * grads["kernel"][place],
            )
            trace[0][place] = of_m + momentum * trace[0][place]
            trace[1][place] = of_w + momentum * trace[1][place]
            m[place] -= rate * trace[0][place]
            w[place] -= rate * trace[1][place]
            params["kernel"][place] = m[place] * w[place]
    return params


@pytest.mark.parametrize(("momentum", "every"), [(0.0, 1), (0.9, 3), (0.9, 100)])
def test_equals_a_loop_over_weights(momentum, every):
    tx = so.sign_in(optax.sgd(0.05, momentum=momentum), every=every)
    params, _ = train(tx, PARAMS, 8)[-1]
    expected = by_loop(PARAMS, 8, 0.05, momentum, every)
    for name in PARAMS:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=2e-6)


def test_small_steps_follow_the_flow():
    # d theta / dt = -(m^2 + w^2) g = -sqrt(1 + 4 theta^2) g
    theta, grad = row(2, -0.5, 0), row(1, -1, 1)
    tx = so.sign_in(optax.sgd(1e-4), every=1)
    updates, _ = tx.update(grad, tx.init(theta), theta)
    flow = -jnp.sqrt(1 + 4 * theta**2) * grad
    np.testing.assert_allclose(updates / 1e-4, flow, rtol=2e-4)


def test_small_updates_are_not_lost_in_the_products():
    theta = row(1.2345678)
    tx = so.sign_in(optax.sgd(1e-10), every=1)
    updates, _ = tx.update(row(1), tx.init(theta), theta)
    np.testing.assert_allclose(updates, -1e-10 * jnp.sqrt(1 + 4 * theta**2), rtol=1e-6)


def test_vectors_take_the_inner_step():
    tx = so.sign_in(optax.adam(0.1), every=2)
    (params, state), alone = train(tx, PARAMS, 4)[-1], train(optax.adam(0.1), PARAMS, 4)
    np.testing.assert_array_equal(params["bias"], alone[-1][0]["bias"])
    hole = optax.MaskedNode()
    assert state.m["bias"] == state.w["bias"] == hole
    mu = optax.tree.get(state, "mu")
    assert (mu.m["bias"], mu.w["bias"], mu.rest["kernel"]) == (hole, hole, hole)
    np.testing.assert_array_equal(mu.rest["bias"], alone[-1][1][0].mu["bias"])


# Balancing.


@examples(30)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_the_closed_form(values):
    state = so.sign_in(optax.sgd(0.1), every=1).init({"kernel": row(*values)})
    assert_balanced(state, np.array([values]))


def test_balancing_leaves_theta_alone():
    # Without gradients only balancing happens, any number of times.
    tx = so.sign_in(optax.sgd(0.1, momentum=0.9), every=2)
    state = tx.init(PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for _ in range(7):
        updates, state = tx.update(zeros, state, PARAMS)
        jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0.0), updates)
        assert_balanced(state, PARAMS["kernel"])


def test_factors_are_balanced_at_first_and_after_every_period():
    history = train(so.sign_in(optax.sgd(0.1), every=3), PARAMS, 7)
    for step, (params, state) in enumerate(history):
        m, w = factors(state)
        np.testing.assert_allclose(m * w, params["kernel"], rtol=1e-4, atol=1e-6)
        if step % 3 == 0:
            assert_balanced(state, params["kernel"])
        else:
            assert np.abs(m**2 - w**2 - 1).max() > 1e-2


def test_theta_is_the_same_whenever_they_are_balanced_last():
    # A period ends with step 3 for one of them; theta is then the same as for the
    # other.
    short, long = (
        train(so.sign_in(optax.sgd(0.1), every=every), PARAMS, 3)[-1][0]
        for every in (3, 100)
    )
    jax.tree.map(np.testing.assert_array_equal, short, long)


def test_training_resumes_from_theta_alone():
    tx = so.sign_in(optax.sgd(0.1), every=3)
    history = train(tx, PARAMS, 8)
    params, state = history[3]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2 * EPS, atol=1e-30),
        *(state, tx.init(params)),
    )
    resumed = train(tx, params, 5, first=3)
    for (found, _), (expected, _) in zip(resumed, history[3:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_weights_changed_from_outside_are_taken_in():
    tx = so.sign_in(optax.sgd(0.1), every=2)
    other = jax.tree.map(lambda p: 3 * p - 1, PARAMS)
    for changed in (0, 2):
        _, state = train(tx, PARAMS, changed)[-1]
        updates, _ = tx.update(gradients(9), state, other)
        expected, _ = tx.update(gradients(9), tx.init(other), other)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)


# Types, arguments, wrappers.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_factors_of_narrow_types_are_float32(dtype):
    params, grads = (
        jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (PARAMS, gradients(0))
    )
    tx = so.sign_in(optax.sgd(0.1), every=2)
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    assert state.m["kernel"].dtype == state.w["kernel"].dtype == jnp.float32
    wide, wide_grads = (
        jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (params, grads)
    )
    expected, _ = tx.update(wide_grads, tx.init(wide), wide)
    assert updates["kernel"].dtype == updates["bias"].dtype == dtype
    np.testing.assert_array_equal(updates["kernel"], expected["kernel"].astype(dtype))


def test_inner_sees_factors_and_extra_arguments():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args, updates=updates, params=params)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx, hole = so.sign_in(spy, every=5), optax.MaskedNode()
    state, mask = tx.init(PARAMS), jnp.ones((12, 8), bool)
    masks = {"kernel": mask, "bias": hole}
    tx.update(gradients(0), state, PARAMS, value=1.0, masks=masks)
    assert seen["value"] == 1.0
    for name in ("updates", "params"):
        assert isinstance(seen[name], Factors)
        assert seen[name].m["bias"] == seen[name].w["bias"] == hole
        assert seen[name].rest["kernel"] == hole
    m, w = (x["kernel"] for x in seen["params"][:2])
    np.testing.assert_array_equal(m, state.m["kernel"])
    np.testing.assert_array_equal(w, state.w["kernel"])
    np.testing.assert_array_equal(seen["params"].rest["bias"], PARAMS["bias"])
    grads = gradients(0)
    np.testing.assert_array_equal(seen["updates"].m["kernel"], w * grads["kernel"])
    np.testing.assert_array_equal(seen["updates"].w["kernel"], m * grads["kernel"])
    np.testing.assert_array_equal(seen["updates"].rest["bias"], grads["bias"])
    assert seen["masks"] == Factors(masks, masks, masks)


def test_weight_decay_is_that_of_the_factors():
    tx = so.sign_in(
        optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1)), every=10
    )
    updates, state = tx.update(row(0), tx.init(row(2**0.5)), row(2**0.5))
    np.testing.assert_allclose(state.m, row(0.95 * 2**0.5), rtol=1e-6)
    np.testing.assert_allclose(updates, row((0.95**2 - 1) * 2**0.5), rtol=1e-5)


def test_it_can_be_limited_to_some():
    mask = {"kernel": False, "bias": True}
    tx = optax.chain(
        optax.masked(so.sign_in(optax.sgd(0.1), every=2), mask),
        optax.masked(optax.sgd(0.1), {"kernel": True, "bias": False}),
    )
    limited, plain = (train(x, PARAMS, 3)[-1][0] for x in (tx, optax.sgd(0.1)))
    jax.tree.map(np.testing.assert_array_equal, limited, plain)


def test_eager_equals_compiled():
    tx = so.sign_in(optax.adam(0.1), every=2)
    eager = train(tx, PARAMS, 5, compiled=lambda function: function)[-1]
    compiled = train(tx, PARAMS, 5)[-1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        *(eager, compiled),
    )


def test_no_buffer_of_the_state_is_held_twice():
    # The averaging optimizer stores copies of its input.
    tx = so.sign_in(optax.contrib.schedule_free(optax.sgd(0.1), 0.1), every=2)
    step = jax.jit(tx.update, donate_argnums=1)
    _, state = step(gradients(0), tx.init(PARAMS), PARAMS)
    step(gradients(1), state, PARAMS)


# Inside of sparsify.


@pytest.mark.filterwarnings("ignore:scale_by_sparseopt before")
@pytest.mark.parametrize(
    ("method", "every", "inner"),
    [
        (so.set_, 2, optax.sgd(0.1, momentum=0.9)),
        (so.rigl, 3, optax.adam(0.05)),
    ],
)
def test_masks_survive(method, every, inner):
    topology = method(0.75, every=2, stop=9, drop_fraction=0.5)
    owned = optax.chain(so.scale_by_sparseopt(), so.sign_in(inner, every=every))
    tx = so.sparsify(owned, topology)
    for step in ten_steps(tx):
        m, w = factors(step.state)
        grown = step.mask & ~step.before
        for inactive in (~step.mask, grown):
            np.testing.assert_array_equal(m[inactive], 1.0)
            np.testing.assert_array_equal(w[inactive], 0.0)
        np.testing.assert_allclose(m * w, step.kernel, rtol=1e-4, atol=1e-5)
        kept = step.mask & ~grown
        replaced = topology.due(step.index) and topology.replaces_step
        assert ((step.kernel == step.old)[kept] == replaced).all()


def test_balancing_waits_for_a_step_that_is_not_replaced():
    # RigL replaces every step in which a period of two would begin.
    topology = so.rigl(0.75, every=2, stop=9, drop_fraction=0.5)
    tx = so.sparsify(so.sign_in(optax.sgd(0.1), every=2), topology)
    history = train(tx, PARAMS, 8)
    taken = [sum(not topology.due(i) for i in range(step)) for step in range(9)]
    assert taken[-1] == 4
    for (_, state), count in zip(history, taken, strict=True):
        m, w = factors(state)
        assert np.allclose(m**2 - w**2, 1, atol=1e-5) == (count % 2 == 0)


def corrected(tx, grad, theta, mask, dims=None):
    """Return an update with the extra arguments that sparsify passes."""
    masks, params = {"w": mask}, {"w": theta}
    fan_ins = so.static(masks=masks, dims=dims).fan_ins(masks)
    extra_args = {"masks": masks, "fan_ins": fan_ins, "neuron_dims": dims}
    return tx.update({"w": grad}, tx.init(params), params, **extra_args)[0]["w"]


DIMS = so.NeuronDims(1, 0)


@pytest.mark.parametrize(
    "dims",
    [None, DIMS, {"w": DIMS}, lambda path, leaf: DIMS if path == "w" else None],
)
def test_a_correction_acts_on_the_gradient_of_theta(dims):
    mask = jnp.arange(8)[:, None] < jnp.array([1, 4, 8])
    theta = jnp.where(mask, jax.random.normal(KEY, (8, 3)), 0)
    grad = jnp.where(mask, jax.random.normal(jax.random.key(1), (8, 3)), 0)
    scaled = grad * jnp.sqrt(jnp.array([1, 4, 8]) * 3 / 13)
    if dims is not None:
        mask, theta, grad, scaled = mask.T, theta.T, grad.T, scaled.T
    correction, sgd = so.scale_by_sparseopt(), optax.sgd(0.1)
    plain = so.sign_in(sgd, every=5)
    expected, _ = plain.update(scaled, plain.init(theta), theta)
    # Before, or inside, where it scales the gradients of both factors.
    in_front = optax.chain(correction, plain)
    inside = so.sign_in(optax.chain(correction, sgd), every=5)
    for tx in (in_front, inside):
        update = corrected(tx, grad, theta, mask, dims)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7)


def test_behind_adam_the_correction_stands_inside():
    mask = jnp.arange(12)[:, None] < jnp.array([1, 2, 4, 6, 8, 9, 10, 12])
    theta, grad = (jnp.where(mask, x["kernel"], 0) for x in (PARAMS, gradients(0)))
    rate = optax.scale_by_learning_rate(0.1)

    def update(first, second):
        inner = optax.chain(optax.scale_by_adam(), second, rate)
        tx = optax.chain(first, so.sign_in(inner, every=5))
        return corrected(tx, grad, theta, mask)

    none, correction = optax.identity(), so.scale_by_sparseopt()
    np.testing.assert_allclose(update(correction, none), update(none, none), rtol=1e-4)
    assert not np.allclose(update(none, correction), update(none, none), rtol=1e-2)


def test_new_initial_weights_need_no_new_state():
    tx = so.sparsify(so.sign_in(optax.sgd(0.1), every=100), so.static(0.75))
    state = tx.init(PARAMS)
    params = so.sparse_init(PARAMS, state, jax.random.key(3))
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = jax.jit(tx.update)(zeros, state, params)
    m, w = factors(state)
    np.testing.assert_allclose(m * w, params["kernel"], rtol=4 * EPS)


# What cannot be right.


@pytest.mark.parametrize("every", [0, -1, np.int64(0)])
def test_a_period_has_a_step(every):
    with pytest.raises(ValueError, match="every must be at least 1 step, got"):
        so.sign_in(optax.sgd(0.1), every=every)


@pytest.mark.parametrize("every", [1.0, "1", None, 2.5])
def test_a_period_is_an_integer(every):
    with pytest.raises(TypeError, match="every must be an integer number of steps"):
        so.sign_in(optax.sgd(0.1), every=every)


@pytest.mark.parametrize("inner", [optax.sgd, None, 0.1])
def test_what_is_no_transformation_is_named(inner):
    with pytest.raises(TypeError, match="inner must be a transformation such as"):
        so.sign_in(inner, every=1)


def test_the_weights_are_needed():
    tx = so.sign_in(optax.sgd(0.1), every=1)
    with pytest.raises(ValueError, match=r"tx.update\(grads, opt_state, params\)"):
        tx.update(PARAMS, tx.init(PARAMS))

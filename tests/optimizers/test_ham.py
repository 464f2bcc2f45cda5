"""HAM against hand-worked weights and a NumPy loop, and its effect on masks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.moving_masks import KEY, PARAMS, gradients, ten_steps

COSINE = optax.cosine_decay_schedule(0.1, 20)


def row(*values):
    return jnp.array([values], jnp.float32)


def train(tx, params, steps, gradients=gradients, compiled=jax.jit):
    """Return parameters and states, initially and after each step."""
    state = tx.init(params)
    update = compiled(tx.update)
    history = [(params, state)]
    for step in range(steps):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    return history


def once(theta, grad, inner, rate, **options):
    tx = so.ham(inner, rate, **options)
    return train(tx, theta, 1, lambda _: grad)[-1][0]


# The step.


def test_by_hand():
    # Step, exponent 0.1 (2 sign(half) g + 0.5), product:
    #  2.0, 0.5 ->  1.95,  0.15 ->  1.95 exp(-0.15)
    # -2.0, 0.5 -> -2.05, -0.05 -> -2.05 exp(0.05)
    #  0.1, 2.0 -> -0.10, -0.35 -> -0.10 exp(0.35): the sign after the step counts
    #  3.0, 0.0 ->  3.00,  0.05 ->  3.00 exp(-0.05)
    #  0.2, 2.0 ->  0: stays
    theta, grad = row(2, -2, 0.1, 3, 0.2), row(0.5, 0.5, 2, 0, 2)
    new = once(theta, grad, optax.sgd(0.1), 0.1, alpha=2.0, beta=0.5)
    expected = row(1.6783806, -2.1551057, -0.1419068, 2.8536883, 0)
    np.testing.assert_allclose(new, expected, rtol=1e-6)
    assert new[0, 4] == 0


def test_the_defaults_are_the_papers():
    new = once(row(1), row(1e-2), optax.sgd(0.1), 0.1)
    # 0.999 exp(-0.1 (200 * 0.01 + 0.001))
    np.testing.assert_allclose(new, 0.999 * np.exp(-0.2001), rtol=1e-6)


def test_the_exponent_is_clipped():
    theta, grad = row(1, 1, -1, -1, 1), row(1e3, -1e3, 1e3, -1e3, np.inf)
    new = once(theta, grad, optax.set_to_zero(), 0.1)
    e = np.e
    np.testing.assert_allclose(new, row(e**-5, e**5, -(e**5), -(e**-5), e**-5), 1e-6)


def by_loop(params, steps, rate, momentum, alpha, beta):
    """Apply the rule, one weight at a time, in float64."""
    params = {name: np.array(p, np.float64) for name, p in params.items()}
    trace = {name: np.zeros_like(p) for name, p in params.items()}
    for step in range(steps):
        eta = float(rate(step)) if callable(rate) else rate
        for name, grads in gradients(step).items():
            grads = np.asarray(grads, np.float64)
            for place in np.ndindex(grads.shape):
                trace[name][place] = grads[place] + momentum * trace[name][place]
                theta = params[name][place] - eta * trace[name][place]
                if len(place) > 1:
                    exponent = eta * (alpha * np.sign(theta) * grads[place] + beta)
                    theta *= np.exp(-min(max(exponent, -5.0), 5.0))
                params[name][place] = theta
    return params


@pytest.mark.parametrize("rate", [0.05, COSINE])
def test_equals_a_loop_over_weights(rate):
    tx = so.ham(optax.sgd(rate, momentum=0.9), rate, alpha=5.0, beta=0.1)
    params, state = train(tx, PARAMS, 6)[-1]
    expected = by_loop(PARAMS, 6, rate, 0.9, 5.0, 0.1)
    for name in PARAMS:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-5, atol=1e-6)
    assert int(state.count) == 6
    assert optax.tree.get(state, "HamState") is state


@pytest.mark.parametrize(
    "inner", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)], ids=["momentum", "adam"]
)
def test_without_strength_it_is_the_inner_optimizer_bit_for_bit(inner):
    wrapped = train(so.ham(inner, 0.1, alpha=0.0, beta=0.0), PARAMS, 4)[-1]
    alone = train(inner, PARAMS, 4)[-1]
    chex.assert_trees_all_equal(wrapped[0], alone[0])
    chex.assert_trees_all_equal(wrapped[1].inner_state, alone[1])


def test_vectors_and_scalars_take_the_inner_step_only():
    params = {"vector": jnp.ones(5), "scalar": jnp.ones(())}
    wrapped, alone = (
        train(tx, params, 3, lambda step: jax.tree.map(lambda p: p - step, params))
        for tx in (so.ham(optax.adam(0.1), 0.1), optax.adam(0.1))
    )
    chex.assert_trees_all_equal(wrapped[-1][0], alone[-1][0])


@pytest.mark.parametrize("grad", [0.0, 1.0, np.nan, np.inf])
def test_zero_stays_zero(grad):
    new = once(jnp.zeros((2, 3)), jnp.full((2, 3), grad), optax.set_to_zero(), 0.1)
    np.testing.assert_array_equal(new, 0.0)


def test_the_multiplicative_step_never_changes_a_sign():
    theta = jax.random.normal(KEY, (40, 40))
    grad = 100 * jax.random.normal(jax.random.key(1), (40, 40))
    new = once(theta, grad, optax.set_to_zero(), 0.1)
    np.testing.assert_array_equal(jnp.sign(new), jnp.sign(theta))


def test_small_steps_follow_the_flow():
    # d theta / dt = -(1 + alpha |theta|) g - beta theta
    theta, grad = row(2, -0.5, 1e-3), row(1, 1, 1)
    rate, alpha, beta = 1e-5, 200.0, 0.5
    moved = (
        once(theta, grad, optax.sgd(rate), rate, alpha=alpha, beta=beta) - theta
    ) / rate
    flow = -(1 + alpha * jnp.abs(theta)) * grad - beta * theta
    np.testing.assert_allclose(moved, flow, rtol=2e-2)


# Types, arguments, wrappers.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_computed_in_float32(dtype):
    def narrow(tree):
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    params, grads = narrow(PARAMS), narrow(gradients(0))
    tx = so.ham(optax.sgd(0.1), 0.1, alpha=3.0, beta=0.1)
    updates, _ = tx.update(grads, tx.init(params), params)
    # The inner step has low precision; the result is rounded once.
    theta, u, g = (
        np.asarray(x["kernel"], np.float32)
        for x in (params, jax.tree.map(lambda g: g * dtype(-0.1), grads), grads)
    )
    half = theta + u
    new = half * np.exp(-np.clip(0.1 * (3 * np.sign(half) * g + 0.1), -5, 5))
    assert updates["kernel"].dtype == updates["bias"].dtype == dtype
    np.testing.assert_allclose(
        np.asarray(updates["kernel"], np.float32),
        new - theta,
        rtol=float(jnp.finfo(dtype).eps),
        atol=1e-6,
    )


def test_updates_have_the_wider_type():
    theta, grad = jnp.ones((2, 2)), jnp.ones((2, 2), jnp.bfloat16)
    tx = so.ham(optax.sgd(0.1), 0.1)
    updates, _ = tx.update(grad, tx.init(theta), theta)
    assert updates.dtype == jnp.float32


def test_extra_arguments_reach_the_inner_transformation():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = so.ham(spy, 0.1)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0, masks=None)
    assert seen == {"value": 1.0, "masks": None}


def test_hyperparameters_can_be_injected():
    injected = optax.inject_hyperparams(so.ham)(optax.sgd(COSINE), COSINE, alpha=5.0)
    assert injected.init(PARAMS).hyperparams["alpha"] == 5.0
    found = train(injected, PARAMS, 3)[-1][0]
    plain = train(so.ham(optax.sgd(COSINE), COSINE, alpha=5.0), PARAMS, 3)[-1][0]
    for name in PARAMS:
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-5)


def test_eager_equals_compiled():
    tx = so.ham(optax.adam(0.1), 0.1, alpha=2.0)
    eager = train(tx, PARAMS, 3, compiled=lambda function: function)[-1][0]
    compiled = train(tx, PARAMS, 3)[-1][0]
    for name in PARAMS:
        np.testing.assert_allclose(eager[name], compiled[name], rtol=1e-5, atol=1e-6)


# Inside of sparsify.


@pytest.mark.filterwarnings("ignore:scale_by_sparseopt before")
@pytest.mark.parametrize(
    ("method", "inner"),
    [
        pytest.param(so.set_, optax.adam(0.1), marks=pytest.mark.slow),
        (so.rigl, optax.sgd(0.1, momentum=0.9)),
    ],
)
def test_masks_survive(method, inner):
    topology = method(0.75, every=2, stop=9, drop_fraction=0.5)
    owned = optax.chain(so.scale_by_sparseopt(), so.ham(inner, 0.1, alpha=2.0))
    tx = so.sparsify(owned, topology)
    for step in ten_steps(tx):
        both = step.mask & step.before
        if topology.due(step.index) and topology.replaces_step:
            np.testing.assert_array_equal(step.kernel[both], step.old[both])
            np.testing.assert_array_equal(step.kernel[~both], 0.0)
        else:
            assert (step.kernel != step.old)[both].all()
        assert int(optax.tree.get(step.state, "HamState").count) == step.index + 1


def test_the_exponent_sees_the_corrected_gradient():
    mask = jnp.arange(8)[:, None] < jnp.array([1, 4, 8])
    theta = jnp.where(mask, jax.random.normal(KEY, (8, 3)), 0)
    grad = jnp.where(mask, jax.random.normal(jax.random.key(1), (8, 3)), 0)
    tx = optax.chain(so.scale_by_sparseopt(), so.ham(optax.sgd(0.1), 0.1, alpha=3.0))
    updates, _ = tx.update(grad, tx.init(theta), theta, masks=mask)
    # Fan-ins 1, 4, 8 of 8, their mean 13 / 3.
    corrected = np.asarray(grad) * np.sqrt(np.array([1, 4, 8]) * 3 / 13)
    half = theta - 0.1 * corrected
    expected = half * np.exp(-0.1 * (3 * np.sign(half) * corrected + 1e-3))
    np.testing.assert_allclose(theta + updates, expected, rtol=1e-5)


def test_behind_adam_the_correction_is_needed_twice():
    # Once for the exponent, before; once for the step, which Adam makes independent of
    # it.
    mask = jnp.arange(12)[:, None] < jnp.array([1, 2, 4, 6, 8, 9, 10, 12])
    theta = jnp.where(mask, PARAMS["kernel"], 0)
    grad = jnp.where(mask, gradients(0)["kernel"], 0)

    def updates(first, second, alpha):
        rate = optax.scale_by_learning_rate(0.1)
        inner = optax.chain(optax.scale_by_adam(), second, rate)
        tx = optax.chain(first, so.ham(inner, 0.1, alpha=alpha))
        return tx.update(grad, tx.init(theta), theta, masks=mask)[0]

    none, correction = optax.identity(), so.scale_by_sparseopt()
    np.testing.assert_allclose(
        updates(correction, none, 0.0), updates(none, none, 0.0), 1e-4
    )
    for first, second, alpha in ((none, correction, 0.0), (correction, none, 5.0)):
        without = updates(none, none, alpha)
        assert not np.allclose(updates(first, second, alpha), without, rtol=1e-2)


# The balance of one neuron with a normalisation (SparseOpt, Appendix A): gradient flow
# preserves a^2 - gamma^2 - beta^2, so from gamma = 1, beta = 0, a = 1 on, a cannot flip
# its sign, as the target requires. Gradient descent preserves it up to its steps.

INPUTS, SAMPLES, TIME, RATE = 8, 200, 10.0, 0.02
START = {
    "w": jax.random.normal(jax.random.key(1), (INPUTS, 1)),
    "gamma": jnp.ones(1),
    "beta": jnp.zeros(1),
    "a": jnp.ones((1, 1)),
}
SAMPLED = jax.random.normal(jax.random.key(2), (SAMPLES, INPUTS))


def neuron(params):
    x = SAMPLED @ params["w"]
    xhat = (x - x.mean()) / x.std()
    return jax.nn.relu(params["gamma"] * xhat + params["beta"]) @ params["a"]


TARGET = neuron(START | {"w": jnp.ones((INPUTS, 1)), "a": -jnp.ones((1, 1))})


def balance(params):
    a, gamma, beta = (float(params[name].sum()) for name in ("a", "gamma", "beta"))
    return a**2 - gamma**2 - beta**2


def on(name, chosen, others):
    """Use one transformation for a parameter, another for all the others."""
    labels = {key: "own" if key == name else "others" for key in START}
    return optax.partition({"own": chosen, "others": others}, labels)


NEURONS = {
    "plain": optax.sgd,
    "masked": lambda rate: so.sparsify(
        optax.sgd(rate), so.static(0.5, where=lambda path, _: path == "w")
    ),
    "rescaled": lambda rate: on("w", optax.sgd(3 * rate), optax.sgd(rate)),
    "ham": lambda rate: on("a", so.ham(optax.sgd(rate), rate), optax.sgd(rate)),
}


@functools.partial(jax.jit, static_argnames="name")
def descent(name, rate, steps):
    tx = NEURONS[name](rate)
    state = tx.init(START)
    params = so.apply_masks(START, state) if name == "masked" else START

    def step(_, now):
        params, state = now
        grads = jax.grad(lambda p: jnp.mean((neuron(p) - TARGET) ** 2) / 2)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, step, (params, state))[0]


def descended(name, rate):
    """Return the neuron after the same time in steps of any size."""
    return descent(name, rate, round(TIME / rate))


@pytest.mark.parametrize("name", ["plain", "masked", "rescaled"])
def test_gradient_descent_keeps_the_balance_of_a_neuron(name):
    coarse, fine = (balance(descended(name, rate)) for rate in (RATE, RATE / 2))
    assert 0 < abs(coarse) < RATE
    assert 1.6 < coarse / fine < 2.4
    assert descended(name, RATE)["a"] > 0


def test_ham_on_the_output_breaks_it_and_lets_its_sign_change():
    drift = abs(balance(descended("plain", RATE)))
    for rate in (RATE, RATE / 2):
        left = descended("ham", rate)
        assert abs(balance(left)) > 10 * drift
        assert left["a"] < 0


# What cannot be right.


@pytest.mark.parametrize("name", ["alpha", "beta", "learning_rate"])
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), jnp.float32(-1)])
def test_numbers_are_finite_and_not_negative(name, bad):
    options = {"learning_rate": 0.1} | {name: bad}
    with pytest.raises(ValueError, match=rf"{name} must be .*at least 0, got"):
        so.ham(optax.identity(), **options)


@pytest.mark.parametrize("name", ["alpha", "beta", "learning_rate"])
@pytest.mark.parametrize("bad", ["0.1", None, True, 1j, jnp.ones(2)])
def test_numbers_are_numbers(name, bad):
    options = {"learning_rate": 0.1} | {name: bad}
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        so.ham(optax.identity(), **options)


@pytest.mark.parametrize("inner", [optax.sgd, None, 0.1])
def test_what_is_no_transformation_is_named(inner):
    with pytest.raises(TypeError, match="inner must be a transformation such as"):
        so.ham(inner, 0.1)


def test_another_learning_rate_is_an_error():
    with pytest.raises(
        ValueError, match=r"learning_rate is 0.2, .* steps by 0.1: give"
    ):
        so.ham(optax.sgd(0.1, momentum=0.9), 0.2)
    with pytest.raises(ValueError, match=r"0\.2 at step 0, .* give both the same"):
        so.ham(optax.adam(COSINE), 0.2)


def test_the_weights_are_needed():
    tx = so.ham(optax.sgd(0.1), 0.1)
    with pytest.raises(ValueError, match=r"tx.update\(grads, opt_state, params\)"):
        tx.update(PARAMS, tx.init(PARAMS))

"""Counters that advance if an update of the masks replaces a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.engine.step_counters import advancing

PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (6, 8))}
GRADS = {"kernel": jax.random.normal(jax.random.key(1), (6, 8))}
SCHEDULE = optax.linear_schedule(0.1, 0.0, 10)


def advanced(inner):
    """Return the paths of the leaves that advance."""
    inner = optax.with_extra_args_support(inner)
    state = inner.init(PARAMS)

    def step(grads, state, params):
        return inner.update(grads, state, params, value=jnp.float32(1.0))

    args = (GRADS, state, PARAMS)
    found = advancing(InnerProgram.of(step, *args), args, position=1)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [
        jax.tree_util.keystr(path)
        for (path, _), advances in zip(leaves, found, strict=True)
        if advances
    ]


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (optax.adam(SCHEDULE), ["[0].count", "[1].count"]),
        (optax.lion(0.1), ["[0].count"]),
        (optax.scale_by_schedule(SCHEDULE), [".count"]),
        (
            optax.inject_hyperparams(optax.adam)(SCHEDULE, b1=SCHEDULE),
            [
                ".count",
                ".hyperparams_states['b1'].count",
                ".hyperparams_states['learning_rate'].count",
                ".inner_state[0].count",
            ],
        ),
        (so.ham(optax.adam(0.1), 0.1), [".count", ".inner_state[0].count"]),
        (
            optax.apply_if_finite(optax.scale_by_schedule(SCHEDULE), 2),
            [".notfinite_count", ".total_notfinite", ".inner_state.count"],
        ),
        (
            optax.apply_if_finite(optax.adam(SCHEDULE), 2),
            [
                *(".notfinite_count", ".total_notfinite"),
                *(".inner_state[0].count", ".inner_state[1].count"),
            ],
        ),
    ],
)
def test_counters_of_steps_advance(inner, expected):
    assert sorted(advanced(inner)) == sorted(expected)


@pytest.mark.parametrize(
    "inner",
    [
        optax.contrib.reduce_on_plateau(patience=3, accumulation_size=2),
        optax.scale_by_lbfgs(memory_size=2),
        optax.scale_by_novograd(),
        optax.scale_by_adan(),
        optax.apply_every(2),
        optax.scale_by_optimistic_gradient(),
        optax.contrib.schedule_free(optax.adam(0.1), SCHEDULE),
        optax.MultiSteps(optax.adam(SCHEDULE), 2).gradient_transformation(),
    ],
)
def test_state_machines_are_held_whole(inner):
    assert advanced(inner) == []


def train(inner, topology, steps, value=1.0):
    """Return the weights and the inner state after each step."""
    tx = so.sparsify(inner, topology)
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    params, found = so.apply_masks(PARAMS, state), []
    for _ in range(steps):
        updates, state = update(GRADS, state, params, value=jnp.float32(value))
        params = optax.apply_updates(params, updates)
        found.append((params, state.inner_state))
    return found


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_plateau_is_found_in_the_steps_that_are_taken(accumulated):
    inner = optax.chain(
        optax.sgd(0.1),
        optax.contrib.reduce_on_plateau(
            patience=3, factor=0.5, accumulation_size=accumulated
        ),
    )
    every = max(3, accumulated)
    topology = so.rigl(0.5, every=every, start=every - 1, stop=99)
    found = train(inner, topology, 24)
    expected = train(inner, so.static(0.5), 24)
    taken = 0
    for count, (_, (_, plateau)) in enumerate(found):
        taken += not topology.due(count)
        jax.tree.map(np.testing.assert_array_equal, plateau, expected[taken - 1][1][1])
    assert plateau.scale < 1


@pytest.mark.parametrize(
    "inner",
    [
        optax.novograd(0.01),
        optax.adan(0.01),
        optax.optimistic_gradient_descent(0.1),
        optax.chain(optax.scale_by_lbfgs(), optax.scale(-0.1)),
    ],
    ids=["novograd", "adan", "optimistic", "lbfgs"],
)
def test_the_first_step_after_a_replaced_one_is_the_first(inner):
    # With a drop fraction of zero the masks stay.
    topology = so.rigl(0.5, every=100, stop=999, drop_fraction=0.0)
    found = [params["kernel"] for params, _ in train(inner, topology, 3)]
    expected = [params["kernel"] for params, _ in train(inner, so.static(0.5), 2)]
    jax.tree.map(np.testing.assert_array_equal, found[1:], expected)

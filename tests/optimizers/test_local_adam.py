"""Adam with a step count per weight, by hand and against optax's."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.masks.packing import unpack
from sparseopt_jax.masks.state import map_masked
from sparseopt_jax.optimizers.local_adam import LocalAdamState
from tests.helpers.optimizers import (
    KERNELS,
    SCHEDULE,
    gradients,
    one_step,
    random_tree,
    sparse_states,
)
from tests.helpers.optimizers import start as begin

OLD = 10_000  # steps after which the bias of Adam's moments is gone


def grown(count, local_count):
    """Return the state of one weight that was grown a while after the start."""
    zero = jnp.zeros(1)
    return LocalAdamState(
        count=jnp.full(1, count, jnp.int32),
        local_count=jnp.full(1, local_count, jnp.int32),
        mu=zero,
        nu=zero,
    )


def taken(trained, params):
    """Return 1 for each weight that is trained, 0 for the others."""
    ones = jax.tree.map(jnp.ones_like, params)
    return map_masked(lambda mask, one: mask.astype(one.dtype), trained, ones)


class TestLocalAdam:
    def test_the_first_update_of_a_grown_weight_is_one_learning_rate(self):
        grads = jnp.array([0.3])
        update, _ = so.scale_by_local_adam().update(grads, grown(OLD, 0))
        np.testing.assert_allclose(update, [1.0], rtol=1e-5)

    def test_with_the_steps_of_the_run_it_is_three(self):
        zero = jnp.zeros(1)
        state = optax.ScaleByAdamState(count=jnp.int32(OLD), mu=zero, nu=zero)
        update, _ = optax.scale_by_adam().update(jnp.array([0.3]), state)
        np.testing.assert_allclose(update, [0.1 / math.sqrt(0.001)], rtol=1e-4)
        assert round(float(update[0]), 2) == 3.16

    def test_the_warm_up_is_linear_and_does_not_compound(self):
        tx = so.scale_by_local_adam(warmup_steps=5)
        state = grown(OLD, 0)
        for step in range(1, 9):
            # With a constant gradient Adam's update is 1 at every step.
            update, state = tx.update(jnp.array([0.3]), state)
            np.testing.assert_allclose(update, [min(step / 5, 1.0)], rtol=1e-4)

    def test_what_was_there_from_the_start_is_not_warmed_up(self):
        tx = so.scale_by_local_adam(warmup_steps=5)
        update, _ = tx.update(jnp.array([0.3]), tx.init(jnp.zeros(1)))
        np.testing.assert_allclose(update, [1.0], rtol=1e-5)

    @pytest.mark.parametrize("warmup_steps", [0, 7])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_while_masks_rest_it_is_adam_to_the_last_bit(self, dtype, warmup_steps):
        ours = so.scale_by_local_adam(warmup_steps=warmup_steps)
        theirs = optax.scale_by_adam()
        params = random_tree(0, dtype)
        states = [ours.init(params), theirs.init(params)]
        # Without jit optax computes b ** count by multiplying.
        steps = [jax.jit(tx.update) for tx in (ours, theirs)]
        for count in range(20):
            grads = jax.tree.map(lambda g: g.astype(dtype), gradients(count))
            found, states[0] = steps[0](grads, states[0])
            other, states[1] = steps[1](grads, states[1])
            chex.assert_trees_all_equal(found, other)
            assert jax.tree.map(jnp.result_type, found) == jax.tree.map(
                jnp.result_type, other
            )

    @pytest.mark.parametrize("topology", ["set_", "rigl"])
    def test_a_run_is_that_of_a_loop_over_weights(self, topology):
        topology = getattr(so, topology)(0.5, **SCHEDULE)
        b1, b2, eps, warmup, rate = 0.8, 0.9, 1e-6, 3, 0.01
        inner = optax.chain(
            so.scale_by_local_adam(b1, b2, eps, warmup), optax.scale(-rate)
        )
        tx = so.sparsify(inner, topology)
        now = begin(tx, random_tree(0))
        weights = np.float64(now.kernel("dense"))
        steps, m, v = (np.zeros(weights.shape) for _ in range(3))
        restarted = np.zeros(weights.shape, bool)
        step = jax.jit(one_step(tx))
        for count in range(8):
            before = now
            grads = gradients(count)
            now = step(grads, now.params, now.state)
            old, new = before.masks["dense"], now.masks["dense"]
            due = topology.due(count)
            if not (due and topology.replaces_step):
                g = np.float64(grads["dense"]["kernel"])
                for at in zip(*np.nonzero(old), strict=True):
                    steps[at] += 1
                    m[at] = b1 * m[at] + (1 - b1) * g[at]
                    v[at] = b2 * v[at] + (1 - b2) * g[at] ** 2
                    u = m[at] / (1 - b1 ** steps[at])
                    u /= math.sqrt(v[at] / (1 - b2 ** steps[at])) + eps
                    if restarted[at]:
                        u *= min(steps[at] / warmup, 1.0)
                    weights[at] -= rate * u
            for at in zip(*np.nonzero(new & ~old), strict=True):
                steps[at] = m[at] = v[at] = weights[at] = 0.0
                restarted[at] = True
            weights[~new] = 0.0
            np.testing.assert_allclose(
                now.kernel("dense"), weights, rtol=1e-5, atol=1e-6
            )
        assert restarted.any()

    @pytest.mark.parametrize(
        ("topology", "compact"),
        [
            *(("rigl", False), ("set_", True)),
            pytest.param("rigl", True, marks=pytest.mark.slow),
            pytest.param("set_", False, marks=pytest.mark.slow),
        ],
    )
    def test_grown_weights_count_from_zero(self, topology, compact):
        topology = getattr(so, topology)(0.5, **SCHEDULE)
        tx = so.sparsify(so.scale_by_local_adam(), topology, compact=compact)
        now = begin(tx, random_tree(0))
        ages = {name: np.zeros(now.masks[name].shape, int) for name in KERNELS}
        step = jax.jit(one_step(tx))
        for count in range(8):
            before = now
            now = step(gradients(count), now.params, now.state)
            (state,) = sparse_states(now.state)
            for name in KERNELS:
                held = topology.due(count) and topology.replaces_step
                stays = before.masks[name] & now.masks[name]
                ages[name] = np.where(stays, ages[name] + (not held), 0)
                steps = state.inner_state.local_count[name]["kernel"]
                expected = ages[name]
                if compact:
                    layout = dict(state.masks.layouts)[f"{name}/kernel"]
                    index = state.masks.tree[name]["kernel"]
                    expected = layout.take(jnp.asarray(expected), index)
                np.testing.assert_array_equal(steps, expected)

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("method", ["ste", "sr_ste", "top_kast"])
    def test_weights_count_while_trained_even_if_the_forward_pass_does_not_use_them(
        self, method, packed
    ):
        options = {"trained_sparsity": 0.25} if method == "top_kast" else {}
        topology = getattr(so, method)(0.5, **options)
        states, params = {}, {}
        for adam in (optax.scale_by_adam, so.scale_by_local_adam):
            inner = optax.chain(adam(), optax.scale(-0.1))
            tx = so.sparsify(inner, topology, packed=packed)
            now, steps = random_tree(0), jax.tree.map(jnp.zeros_like, random_tree(0))
            state: Any = tx.init(now)
            step: Any = jax.jit(tx.update)
            for count in range(4):
                trained = unpack(state.topology_state.trained)
                steps = jax.tree.map(jnp.add, steps, taken(trained, steps))
                updates, state = step(gradients(count), state, now)
                now = optax.apply_updates(now, updates)
            states[adam], params[adam] = state, now
        counts = states[so.scale_by_local_adam].inner_state[0].local_count
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x: x.astype(jnp.float32), counts), steps
        )
        if method != "top_kast":
            chex.assert_trees_all_equal(*params.values())

    @pytest.mark.parametrize("warmup_steps", [-1, 1.5, "5"])
    def test_bad_warm_ups(self, warmup_steps):
        with pytest.raises((TypeError, ValueError), match="warmup_steps must be"):
            so.scale_by_local_adam(warmup_steps=warmup_steps)

    def test_bad_decays(self):
        with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got 1.0"):
            so.scale_by_local_adam(b2=1.0)

"""SMET: its recipe around Adam with local steps, and its topology."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.optimizers import (
    SCHEDULE,
    gradients,
    one_step,
    random_tree,
)
from tests.helpers.optimizers import start as begin


class TestSmet:
    @pytest.mark.parametrize("block", [pytest.param(1, marks=pytest.mark.slow), 4])
    def test_active_weights_alone_give_what_dense_moments_give(self, block):
        topology = so.set_smet(0.5, stop=12, every=3, block=block)
        found = []
        for compact in (False, True):
            tx = so.smet(0.01, topology, warmup_steps=4, compact=compact)
            now = begin(tx, random_tree(0))
            step = jax.jit(one_step(tx))
            for count in range(9):
                now = step(gradients(count), now.params, now.state)
            found.append(now)
        # Powers of decays are rounded as the compiler computes them.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7),
            *(moment.params for moment in found),
        )
        masks = [so.get_masks(moment.state) for moment in found]
        chex.assert_trees_all_equal(*masks)

    def test_a_block_has_one_count(self):
        params = {"kernel": jnp.ones((16, 32)), "bias": jnp.ones(32)}
        tx = so.smet(0.01, so.set_smet(0.5, stop=1000, block=8))
        adam = tx.init(params).inner_state[0]
        assert adam.mu["kernel"].shape == (32, 8)
        assert adam.local_count["kernel"].shape == (32, 1)

    def test_what_stays_dense_has_no_counts_and_is_adams(self):
        params = {"embedding": jnp.ones((4, 8)), "kernel": jnp.ones((8, 8))}
        topology = so.set_smet(0.5, stop=1000)
        tx = so.smet(0.01, topology, density_exponent=0)
        adam = optax.adam(0.01)
        state, expected = tx.init(params), adam.init(params)
        counts = state.inner_state[0].local_count
        assert counts["embedding"] == optax.MaskedNode()
        assert counts["kernel"].shape == (1, 32)
        update = jax.jit(tx.update)
        for count in range(3):
            grads = jax.tree.map(lambda p, n=count: jnp.sin(n + p), params)
            updates, state = update(grads, state, params)
            wanted, expected = adam.update(grads, expected)
            np.testing.assert_allclose(
                updates["embedding"], wanted["embedding"], rtol=2e-6
            )

    @pytest.mark.parametrize(
        ("rate", "exponent", "factor"),
        [(0.01, 1.0, 4.0), (lambda count: 0.01, 0.5, 2.0), (0.01, 0, 1.0)],
    )
    def test_the_learning_rate_rises_as_the_density_falls(self, rate, exponent, factor):
        params = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
        topology = so.set_smet(0.75, stop=1000)
        tx = so.smet(rate, topology, density_exponent=exponent)
        grads = jax.tree.map(jnp.ones_like, params)
        updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        np.testing.assert_allclose(updates["bias"], -0.01 * factor, rtol=1e-5)

    def test_a_structure_may_say_the_density(self):
        topology = so.set_(structure=so.NM(1, 4), every=10, stop=1000)
        params = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
        tx = so.smet(0.01, topology)
        grads = params | {"bias": jnp.ones(8)}
        updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        np.testing.assert_allclose(updates["bias"], -0.04, rtol=1e-5)

    def test_norms_and_biases_are_not_decayed(self):
        params = {"dense": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
        tx = so.smet(
            0.01, so.set_smet(0.5, stop=1000), weight_decay=0.1, density_exponent=0
        )
        state = tx.init(params)
        params = so.apply_masks(params, state)
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = jax.jit(tx.update)(zero, state, params)
        np.testing.assert_array_equal(updates["dense"]["bias"], 0.0)
        active = so.get_masks(state)["dense"]["kernel"]
        np.testing.assert_allclose(updates["dense"]["kernel"][active], -0.001)

    @pytest.mark.parametrize("exponent", [math.nan, math.inf])
    def test_bad_exponents(self, exponent):
        with pytest.raises(ValueError, match="density_exponent must be a finite"):
            so.smet(0.01, so.set_smet(0.5, stop=1000), density_exponent=exponent)

    def test_needs_a_density(self):
        topology = so.static(masks={"kernel": jnp.ones((4, 4), bool)})
        with pytest.raises(ValueError, match="pass density_exponent=0"):
            so.smet(0.01, topology)
        so.smet(0.01, topology, density_exponent=0)

    def test_needs_a_topology_that_keeps_its_number(self):
        with pytest.raises(TypeError, match="topology must be a Topology"):
            so.smet(0.01, so.ste(0.5))
        with pytest.raises(ValueError, match="snfs changes how many"):
            so.smet(0.01, so.snfs(0.5, **SCHEDULE))

    @pytest.mark.parametrize("compact", [False, True])
    def test_compact_parameters_train_as_dense_ones(self, compact):
        blocks = so.Block((16, 16))
        topology = so.set_smet(0.5, structure=blocks, every=2, start=1, stop=20)
        tx = so.smet(0.01, topology, host_updates=True, compact=compact)
        update = jax.jit(tx.update)
        weights = {
            "kernel": jax.random.normal(jax.random.key(0), (64, 32)),
            "bias": jnp.zeros(32),
        }
        x = jax.random.normal(jax.random.key(1), (8, 64))

        @jax.jit
        def gradient(params):
            def loss(params):
                dense = so.dense_params(params)
                return jnp.mean((x @ dense["kernel"] + dense["bias"] - 1) ** 2)

            return jax.grad(loss)(params)

        found = []
        for are_compact in (False, True):
            state = tx.init(weights)
            params = so.apply_masks(weights, state)
            if are_compact:
                params, state = so.compact_params(params, state)
            for number in range(4):
                updates, state = update(gradient(params), state, params)
                params = optax.apply_updates(params, updates)
                if topology.due(number):
                    state, params = so.update_topology(tx, None, state, params)
            found.append(so.dense_params(params))
        for name in weights:
            np.testing.assert_allclose(*(tree[name] for tree in found), rtol=1e-5)


class TestSetSmet:
    def test_the_fraction_falls_along_a_cosine_to_its_last_value(self):
        schedule = so.set_smet(0.5, stop=1000).schedule
        halfway = 0.005 + (0.2 - 0.005) / 2
        for step, fraction in ((0, 0.2), (500, halfway), (1000, 0.005)):
            np.testing.assert_allclose(schedule.fraction(step), fraction, rtol=1e-5)

    def test_does_not_change_before_the_first_step(self):
        topology = so.set_smet(0.5, stop=1000)
        assert [step for step in range(301) if topology.due(step)] == [100, 200, 300]

    @pytest.mark.parametrize("block", [1, 4])
    def test_grows_nothing_that_it_has_just_dropped(self, block):
        params = {"kernel": jax.random.normal(jax.random.key(0), (32, 64))}
        topology = so.set_smet(0.5, stop=1000, block=block)
        key = jax.random.key(1)
        masks, state = topology.init(key, params)
        kernel = jnp.where(masks["kernel"], params["kernel"], 0)
        new, _ = topology.update(
            *(key, jnp.int32(0), masks, state), {"kernel": kernel}, params
        )
        old, new = (np.asarray(tree["kernel"]) for tree in (masks, new))
        assert new.sum() == old.sum() == 1024
        # A fifth of the units was dropped, and none of it was grown back.
        assert (old & ~new).sum() == int(0.2 * (1024 // block)) * block

    def test_where_nothing_else_is_left_it_grows_it_again(self):
        params = {"kernel": jnp.ones((4, 8))}
        topology = so.set_smet(1 / 32, stop=1000, drop_fraction=1.0)
        masks, state = topology.init(jax.random.key(0), params)
        new, _ = topology.update(
            *(jax.random.key(1), jnp.int32(0), masks, state, params, params)
        )
        assert new["kernel"].sum() == 31

    @pytest.mark.parametrize("fractions", [(0.1, 0.2), (1.5, 0.1), (0.1, -0.1)])
    def test_bad_fractions(self, fractions):
        first, last = fractions
        with pytest.raises(ValueError, match=r"drop_fraction|last_fraction"):
            so.set_smet(0.5, stop=1000, drop_fraction=first, last_fraction=last)

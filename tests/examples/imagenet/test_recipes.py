"""The network and the recipes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from examples.imagenet import recipes
from examples.imagenet.mesh import size_of
from examples.imagenet.model import ResNet


class TestModel:
    @staticmethod
    def variables(model, size=224):
        images = jnp.zeros((1, size, size, 3))
        return jax.eval_shape(
            lambda: model.init(jax.random.key(0), images, train=False)
        )

    def test_is_resnet_50(self):
        params = self.variables(ResNet())["params"]
        assert size_of(params) == 25_557_032
        kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
        assert len(kernels) == 53

    def test_is_version_1_5(self):
        """The 3x3 convolutions have the strides, not the 1x1 before them."""
        model = ResNet(width=4, stages=(1, 1), classes=7, dtype=jnp.float32)
        variables = self.variables(model, 64)
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        _, state = jax.eval_shape(
            lambda v, x: model.apply(
                v, x, train=False, capture_intermediates=True, mutable="intermediates"
            ),
            variables,
            images,
        )
        block = state["intermediates"]["stage_2_block_1"]
        sizes = {
            name: block[name]["__call__"][0].shape[1]
            for name in ("conv_1", "conv_2", "conv_3", "conv_shortcut")
        }
        assert sizes == {"conv_1": 16, "conv_2": 8, "conv_3": 8, "conv_shortcut": 8}

    def test_every_convolution_is_followed_by_a_norm(self):
        model = ResNet()
        images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        links = so.infer_norm_links(
            model.apply, self.variables(model), images, train=False
        )
        assert len(links) == 53
        assert list(links.undecided) == ["head/kernel"]

    def test_computes_in_bfloat16_with_float32_masters(self):
        model = ResNet(width=4, stages=(1,), classes=7)
        variables = self.variables(model, 32)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
            jnp.dtype(jnp.float32)
        }

        def apply(variables):
            images = jnp.zeros((2, 32, 32, 3))
            return model.apply(variables, images, train=True, mutable=["batch_stats"])

        program = str(jax.make_jaxpr(apply)(variables))
        results = re.findall(r":(\w+)\[[^\]]*\] = conv_general_dilated", program)
        assert results == ["bf16"] * 5
        logits, _ = jax.eval_shape(apply, variables)
        assert logits.dtype == jnp.float32

    @pytest.mark.parametrize("zero_init", [True, False])
    def test_blocks_start_as_their_shortcuts(self, zero_init):
        model = ResNet(width=4, stages=(1,), classes=7, zero_init=zero_init)
        images = jnp.zeros((1, 32, 32, 3))
        # The default kind of key takes seconds to compile.
        key = jax.random.key(0, impl="rbg")
        init = jax.jit(lambda: model.init(key, images, train=False))
        params = init()["params"]
        scale = params["stage_1_block_1"]["norm_3"]["scale"]
        assert np.all(np.asarray(scale) == (0.0 if zero_init else 1.0))


class TestRecipes:
    @staticmethod
    def rates(recipe, per_epoch, epochs):
        schedule = recipes.learning_rate(recipe, per_epoch)
        return [float(schedule(round(epoch * per_epoch))) for epoch in epochs]

    @pytest.mark.parametrize("name", ["dense", "rigl", "rigl_erk"])
    def test_rigl(self, name):
        recipe = recipes.RECIPES[name]
        rates = self.rates(recipe, 312, (0, 2.5, 5, 29.9, 30, 69.9, 70, 90, 99.9))
        expected = (0, 0.8, 1.6, 1.6, 0.16, 0.16, 0.016, 0.0016, 0.0016)
        np.testing.assert_allclose(rates, expected, rtol=1e-5)
        assert recipes.total_steps(recipe, 312) == 31_200

    @pytest.mark.parametrize("epochs", [90, 180, 270])
    def test_sparseopt(self, epochs):
        recipe = recipes.RECIPES[f"sparseopt_{epochs}"]
        middle = 5 + (epochs - 5) / 2
        rates = self.rates(recipe, 312, (0, 5, middle, epochs))
        np.testing.assert_allclose(rates, (1e-5, 1.6, 0.8, 1e-5), rtol=5e-3)
        assert recipe.sparseopt and recipe.method == "rigl"

    def test_longer_training(self):
        recipe = recipes.lengthened(recipes.RECIPES["rigl_erk"], 5)
        rates = self.rates(recipe, 312, (25, 149.9, 150, 350, 450))
        np.testing.assert_allclose(rates, (1.6, 1.6, 0.16, 0.016, 0.0016), rtol=1e-5)
        schedule = recipes.make_topology(recipe, 312).schedule
        assert (schedule.every, schedule.stop) == (100, 117_000)

    @pytest.mark.parametrize(
        ("changes", "every"),
        [({}, 100), ({"batch_size": 512}, 800), ({"batch_size": 512, "every": 7}, 7)],
    )
    def test_changes_of_the_topology(self, changes, every):
        recipe = dataclasses.replace(recipes.RECIPES["rigl"], **changes)
        schedule = recipes.make_topology(recipe, 1000).schedule
        assert (schedule.every, schedule.start) == (every, every)
        assert (schedule.stop, schedule.drop_fraction) == (75_000, 0.3)

    @pytest.mark.parametrize("steps", [1, 2, 3, 10])
    @pytest.mark.parametrize("name", recipes.RECIPES)
    def test_the_shortest_runs(self, name, steps):
        recipe = recipes.lengthened(recipes.RECIPES[name], steps / 1000)
        schedule = recipes.learning_rate(recipe, 10)
        rates = [float(schedule(step)) for step in range(steps)]
        assert np.isfinite(rates).all() and min(rates) >= 0
        if recipe.method != "dense":
            recipes.make_topology(recipe, 10)

    def test_uniform_leaves_the_first_layer_dense(self):
        params = TestModel.variables(ResNet())["params"]
        recipe = dataclasses.replace(recipes.RECIPES["rigl"], sparsity=0.8)
        plan = so.plan(params, recipes.make_topology(recipe, 312))
        density = {
            leaf.path: leaf.active / leaf.layer.size
            for leaf in plan.leaves
            if leaf.layer
        }
        assert density.pop("stem/kernel") == 1.0
        assert density == pytest.approx(dict.fromkeys(density, 0.2), abs=1e-3)

    @pytest.mark.parametrize("method", ["static", "set", "rigl"])
    def test_method_and_correction(self, method):
        recipe = dataclasses.replace(
            recipes.RECIPES["sparseopt_90"], method=method, sparsity=0.5
        )
        plain = dataclasses.replace(recipe, sparseopt=False)
        params = {"kernel": jnp.ones((40, 8))}
        grads = {"kernel": jax.random.normal(jax.random.key(0), (40, 8))}
        updates = []
        for chosen in (recipe, plain):
            tx = recipes.make_optimizer(chosen, 10, seed=0)
            state = tx.init(params)
            updates.append(jax.jit(tx.update)(grads, state, params)[0]["kernel"])
        mask = so.get_masks(state)["kernel"]
        ratio = np.asarray(updates[0] / updates[1])[np.asarray(mask)]
        assert ratio.max() > 1.02
        assert ratio.min() < 0.98

    def test_growth_sees_the_mean_of_the_micro_batches(self):
        recipe = dataclasses.replace(
            recipes.RECIPES["rigl_erk"],
            every=2,
            sparsity=0.5,
            warmup_epochs=0.0,
            decay_epochs=(),
        )
        params = {"kernel": jax.random.normal(jax.random.key(0), (16, 8))}
        parts = [
            {"kernel": jax.random.normal(jax.random.key(key), (16, 8))}
            for key in range(1, 5)
        ]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 2, *parts[2:])

        optimizers = {}
        for parts_of_step in (1, 2):
            tx = recipes.make_optimizer(recipe, 10, seed=0, accumulate=parts_of_step)
            optimizers[parts_of_step] = tx, jax.jit(tx.update)

        def trained(accumulate, batches):
            tx, update = optimizers[accumulate]
            state = tx.init(params)
            now = so.apply_masks(params, state)
            for grads in batches:
                updates, state = update(grads, state, now)
                now = optax.apply_updates(now, updates)
            return np.asarray(so.get_masks(state)["kernel"]), np.asarray(now["kernel"])

        zeros = jax.tree.map(jnp.zeros_like, params)
        # The third step is the first that updates the masks.
        first = [zeros] * 2
        together, weights = trained(2, [*first, *first, *parts[2:], *parts[2:]])
        expected, expected_weights = trained(1, [*first, mean, mean])
        np.testing.assert_array_equal(together, expected)
        np.testing.assert_allclose(weights, expected_weights, rtol=1e-5)
        for part in parts[2:]:
            assert (together != trained(1, [*first, part])[0]).any()
        assert (together != trained(1, first)[0]).any()

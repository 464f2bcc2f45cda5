"""The networks, the recipes, and the options of the command line."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from examples.cifar import __main__ as cifar
from examples.cifar import config as configs
from examples.cifar import recipes, resnets
from examples.common import lengths

RECIPES = recipes.RECIPES


def variables(model):
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def kernels(model):
    leaves = jax.tree.leaves(variables(model)["params"])
    return [leaf for leaf in leaves if leaf.ndim == 4]


def links(model):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return so.infer_norm_links(model.apply, variables(model), image, train=False)


class TestNetworks:
    def test_resnet_20(self):
        """He et al. count 0.27 million, without the convolutions of the shortcuts."""
        model = resnets.ResNet(classes=10)
        shapes = [leaf.shape for leaf in kernels(model)]
        assert len([shape for shape in shapes if shape[0] == 3]) == 19
        assert len([shape for shape in shapes if shape[0] == 1]) == 2
        params = variables(model)["params"]
        without = sum(
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if "shortcut" not in jax.tree_util.keystr(path)
        )
        assert without == 269_722

    def test_every_convolution_of_resnet_20_is_followed_by_a_norm(self):
        found = links(resnets.ResNet())
        assert len(found) == 21
        assert list(found.undecided) == ["head/kernel"]

    def test_wrn_22_2(self):
        shapes = [leaf.shape for leaf in kernels(resnets.WideResNet())]
        assert len([shape for shape in shapes if shape[0] == 3]) == 19
        assert len([shape for shape in shapes if shape[0] == 1]) == 3
        assert {shape[-1] for shape in shapes} == {16, 32, 64, 128}

    def test_pre_activation_leaves_sums_undecided(self):
        found = links(resnets.WideResNet())
        assert found["stem/kernel"] == "stage_1_block_1/norm_1"
        assert found["stage_2_block_1/conv_1/kernel"] == "stage_2_block_1/norm_2"
        assert "stage_2_block_1/conv_2/kernel" in found.undecided

    def test_initial_weights_are_kaiming_normal(self):
        model = resnets.ResNet(blocks=1)
        images = jnp.zeros((1, 8, 8, 3))
        params = jax.jit(model.init, static_argnames="train")(
            jax.random.key(0, impl="rbg"), images, train=False
        )["params"]
        kernel = np.asarray(params["stage_3_block_1"]["conv_2"]["kernel"])
        assert kernel.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
        assert np.abs(kernel).max() > 3.5 * kernel.std()  # not truncated

    def test_only_what_is_computed_becomes_narrower(self):
        model = resnets.ResNet(width=4, blocks=1, dtype=jnp.bfloat16)
        shapes = variables(model)
        float32 = {jnp.dtype("float32")}
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == float32
        logits, changed = jax.eval_shape(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]),
            shapes,
            jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.bfloat16),
        )
        assert logits.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == float32


class TestRecipes:
    @staticmethod
    def rates(recipe, per_epoch, epochs):
        schedule = recipes.learning_rate(recipe, per_epoch)
        return [float(schedule(round(epoch * per_epoch))) for epoch in epochs]

    @pytest.mark.parametrize("epochs", [100, 200, 300, 500])
    def test_sparseopt(self, epochs):
        recipe = dataclasses.replace(RECIPES["sparseopt_cifar100_r20"], epochs=epochs)
        middle = 5 + (epochs - 5) / 2
        rates = self.rates(recipe, 390, (0, 2.5, 5, middle, epochs))
        np.testing.assert_allclose(rates, (0, 0.05, 0.1, 0.05, 1e-6), rtol=1e-3)
        assert (recipe.method, recipe.correction) == ("rigl", "fan_in")
        assert (recipe.network, recipe.width, recipe.dataset) == (
            *("resnet20", 16),
            "cifar100",
        )
        assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (
            *(128, 0.9),
            5e-4,
        )

    def test_rigl(self):
        recipe = RECIPES["rigl_wrn22_2"]
        assert recipes.total_steps(recipe, 390) == 97_500
        rates = self.rates(recipe, 390, (0, 76, 78, 153, 155, 229, 231))
        np.testing.assert_allclose(
            rates, (0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008), rtol=1e-5
        )
        assert (recipe.sparsity, recipe.network, recipe.dataset) == (
            *(0.8, "wrn22_2"),
            "cifar10",
        )

    @pytest.mark.parametrize("name", RECIPES)
    def test_topologies_change_as_rigl_has_it(self, name):
        recipe = RECIPES[name]
        topology = recipes.make_topology(recipe, 390)
        if recipe.method in ("dense", "static"):
            assert topology is None or not topology.moves
            return
        schedule = topology.schedule
        assert (schedule.every, schedule.start) == (100, 0)
        assert (schedule.drop_fraction, schedule.decay) == (0.3, "cosine")
        share = schedule.stop / recipes.total_steps(recipe, 390)
        assert 0.749 < share < 0.769
        assert topology.replaces_step == (recipe.method == "rigl")

    def test_longer_training(self):
        recipe = lengths.stretched(RECIPES["rigl_erk_wrn22_2"], 2)
        np.testing.assert_allclose(
            self.rates(recipe, 390, (153, 155)), (0.1, 0.02), rtol=1e-5
        )
        schedule = recipes.make_topology(recipe, 390).schedule
        assert schedule.every == 100
        assert schedule.stop == pytest.approx(2 * 75_000, rel=2e-3)

    @pytest.mark.parametrize("steps", [1, 2, 7])
    @pytest.mark.parametrize("name", RECIPES)
    def test_the_shortest_runs(self, name, steps):
        recipe = dataclasses.replace(RECIPES[name], epochs=steps / 10)
        schedule = recipes.learning_rate(recipe, 10)
        rates = [float(schedule(step)) for step in range(steps)]
        assert np.isfinite(rates).all() and min(rates) >= 0
        recipes.make_topology(recipe, 10)

    @pytest.mark.parametrize("warmup", [0.0, 1.0])
    def test_divisions_on_one_step_count_all(self, warmup):
        recipe = dataclasses.replace(
            RECIPES["rigl_wrn22_2"],
            epochs=3.0,
            decay_at=(0.51, 0.515, 0.9),
            warmup_epochs=warmup,
        )
        rates = self.rates(recipe, 10, (1.4, 1.7, 2.8))
        np.testing.assert_allclose(rates, (0.1, 0.004, 0.0008), rtol=1e-5)

    def test_uniform_leaves_the_first_layer_dense(self):
        params = variables(resnets.WideResNet())["params"]
        plan = so.plan(params, recipes.make_topology(RECIPES["rigl_wrn22_2"], 390))
        density = {
            leaf.path: leaf.active / leaf.layer.size
            for leaf in plan.leaves
            if leaf.layer
        }
        assert density.pop("stem/kernel") == 1.0
        assert density == pytest.approx(dict.fromkeys(density, 0.2), abs=1e-3)

    @pytest.mark.parametrize("ham", [False, True])
    def test_the_correction_comes_first(self, ham):
        """Without decay and momentum, an update is the corrected gradient."""
        recipe = dataclasses.replace(
            RECIPES["sparseopt_cifar100_r20"],
            method="static",
            weight_decay=0.0,
            warmup_epochs=0.0,
            ham=ham,
            sparsity=0.5,
            momentum=0.0,
        )
        params = {"kernel": jnp.ones((40, 8))}
        grads = {"kernel": jax.random.normal(jax.random.key(0), (40, 8))}
        tx = recipes.make_optimizer(recipe, 10, so.scale_by_sparseopt(), key=0)
        state = tx.init(params)
        updates = np.asarray(tx.update(grads, state, params)[0]["kernel"])
        mask = np.asarray(so.get_masks(state)["kernel"])
        fan_in = mask.sum(axis=0)
        step = -0.1 * np.sqrt(fan_in / fan_in.mean()) * np.asarray(grads["kernel"])
        if ham:
            moved = 1.0 + step
            exponent = 0.1 * (200 * np.sign(moved) * step / -0.1 + 16e-3)
            step = moved * np.exp(-np.clip(exponent, -5, 5)) - 1.0
        np.testing.assert_allclose(updates[mask], step[mask], rtol=2e-4, atol=1e-6)


class TestOptions:
    def test_every_field_of_a_recipe_has_one(self):
        options = {field.name: field for field in dataclasses.fields(configs.Config)}
        for name in configs.FIELDS:
            assert options[name].default is None

    def test_they_change_the_recipe(self):
        config = configs.Config(
            "rigl_wrn22_2", sparsity=0.5, decay_at=(), nesterov=False, multiplier=0.5
        )
        expected = dataclasses.replace(
            RECIPES["rigl_wrn22_2"],
            sparsity=0.5,
            decay_at=(),
            nesterov=False,
            epochs=125.0,
        )
        assert config.chosen == expected
        assert configs.Config("rigl_wrn22_2").chosen == RECIPES["rigl_wrn22_2"]

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({}, "rigl_wrn22_2"),
            ({"dataset": "glyphs", "sparsity": 0.95}, "rigl_wrn22_2-glyphs-0.95"),
            ({"epochs": 100.0, "width": 16}, "rigl_wrn22_2-100"),
            ({"sparsity": 0.9, "multiplier": 0.5}, "rigl_wrn22_2-0.9-125"),
            ({"epochs": 10.0, "multiplier": 2.0}, "rigl_wrn22_2-20"),
        ],
    )
    def test_the_folder_is_named_after_the_recipe(self, changes, name):
        config = configs.Config("rigl_wrn22_2", **changes)
        assert config.folder == Path("runs/cifar", name)
        config = dataclasses.replace(config, output=Path("elsewhere"))
        assert config.folder == Path("elsewhere")

    def test_only_seeds_together_depend_on_their_number(self):
        one, more, together, fewer = (
            configs.Config("rigl_wrn22_2", seeds=seeds, together=together).record()
            for seeds, together in [(1, True), (5, False), (5, True), (3, True)]
        )
        assert one == more
        assert more != together != fewer

    @pytest.mark.parametrize(
        ("args", "messages"),
        [
            (
                ["--recipe", "sparseopt_r20"],
                [
                    "recipe 'sparseopt_r20' is not one of sparseopt_",
                    *("dense_wrn22_2", "closest match first"),
                ],
            ),
            (["--method", "lottery"], ["lottery", "dense", "static", "set", "rigl"]),
            (["--dataset", "imagenet"], ["imagenet", "cifar100", "glyphs16"]),
            (["--correction", "some"], ["some", "fan_in", "batch_variance"]),
            (["--method", "dense"], ["correction must be none for method dense"]),
            (["--sparsity", "1"], [r"sparsity must be in \[0, 1\), got 1.0"]),
            (["--lr", "0"], ["learning_rate must be above 0, got 0.0"]),
            (["--epochs", "nan"], ["epochs must be above 0, got nan"]),
            (["--every", "0"], ["every must be at least 1, got 0"]),
            (["--seeds", "0"], ["seeds must be at least 1, got 0"]),
            (["--width", "-1"], ["width must be at least 1, got -1"]),
            (["--momentum", "1"], [r"momentum must be in \[0, 1\), got 1.0"]),
            (["--dropout", "0.3"], ["dropout must be 0 for resnet20, got 0.3"]),
            (["--decay-at", "0.5", "1"], [r"decay_at must be fractions in \(0, 1\)"]),
            (
                ["--decay-at", "0.04", "0.5", "--multiplier", "2"],
                [r"after the warm-up, which takes 0\.05 of .* got \(0\.04, 0\."],
            ),
            (
                ["--recipe", "set_cifar100_r20", "--stop", "0"],
                [r"stop must be in \(0, 1\], got 0\.0; pass --method static .*"],
            ),
            (["--multiplier", "0"], ["multiplier must be above 0, got 0.0"]),
        ],
    )
    def test_mistakes_are_told(self, tmp_path, capsys, args, messages):
        with pytest.raises(SystemExit) as error:
            cifar.main(["--output", str(tmp_path / "none"), *args])
        assert error.value.code == 2
        said = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
        for text in messages:
            assert re.search(text, said), said
        assert not (tmp_path / "none").exists()

"""The program for CIFAR: its trainer in all its forms, and itself from end to end."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sparseopt_jax as so
from tests.examples.test_imagenet import EXAMPLES, events, module, rows_of

cifar = module("cifar")
configs = module("cifar_config")
data = module("common.cifar_data")
programs = module("cifar_step")
trainers = module("cifar_trainer")

TINY = {"dataset": "glyphs16", "width": 8, "batch_size": 16}
TINY |= {"epochs": 3.0, "every": 3, "warmup_epochs": 0.5, "sparsity": 0.8}
SET = configs.Config("set_cifar100_r20", **TINY)
RIGL = configs.Config("sparseopt_cifar100_r20", **TINY)
STEPS, PER_EPOCH = 12, 4
CHANGES = [0, 3, 6]  # until three quarters of the training


class Network(nn.Module):
    """In the place of a residual network, which would compile for longer."""

    width: int
    blocks: int
    classes: int
    dtype: object
    dropout: float

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.width, (3, 3), (2, 2), use_bias=False, name="stem")(images)
        x = nn.BatchNorm(not train, momentum=0.9, name="norm_stem")(x)
        return nn.Dense(self.classes, name="head")(jnp.mean(nn.relu(x), axis=(1, 2)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def make_trainer(folder):
    """Makes trainers, each compiled once for all tests.

    They take the test images in four batches, of which the last is not full.
    """
    dataset = data.load("glyphs16", folder, train=64, test=64)

    @functools.cache
    def cached(recipe, together, loop):
        config = configs.Config("dense_cifar100_r20", **dataclasses.asdict(recipe))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(programs, "NETWORKS", {"resnet20": Network})
            return trainers.Trainer(config, dataset, together=together, loop=loop)

    def make(config, _dataset=None, *, together=1, loop=False):
        return cached(config.chosen, together, loop)

    with pytest.MonkeyPatch.context() as patch:
        for users in (programs, trainers):
            patch.setattr(users, "EVALUATED_AT_ONCE", 20)
        yield make


def trained(trainer, seeds, steps=STEPS, starting=None):
    """The run after so many steps, and after which of them the host was asked."""
    run, step, stops = (starting or trainer).start(seeds), 0, []
    if starting:  # which is compiled, and starts with the same
        run = run._replace(state=run.state.replace(tx=trainer.program.tx))
    while step < steps:
        run, step = trainer.advance(run, seeds, step)
        stops.append(step)
    return run, stops


def kernel_and_mask(run):
    """Of one layer, as arrays that outlive the run."""
    trees = (run.state.params, so.get_masks(run.state.opt_state))
    return (np.array(tree["head"]["kernel"]) for tree in trees)


def assert_close(run, other):
    """The masks are the same; the weights too, but for rounding."""
    for one, two in zip(
        *(jax.tree.leaves(so.get_masks(r.state.opt_state)) for r in (run, other)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
    for what in ("params", "batch_stats"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4),
            *(getattr(r.state, what) for r in (run, other)),
        )
    np.testing.assert_allclose(run.sums.loss, other.sums.loss, rtol=1e-4)


@pytest.fixture(scope="module")
def alone(make_trainer):
    """Two seeds with SET, one after another, step by step."""
    return [trained(make_trainer(SET), [seed])[0] for seed in (0, 1)]


class TestTrainer:
    def test_steps_in_a_loop_are_the_same(self, alone, make_trainer):
        trainer = make_trainer(SET, loop=True)
        run, stops = trained(trainer, [1], starting=make_trainer(SET))
        # Each change is a step of its own; no span crosses the end of an epoch.
        assert stops == [1, 3, 4, 6, 7, 8, 12]
        assert_close(run, alone[1])
        assert trainer._many._cache_size() == 1
        numbers = trainer.evaluate(run.state)
        step_by_step = make_trainer(SET).evaluate(run.state)
        for name, value in numbers.items():
            np.testing.assert_allclose(value, step_by_step[name], rtol=1e-5)

    def test_seeds_together_are_the_same(self, alone, make_trainer):
        trainer = make_trainer(SET, together=2)
        run, _ = trained(trainer, [0, 1], starting=make_trainer(SET))
        for seed in (0, 1):
            own = jax.tree.map(lambda x, seed=seed: x[seed : seed + 1], run)
            assert_close(own, alone[seed])
        kernels = run.state.params["head"]["kernel"]
        assert (kernels[0] != kernels[1]).any()

    def test_changes_are_those_of_the_schedule(self, alone, make_trainer):
        trainer = make_trainer(SET)
        assert trainer.changes.tolist() == CHANGES
        assert (trainer.per_epoch, trainer.total) == (PER_EPOCH, STEPS)
        numbers = trainer.sparsity(alone[0].state)
        assert numbers["inactive_nonzero"] == [0]
        assert numbers["density"] == pytest.approx(0.2, abs=0.01)
        assert numbers["explored"] > 0.25

    def test_rigl_replaces_the_step(self, make_trainer):
        trainer = make_trainer(RIGL)
        run = trainer.start([0])
        before, masks = kernel_and_mask(run)
        others = jax.device_get(run.state.params["norm_stem"])
        run, step = trainer.advance(run, [0], 0)
        after, new_masks = kernel_and_mask(run)
        assert step == 1
        assert new_masks.sum() == masks.sum()
        assert (new_masks & ~masks).any()
        np.testing.assert_array_equal(after, np.where(new_masks & masks, before, 0))
        jax.tree.map(
            np.testing.assert_array_equal, run.state.params["norm_stem"], others
        )

    def test_set_follows_the_step(self, make_trainer):
        trainer = make_trainer(SET)
        run, step = trained(trainer, [0], steps=3)[0], 3
        before, masks = kernel_and_mask(run)
        run, _ = trainer.advance(run, [0], step)
        after, new_masks = kernel_and_mask(run)
        assert (new_masks & ~masks).any()
        kept = new_masks & masks
        assert (before != after)[kept].all()
        assert (after[~kept] == 0).all()

    def test_orders_are_those_of_the_seed_and_the_epoch(self, make_trainer):
        trainer = make_trainer(SET)
        _, orders = trainer.draw((0, 1), 0)
        assert sorted(orders[0].tolist()) == list(range(64))
        assert orders[0].tolist() != orders[1].tolist()
        _, later = trainer.draw((0, 1), 1)
        assert orders[0].tolist() != later[0].tolist()
        assert trainer.draw((1,), 0)[1][0].tolist() == orders[1].tolist()

    def test_what_a_step_sees(self, make_trainer):
        """The next images of the order, cropped anew in every epoch."""
        trainer = make_trainer(SET)
        keys, orders = trainer.draw((0,), 0)
        batch = jax.jit(functools.partial(trainer.program.batch, keys[0], orders[0]))
        first, again, next_epoch, second = (
            batch(trainer.train, jnp.int32(step)) for step in (0, 0, PER_EPOCH, 1)
        )
        for images, labels, _ in (first, again, next_epoch):
            rows = orders[0, :16]
            np.testing.assert_array_equal(labels, trainer.train.labels[rows])
            originals = trainer.train.images[rows]
            crops = [(a == b).all() for a, b in zip(images, originals, strict=True)]
            assert sum(crops) < 6  # one in 25 is the image itself
        np.testing.assert_array_equal(first[0], again[0])
        assert (first[0] != next_epoch[0]).any()
        keys = [jax.random.key_data(x[2]).tolist() for x in (first, next_epoch)]
        assert keys[0] != keys[1]
        rows = orders[0, 16:32]
        np.testing.assert_array_equal(second[1], trainer.train.labels[rows])

    def test_every_test_image_counts_once(self, alone, make_trainer):
        trainer, state = make_trainer(SET), alone[0].state
        images = trainer.program.normalized(trainer.test.images)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        variables = jax.tree.map(lambda x: x[0], variables)
        logits = np.asarray(trainer.program.model.apply(variables, images, train=False))
        labels = np.asarray(trainer.test.labels)
        numbers = trainer.evaluate(state)
        right = logits.argmax(axis=1) == labels
        assert numbers["accuracy"][0] == pytest.approx(right.mean())
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[range(64), labels]
        assert numbers["loss"][0] == pytest.approx(losses.mean(), rel=1e-4)


ARGS = [
    *("--recipe", "set_cifar100_r20", "--dataset", "glyphs16", "--width", "8"),
    *("--batch-size", "16", "--epochs", "3", "--every", "3"),
    *("--warmup-epochs", "0.5", "--sparsity", "0.8", "--seeds", "2"),
    *("--train-images", "64", "--test-images", "64"),
]


@pytest.fixture
def start(folder, make_trainer, monkeypatch):
    """Starts the program, with a trainer that is compiled already."""
    monkeypatch.setattr(cifar, "Trainer", make_trainer)

    def start(output, *args):
        where = ["--data-dir", str(folder), "--output", str(output)]
        cifar.main([*ARGS, *where, *args])

    return start


@pytest.fixture(scope="module")
def output(folder, make_trainer, tmp_path_factory):
    """The folder of a finished run."""
    output = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "Trainer", make_trainer)
        where = ["--data-dir", str(folder), "--output", str(output)]
        cifar.main([*ARGS, *where])
    return output


def rows_without_times(output, seed):
    return [
        {name: x for name, x in row.items() if name != "ms_per_step"}
        for row in rows_of(output / f"seed_{seed}" / "log.jsonl")
    ]


class TestProgram:
    def test_writes_its_files(self, output):
        assert {path.name for path in output.iterdir()} == {
            *("config.json", "results.json", "figure.png", "checkpoints"),
            *("seed_0", "seed_1"),
        }
        config = json.loads((output / "config.json").read_text())
        assert {name: config[name] for name in ("method", "every", "seeds")} == {
            "method": "set",
            "every": 3,
            "seeds": 2,
        }
        assert config["glyphs"]["faintest"] > 1
        with Image.open(output / "figure.png") as picture:
            assert picture.size == (1920, 640)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100

    def test_results_are_what_the_logs_have(self, output):
        results = json.loads((output / "results.json").read_text())
        assert "simulated" in results["note"] and "synthetic" in results["note"]
        for seed in (0, 1):
            rows = rows_of(output / f"seed_{seed}" / "log.jsonl")
            told = [row["event"] for row in rows]
            assert told == [*["train", "evaluation"] * 3, "run"]
            last = rows[-2]
            assert last["accuracy"] == results["test_accuracy"][seed]
            assert last["explored"] == results["explored"][seed] > 0.25
            curve = results["curves"]["train_loss"]["values"][seed]
            assert curve == [row["loss"] for row in rows if row["event"] == "train"]
            # Means over an epoch, of which the first are those of guessing.
            assert curve[0] == pytest.approx(np.log(100), rel=0.1)
            assert curve[-1] < curve[0]
        accuracies = results["test_accuracy"]
        assert results["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
        assert results["test_accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1))
        assert results["ms_per_step"] > 0

    def test_tensorboard_can_read_it(self, output):
        found = {tag for _, tag, _ in events(output / "seed_1" / "events")}
        assert found >= {
            *("train/loss", "train/learning_rate", "evaluation/accuracy"),
            *("evaluation/explored", "evaluation/dead_neurons/stem/kernel"),
        }

    def test_goes_on_to_the_last_bit(self, output, start, make_trainer, tmp_path):
        """Stopped in the middle of an epoch of the second seed."""
        trainer, advance = make_trainer(SET), trainers.Trainer.advance

        def stopped(run, seeds, step):
            if (seeds, step) == ((1,), 5):
                signal.raise_signal(signal.SIGTERM)
            return advance(trainer, run, seeds, step)

        trainer.advance = stopped
        try:
            with pytest.raises(SystemExit) as error:
                start(tmp_path)
        finally:
            del trainer.advance
        assert error.value.code == 128 + signal.SIGTERM
        assert not (tmp_path / "results.json").exists()
        saved = tmp_path / "checkpoints" / "seed_1"
        assert [path.name for path in saved.glob("[0-9]*")] == ["6"]
        with (tmp_path / "seed_1" / "log.jsonl").open("a") as file:
            file.write('{"event": "train", "step": 8, "lo')  # cut short

        start(tmp_path)
        for seed in (0, 1):
            assert rows_without_times(tmp_path, seed) == rows_without_times(
                output, seed
            )
        first, again = (
            json.loads((folder / "results.json").read_text())
            for folder in (output, tmp_path)
        )
        assert first["test_loss"] == again["test_loss"]
        assert first["curves"] == again["curves"]

    def test_together_comes_out_the_same(self, output, start, tmp_path):
        start(tmp_path, "--together")
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
            "seeds_0_to_1"
        ]
        first, again = (
            json.loads((folder / "results.json").read_text())
            for folder in (output, tmp_path)
        )
        assert first["explored"] == pytest.approx(again["explored"])
        for name in ("train_loss", "test_loss"):
            np.testing.assert_allclose(
                *(results["curves"][name]["values"] for results in (first, again)),
                rtol=1e-3,
            )

    def test_finished_is_finished(self, output, start, make_trainer, monkeypatch):
        monkeypatch.setattr(make_trainer(SET), "start", None)
        before = rows_of(output / "seed_0" / "log.jsonl")
        start(output)
        assert rows_of(output / "seed_0" / "log.jsonl") == before

    def test_another_configuration_is_refused(self, output, start):
        before = (output / "config.json").read_text()
        with pytest.raises(SystemExit, match=r"every was 3, is 2\. Give --overwrite"):
            start(output, "--every", "2")
        assert (output / "config.json").read_text() == before
        assert (output / "checkpoints").exists()

    def test_checkpoints_of_another_run_are_refused(self, output, start, tmp_path):
        """Moved into a folder that says otherwise."""
        shutil.copytree(output / "checkpoints", tmp_path / "checkpoints")
        with pytest.raises(SystemExit, match="seed_0 is of a run with another conf"):
            start(tmp_path, "--seeds", "1")

    def test_another_run_is_removed_if_told(self, output, start, tmp_path):
        old = tmp_path / "run"
        shutil.copytree(output, old)
        (old / "seed_1" / "thesis.txt").touch()
        config = configs.Config("dense_cifar100_r20", output=old, overwrite=True)
        cifar.open_folder(config, {"other": 1})
        left = {str(path.relative_to(old)) for path in old.rglob("*")}
        assert left == {"config.json", "seed_1", "seed_1/thesis.txt"}
        config = dataclasses.replace(config, output=tmp_path / "file")
        config.output.touch()
        with pytest.raises(ValueError, match="is a file"):
            cifar.open_folder(config, {})

    def test_the_same_run_is_never_removed(self, output):
        before = (output / "seed_0" / "log.jsonl").read_text()
        record = json.loads((output / "config.json").read_text())
        config = configs.Config("set_cifar100_r20", output=output, overwrite=True)
        cifar.open_folder(config, record)
        assert (output / "seed_0" / "log.jsonl").read_text() == before
        assert (output / "checkpoints" / "seed_0").exists()


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    class Diverged:
        per_epoch, total, schedule = 4, 8, staticmethod(lambda step: 0.1)

    config = configs.Config("dense_cifar100_r20", output=tmp_path)
    group = cifar.Group(Diverged(), config, {}, [0, 1])
    group.step = 4
    for log in group._logs:
        log.begin(0)
    one = programs.Sums(np.array([4.0, np.nan]), np.array([1.0, 0.0]))
    assert group._tell_training(programs.Run(None, one)) == 1.0
    both = programs.Sums(np.full(2, np.nan), np.zeros(2))
    with pytest.raises(SystemExit, match="the loss is nan at step 4"):
        group._tell_training(programs.Run(None, both))
    assert rows_of(tmp_path / "seed_1" / "log.jsonl")[0]["loss"] is None
    for log in group._logs:
        log.__exit__()


def test_every_network_can_be_looped_over():
    """What a step gives has the shapes and types of what it takes."""
    images = np.zeros((32, 16, 16, 3), np.uint8)
    dataset = data.Dataset("cifar10", images, np.zeros(32, int), images, None, 10)
    config = configs.Config(
        "rigl_wrn22_2", width=4, blocks=1, batch_size=16, dtype="bfloat16"
    )
    trainer = trainers.Trainer(config, dataset, together=2, loop=True)
    shapes = jax.eval_shape(lambda: trainer.start([0, 1]))
    arguments = (*trainer.draw((0, 1), 0), trainer.train, 3)
    assert jax.eval_shape(trainer._many, shapes, *arguments) == shapes
    assert shapes.state.params["stem"]["kernel"].dtype == jnp.float32


def test_batch_variances_are_those_of_the_norms():
    images = np.zeros((32, 8, 8, 3), np.uint8)
    dataset = data.Dataset("cifar10", images, np.zeros(32), images, np.zeros(32), 10)
    config = configs.Config(
        "batch_variance_cifar100_r20", width=4, blocks=1, batch_size=16
    )
    trainer = trainers.Trainer(config, dataset, together=1, loop=False)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: random.uniform(1, 2, x.shape).astype(x.dtype), trainer.program.shapes
    )
    ones = jax.tree.map(np.ones_like, variables["params"])
    factors, _ = trainer.program.correction.update(
        ones,
        trainer.program.correction.init(ones),
        ones,
        batch_stats=variables["batch_stats"],
    )
    assert np.std(factors["stage_1_block_1"]["conv_1"]["kernel"]) > 0.01
    assert np.std(factors["head"]["kernel"]) == 0


class TestMistakes:
    def test_missing_data(self, tmp_path, monkeypatch):
        def missing(*args, **kwargs):
            raise ValueError(data.MISSING.format(dataset="c", folder="f", why="w"))

        monkeypatch.setattr(cifar, "load", missing)
        with pytest.raises(SystemExit, match="--dataset glyphs"):
            cifar.main(["--output", str(tmp_path / "none")])
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (["--batch-size", "65"], "at most 64, the number of training images"),
            (["--sparsity", "0.99999"], "keeps at least one"),
            (["--train-images", "0"], "train_images must be from 1 to 50,000, got 0"),
        ],
    )
    def test_told_before_anything_is_written(self, folder, tmp_path, args, told):
        where = ["--data-dir", str(folder), "--output", str(tmp_path / "none")]
        with pytest.raises(SystemExit, match=told):
            cifar.main([*ARGS, *where, *args])
        assert not (tmp_path / "none").exists()


def test_starts_as_a_program():
    command = [sys.executable, "-W", "error", str(EXAMPLES / "cifar.py"), "--help"]
    environment = os.environ | {"COLUMNS": "200"}
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert "--together" in said
    assert "synthetic" in said

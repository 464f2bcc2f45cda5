"""The program for CIFAR: its trainer in all its forms, and the whole program."""

import contextlib
import dataclasses
import functools
import json
import shutil
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sparseopt_jax as so
from examples.cifar import __main__ as cifar
from examples.cifar import config as configs
from examples.cifar import data, report
from examples.cifar import step as programs
from examples.cifar import trainer as trainers
from tests.helpers.compilations import compilations
from tests.helpers.programs import events, help_of, rows_of

TINY = {"dataset": "glyphs16", "width": 8, "batch_size": 16}
TINY |= {"epochs": 3.0, "every": 3, "warmup_epochs": 0.5, "sparsity": 0.8}
SET = configs.Config("set_cifar100_r20", **TINY)
RIGL = configs.Config("sparseopt_cifar100_r20", **TINY)
STEPS, PER_EPOCH = 12, 4
CHANGES = [0, 3, 6]  # in the first three quarters of the training


class Network(nn.Module):
    """Replaces a residual network, which would take longer to compile."""

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
    """Make trainers, each compiled once for all tests.

    They evaluate the test images in four batches, the last of which is not full.
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
    """Return the run after some steps, and the step numbers at which calls returned."""
    run, step, stops = (starting or trainer).start(seeds), 0, []
    if starting:  # a compiled trainer with the same starting point
        run = run._replace(state=run.state.replace(tx=trainer.program.tx))
    while step < steps:
        run, step = trainer.advance(run, seeds, step)
        stops.append(step)
    return run, stops


def kernel_and_mask(run):
    """Return the kernel and mask of one layer, as arrays that outlive the run."""
    trees = (run.state.params, so.get_masks(run.state.opt_state))
    return (np.array(tree["head"]["kernel"]) for tree in trees)


def assert_close(run, other):
    """Check that the masks are equal, and the weights up to rounding."""
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
    """Train two seeds with SET, one after another, step by step."""
    return [trained(make_trainer(SET), [seed])[0] for seed in (0, 1)]


class TestTrainer:
    def test_steps_in_a_loop_are_the_same(self, alone, make_trainer):
        trainer = make_trainer(SET, loop=True)
        with compilations() as compiled:
            run, stops = trained(trainer, [1], starting=make_trainer(SET))
        # Each update is a separate step; no span crosses the end of an epoch.
        assert stops == [1, 3, 4, 6, 7, 8, 12]
        assert_close(run, alone[1])
        assert compiled.count(trainer._many.__name__) == 1
        numbers = trainer.evaluate(run.state)
        step_by_step = make_trainer(SET).evaluate(run.state)
        for name, value in numbers.items():
            np.testing.assert_allclose(value, step_by_step[name], rtol=1e-5)

    def test_seeds_together_are_the_same(self, alone, make_trainer):
        trainer = make_trainer(SET, together=2)
        run, _ = trained(trainer, [0, 1], starting=make_trainer(SET))
        for seed in (0, 1):
            one_seed = jax.tree.map(lambda x, seed=seed: x[seed : seed + 1], run)
            assert_close(one_seed, alone[seed])
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
        """The next images of the order, cropped again in every epoch."""
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
    """Start the program, with a trainer that is already compiled."""
    monkeypatch.setattr(cifar, "Trainer", make_trainer)

    def start(output, *args):
        where = ["--data-dir", str(folder), "--output", str(output)]
        cifar.main([*ARGS, *where, *args])

    return start


@pytest.fixture(scope="module")
def output(folder, make_trainer, tmp_path_factory):
    """Return the folder of a finished run."""
    output = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "Trainer", make_trainer)
        where = ["--data-dir", str(folder), "--output", str(output)]
        cifar.main([*ARGS, *where])
    return output


@contextlib.contextmanager
def stopped_at(trainer, seeds, at):
    """Send SIGTERM to the program while some seeds take the steps after one."""
    before = trainer.advance

    def stopped(run, number, step):
        if (number, step) == (seeds, at):
            signal.raise_signal(signal.SIGTERM)
        return before(run, number, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(trainer, "advance", stopped)
        yield
    assert error.value.code == 128 + signal.SIGTERM


def contents(folder):
    """Return all files in a folder, with their contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_without_times(output, seed):
    return [
        {name: x for name, x in row.items() if name != "ms_per_step"}
        for row in rows_of(output / f"seed_{seed}" / "log.jsonl")
    ]


@pytest.mark.slow
class TestProgram:
    def test_writes_its_files(self, output):
        assert {path.name for path in output.iterdir()} == {
            *("config.json", "results.json", "figure.png", "checkpoints"),
            *("seed_0", "seed_1"),
        }
        config = json.loads((output / "config.json").read_text())
        assert {name: config[name] for name in ("method", "every", "trained")} == {
            "method": "set",
            "every": 3,
            "trained": "seed by seed (--no-together)",
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
            events = [row["event"] for row in rows]
            assert events == [*["train", "evaluation"] * 3, "run"]
            assert not rows[-1]["diverged"]
            last = rows[-2]
            assert last["accuracy"] == results["test_accuracy"][seed]
            assert last["explored"] == results["explored"][seed] > 0.25
            curve = results["curves"]["train_loss"]["values"][seed]
            assert curve == [row["loss"] for row in rows if row["event"] == "train"]
            # Means over an epoch, whose first losses are those of guessing.
            assert curve[0] == pytest.approx(np.log(100), rel=0.1)
            assert curve[-1] < curve[0]
        accuracies = results["test_accuracy"]
        assert results["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
        assert results["test_accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1))
        assert results["ms_per_step"] > 0
        assert results["diverged"] == []
        assert results["versions"]["device"] == jax.devices()[0].device_kind

    def test_tensorboard_can_read_it(self, output):
        found = {tag for _, tag, _ in events(output / "seed_1" / "events")}
        assert found >= {
            *("train/loss", "train/learning_rate", "evaluation/accuracy"),
            *("evaluation/explored", "evaluation/dead_neurons/stem/kernel"),
        }

    def test_goes_on_to_the_last_bit(self, output, start, make_trainer, tmp_path):
        """Stopped in the middle of an epoch of the second seed."""
        with stopped_at(make_trainer(SET), (1,), 5):
            start(tmp_path)
        assert not (tmp_path / "results.json").exists()
        saved = tmp_path / "checkpoints" / "seed_1"
        assert [path.name for path in saved.glob("[0-9]*")] == ["6"]
        with (tmp_path / "seed_1" / "log.jsonl").open("a") as file:
            file.write('{"event": "train", "step": 8, "lo')  # truncated

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

    def test_together_and_in_a_loop_goes_on_to_the_last_bit(
        self, start, make_trainer, tmp_path
    ):
        """Stopped between two checkpoints, two updates and two evaluations."""
        args = ["--together", "--loop"]
        start(tmp_path / "whole", *args)
        again = tmp_path / "again"
        with stopped_at(make_trainer(SET, together=2, loop=True), (0, 1), 4):
            start(again, *args)
        saved = again / "checkpoints" / "seeds_0_to_1"
        assert [path.name for path in saved.glob("[0-9]*")] == ["6"]
        start(again, *args)
        for seed in (0, 1):
            rows = rows_without_times(again, seed)
            assert rows == rows_without_times(tmp_path / "whole", seed)
            assert [row["event"] for row in rows] == [
                *["train", "evaluation"] * 3,
                "run",
            ]

    def test_goes_on_with_more_seeds(
        self, output, start, make_trainer, tmp_path, monkeypatch
    ):
        shutil.copytree(output, tmp_path / "run")
        before = json.loads((output / "results.json").read_text())
        trained, begin = [], make_trainer(SET).start

        def noted(seeds):
            trained.append(seeds)
            return begin(seeds)

        monkeypatch.setattr(make_trainer(SET), "start", noted)
        start(tmp_path / "run", "--seeds", "3")
        assert trained == [(2,)]
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["test_loss"][:2] == before["test_loss"]
        assert len(results["test_loss"]) == 3

    def test_together_or_not_is_told_by_the_option(self, output, start):
        with pytest.raises(
            SystemExit,
            match=r"was seed by seed \(--no-together\), is 2 seeds together "
            r"\(--together\)\. .* or the options of that run",
        ):
            start(output, "--together")

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
        with pytest.raises(SystemExit, match=r"every was 3, is 2\. Pass --overwrite"):
            start(output, "--every", "2")
        assert (output / "config.json").read_text() == before
        assert (output / "checkpoints").exists()

    def test_checkpoints_of_another_run_are_refused(self, output, start, tmp_path):
        """Moved into a folder with another configuration."""
        shutil.copytree(output / "checkpoints", tmp_path / "checkpoints")
        record = json.loads((output / "config.json").read_text())
        record["evaluate_every"] = 2
        (tmp_path / "config.json").write_text(json.dumps(record))
        with pytest.raises(SystemExit, match="seed_0 belongs to a run with another"):
            start(tmp_path, "--evaluate-every", "2")

    @pytest.mark.parametrize("part", ["seed_1", "checkpoints"])
    def test_parts_without_configuration_are_refused(
        self, output, start, tmp_path, part
    ):
        """Refused before anything is written; then replaced, on request."""
        run = tmp_path / "run"
        shutil.copytree(output / part, run / part)
        before = contents(run)
        for _ in range(2):
            with pytest.raises(
                SystemExit,
                match=f"{part} exists, but config.json does not. Pass --overw",
            ):
                start(run, "--evaluate-every", "2")
            assert contents(run) == before
        config = configs.Config("set_cifar100_r20", output=run, overwrite=True)
        cifar.open_folder(config, {"other": 1})
        assert [*contents(run)] == ["config.json"]

    def test_a_seed_of_another_run_is_replaced_if_told(self, output, start, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(output, run)
        config_file = run / "seed_1" / "config.json"
        config_file.write_text(
            json.dumps({**json.loads(config_file.read_text()), "every": 2})
        )
        before = contents(run)
        with pytest.raises(SystemExit, match=r"seed_1 holds .*: every was 2, is 3\. P"):
            start(run)
        assert contents(run) == before
        start(run, "--overwrite")
        assert rows_without_times(run, 1) == rows_without_times(output, 1)
        assert json.loads(config_file.read_text())["every"] == 3

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


@pytest.mark.slow
class TestDiverged:
    """Seeds with non-finite weights."""

    MODES = pytest.mark.parametrize(
        ("args", "mode"),
        [
            ([], {}),
            (["--together", "--loop"], {"together": 2, "loop": True}),
        ],
        ids=["one_after_another", "together"],
    )

    @staticmethod
    @contextlib.contextmanager
    def diverging(trainer, steps):
        """Make each of the seeds diverge at its step."""

        def poisoned(run, seeds, step):
            for row, seed in enumerate(seeds):
                if step == steps.get(seed):
                    params = jax.tree.map(
                        lambda x, row=row: x.at[row].set(np.nan), run.state.params
                    )
                    run = run._replace(state=run.state.replace(params=params))
            return trainers.Trainer.advance(trainer, run, seeds, step)

        trainer.advance = poisoned
        try:
            yield
        finally:
            del trainer.advance

    @MODES
    def test_the_others_go_on(
        self, output, start, make_trainer, tmp_path, capsys, monkeypatch, args, mode
    ):
        trainer = make_trainer(SET, **mode)
        with self.diverging(trainer, {0: 4}):
            start(tmp_path, *args)
        remark = "% (1 diverged and left out: seed 0)"
        said = " ".join(capsys.readouterr().out.split())
        assert "Seed 0 has diverged and is left out: its loss is nan at step 8" in said
        assert remark in said
        rows = rows_of(tmp_path / "seed_0" / "log.jsonl")
        assert [(row["event"], row["step"]) for row in rows] == [
            *(("train", 4), ("evaluation", 4)),
            *(("train", 8), ("run", 8)),
        ]
        assert rows[-2]["loss"] is None
        assert rows[-1]["diverged"]

        results = json.loads((tmp_path / "results.json").read_text())
        before = json.loads((output / "results.json").read_text())
        assert results["diverged"] == [0]
        assert results["test_accuracy"][0] is None
        assert results["test_loss"][1] == pytest.approx(
            before["test_loss"][1], rel=1e-3
        )
        assert results["test_accuracy_mean"] == results["test_accuracy"][1]
        assert results["test_accuracy_sd"] is None
        curve = results["curves"]["test_loss"]
        assert curve["epoch"] == [1, 2, 3]
        assert curve["values"][0][1:] == [None, None]
        assert (tmp_path / "figure.png").exists()

        logs = [rows_of(tmp_path / f"seed_{seed}" / "log.jsonl") for seed in (0, 1)]
        monkeypatch.setattr(trainer, "start", None)
        start(tmp_path, *args)
        assert remark in " ".join(capsys.readouterr().out.split())
        for seed in (0, 1):
            assert rows_of(tmp_path / f"seed_{seed}" / "log.jsonl") == logs[seed]

    def test_a_stopped_run_does_not_forget_it(self, start, make_trainer, tmp_path):
        trainer = make_trainer(SET, together=2, loop=True)
        args = ["--together", "--loop"]
        with self.diverging(trainer, {1: 1}), stopped_at(trainer, (0, 1), 6):
            start(tmp_path, *args)
        start(tmp_path, *args)
        ends = [
            [row for row in rows_without_times(tmp_path, seed) if row["event"] == "run"]
            for seed in (0, 1)
        ]
        assert ends == [
            [{"event": "run", "step": 12, "diverged": False}],
            [{"event": "run", "step": 4, "diverged": True}],
        ]

    @MODES
    def test_where_all_have_the_program_ends(
        self, start, make_trainer, tmp_path, args, mode
    ):
        message = (
            r"\(seed 0 has diverged by step 4\); .*results.json has .* lower --lear"
        )
        trainer = make_trainer(SET, **mode)
        diverging = self.diverging(trainer, {0: 1, 1: 6})
        with diverging, pytest.raises(SystemExit, match=message):
            start(tmp_path, *args)
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["diverged"] == [0, 1]
        assert results["test_accuracy_mean"] is None
        losses = results["curves"]["train_loss"]["values"]
        assert losses[0] == [None, None]
        assert losses[1][0] > 0
        with pytest.raises(SystemExit, match=message):
            start(tmp_path, *args)

    def test_a_test_loss_counts_as_well(self, start, make_trainer, tmp_path):
        trainer = make_trainer(SET)
        evaluate = trainer.evaluate
        trainer.evaluate = lambda state: {
            **evaluate(state),
            "loss": np.array([np.inf]),
        }
        try:
            with pytest.raises(SystemExit, match="seed 0 has diverged by step 4"):
                start(tmp_path, "--seeds", "1")
        finally:
            del trainer.evaluate
        assert not (tmp_path / "figure.png").exists()

    def test_the_picture_leaves_them_out(self, tmp_path):
        logs = [
            [
                {"event": event, "epoch": 1, "loss": loss, "accuracy": accuracy}
                for event in ("train", "evaluation")
            ]
            + [{"event": "run", "diverged": diverged, "ms_per_step": 1.0}]
            for loss, accuracy, diverged in (
                *((1.0, 0.5, False), (None, 0.01, True)),
                (2.0, 0.7, False),
            )
        ]
        results = report.summarize(logs)
        assert report.accuracy(results) == (
            "Test accuracy 60.00 ± 14.14 % (2 seeds; 1 diverged and left out: seed 1)"
        )
        drawn = {}

        def draw(axes, line, color, label):
            drawn[label] = line["values"]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "_draw", draw)
            patch.setattr(report.Figure, "savefig", lambda *args, **kwargs: None)
            patch.setattr(report.Axes, "legend", lambda *args, **kwargs: None)
            report.draw(results, "", tmp_path / "figure.png")
        assert drawn == {
            "training, augmented images": [[1.0], [2.0]],
            "test": [[0.5], [0.7]],
        }


def test_every_network_can_be_looped_over():
    """A step returns the shapes and types of its input."""
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["--recipe", "sparseopt_cifar100_r20"],
        ["--recipe", "sparseopt_cifar100_r20", "--dtype", "bfloat16"],
        ["--recipe", "rigl_wrn22_2"],
    ],
    ids=["resnet20", "resnet20_bfloat16", "wrn22_2"],
)
def test_real_networks(folder, tmp_path, args):
    small = ["--width", "4", "--blocks", "1", "--sparsity", "0.5", "--every", "2"]
    small += ["--train-images", "32", "--test-images", "16", "--batch-size", "16"]
    where = ["--data-dir", str(folder), "--output", str(tmp_path)]
    options = ["--dataset", "glyphs16", "--epochs", "2", *small, *where]
    cifar.main([*args, *options])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "results.json", "figure.png", "checkpoints", "seed_0"),
    }
    rows = rows_of(tmp_path / "seed_0" / "log.jsonl")
    assert [row["event"] for row in rows] == [*["train", "evaluation"] * 2, "run"]
    assert all(np.isfinite(row["loss"]) for row in rows[:-1])
    assert rows[-2]["explored"] > 0.5


class TestMistakes:
    def test_missing_data(self, tmp_path, monkeypatch):
        def missing(*args, **kwargs):
            raise ValueError(data.missing("cifar10", None, "no network"))

        monkeypatch.setattr(cifar, "load", missing)
        with pytest.raises(SystemExit, match="--dataset glyphs"):
            cifar.main(["--output", str(tmp_path / "none")])
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--batch-size", "65"], "at most 64, the number of training images"),
            (["--sparsity", "0.99999"], "keeps at least one"),
            (["--train-images", "0"], "train_images must be from 1 to 50,000, got 0"),
        ],
    )
    def test_told_before_anything_is_written(self, folder, tmp_path, args, message):
        where = ["--data-dir", str(folder), "--output", str(tmp_path / "none")]
        with pytest.raises(SystemExit, match=message):
            cifar.main([*ARGS, *where, *args])
        assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_starts_as_a_program():
    said = help_of("examples.cifar")
    assert "--together" in said
    assert "synthetic" in said

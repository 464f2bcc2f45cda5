"""The whole comparison with tiny settings, and the consistency of its folder."""

import dataclasses
import json
import math
import re
import signal
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from examples.common import run_folder
from examples.common.versions import versions
from examples.digits import __main__ as program
from examples.digits import dataset, report, training
from examples.digits.config import TEST_IMAGES, TRAIN_IMAGES, Config
from tests.helpers.programs import FILES, help_of, log

LABELS = ["dense", "static", "SET", "RigL", "RigL + SparseOpt"]
TINY = ["--epochs", "1", "--width", "4", "--batch-size", "256"]


@pytest.fixture(scope="module")
def digits():
    """Return the program, with one small residual block, which compiles faster."""
    full = training.ResNet
    training.ResNet = lambda width: full(width, strides=(1,))
    yield program
    training.ResNet = full


def start(program, output, *args):
    program.main([*TINY, "--output", str(output), *args])


def runs_in(output):
    return [(row["label"], row["seed"]) for row in log(output) if row["event"] == "run"]


@pytest.fixture(scope="module")
def output(digits, tmp_path_factory):
    """Return the folder of a finished comparison of all methods."""
    output = tmp_path_factory.mktemp("comparison")
    start(digits, output, "--seeds", "1", "--sparsity", "0.8")
    return output


@pytest.mark.slow
class TestComparison:
    def test_writes_its_files(self, output):
        assert {path.name for path in output.iterdir()} == {*FILES, "data"}
        assert json.loads((output / "config.json").read_text()) == {
            "methods": ["dense", "static", "set", "rigl"],
            "correction": "auto",
            "sparsity": 0.8,
            "distribution": "erdos_renyi_kernel",
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "seeds": 1,
            "epochs": 1,
            "batch_size": 256,
            "width": 4,
        }

    def test_needs_no_tensorflow(self, output):
        assert output.exists()
        assert "tensorflow" not in sys.modules

    def test_logs_every_epoch_and_run(self, output):
        first, *rows = log(output)
        assert first["event"] == "start"
        assert "theoretical" in first["note"]
        assert [row["event"] for row in rows] == ["epoch", "run"] * 5
        assert runs_in(output) == [(label, 0) for label in LABELS]

    def test_results_are_what_the_runs_give(self, output):
        entries = json.loads((output / "results.json").read_text())["results"]
        runs = [row for row in log(output) if row["event"] == "run"]
        for entry, run in zip(entries, runs, strict=True):
            assert entry["label"] == run["label"]
            assert entry["test_accuracy"] == run["curves"]["test_accuracy"]
            assert entry["test_accuracy_sd"] is None
            assert math.isfinite(run["curves"]["train_loss"][0])
            assert run["ms_per_step"] > 0
        dense, *sparse = entries
        assert dense["active"] == dense["weights"]
        assert {entry["active"] for entry in sparse} == {round(0.2 * dense["weights"])}

    def test_topologies_moved_or_did_not(self, output):
        explored = {
            row["label"]: row["explored"] for row in log(output) if "explored" in row
        }
        assert explored["dense"] == 1.0
        assert explored["static"] == pytest.approx(0.2, rel=0.01)
        assert min(explored["SET"], explored["RigL"]) > 0.25

    def test_the_correction_does_something(self, output):
        *_, plain, corrected = (row for row in log(output) if row["event"] == "run")
        assert plain["curves"] != corrected["curves"]
        for layer in plain["layers"]:
            assert set(layer["factor"]) == {1.0}
        for layer in corrected["layers"]:
            fan_in = np.array(layer["fan_in"])
            np.testing.assert_allclose(
                layer["factor"], np.sqrt(fan_in / fan_in.mean()), rtol=1e-5
            )

    def test_table_and_picture(self, output):
        lines = (output / "results.md").read_text().splitlines()
        assert [line.split("|")[1].strip() for line in lines[2:7]] == LABELS
        assert "theoretical" in lines[-1]
        with Image.open(output / "figure.png") as picture:
            assert picture.size == (1760, 1120)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100

    def test_finished_comparison_trains_nothing_again(
        self, output, digits, capsys, monkeypatch
    ):
        monkeypatch.setattr(digits, "Trainer", None)
        before = (output / "log.jsonl").read_text()
        start(digits, output, "--seeds", "1", "--sparsity", "0.8")
        assert "5 runs are already finished, 0 remain" in capsys.readouterr().out
        assert (output / "log.jsonl").read_text() == before

    def test_another_configuration_is_refused(self, output, digits):
        before = (output / "log.jsonl").read_text()
        with pytest.raises(SystemExit) as error:
            start(digits, output, "--seeds", "2", "--sparsity", "0.9")
        message = str(error.value)
        assert "sparsity was 0.8, is 0.9; seeds was 1, is 2" in message
        assert "--overwrite" in message
        assert "--output" in message
        assert (output / "log.jsonl").read_text() == before


@pytest.mark.slow
class TestInterruption:
    @pytest.fixture(autouse=True)
    def interruptible(self):
        """Make Ctrl-C raise, also in background tests, which ignore it."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def test_goes_on_where_it_was_stopped(self, digits, tmp_path, capsys, monkeypatch):
        args = ["--methods", "dense", "--seeds", "3"]
        append = digits.RunFolder.append

        def append_until_stopped(folder, row):
            append(folder, row)
            if row.get("seed") == 1:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(digits.RunFolder, "append", append_until_stopped)
            with pytest.raises(SystemExit) as stopped:
                start(digits, tmp_path, *args)
        assert stopped.value.code == 130
        said = " ".join(capsys.readouterr().out.split())
        assert "Stopped. 1 of 3 runs are finished" in said
        assert "run the same command again to resume" in said
        first = log(tmp_path)
        assert runs_in(tmp_path) == [("dense", 0)]
        assert not (tmp_path / "figure.png").exists()

        # As if the machine had failed in the middle of a line.
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write('{"event": "run", "method": "dense", "correction": "none", "se')
        start(digits, tmp_path, *args)
        assert "1 runs are already finished, 2 remain" in capsys.readouterr().out
        assert runs_in(tmp_path) == [("dense", seed) for seed in range(3)]
        assert log(tmp_path)[: len(first) - 1] == first[:-1]
        epochs = [row["seed"] for row in log(tmp_path) if row["event"] == "epoch"]
        assert epochs == [0, 1, 2]
        assert (tmp_path / "figure.png").exists()

    def test_does_not_advise_to_overwrite(self, digits, tmp_path, capsys, monkeypatch):
        def interrupt(*args):
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(digits, "compare", interrupt)
        with pytest.raises(SystemExit):
            start(digits, tmp_path, "--overwrite")
        said = " ".join(capsys.readouterr().out.split())
        assert "same command again, without --overwrite, to resume" in said


@pytest.mark.slow
def test_starts_as_a_program():
    said = help_of("examples.digits")
    assert "--methods" in said
    assert "(default: 0.95)" in said


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "messages"),
        [
            (["--methods", "lottery"], ["lottery", "dense", "static", "set", "rigl"]),
            (["--methods"], ["at least one of dense, static, set, rigl"]),
            (["--sparsity", "1"], [r"sparsity must be in \[0, 1\), got 1.0"]),
            (["--sparsity", "nan"], [r"sparsity must be in \[0, 1\), got nan"]),
            (["--distribution", "even"], ["even", "erdos_renyi_kernel", "uniform"]),
            (["--correction", "some"], ["some", "fan_in", "batch_variance"]),
            (["--epochs", "0"], ["epochs must be at least 1, got 0"]),
            (["--seeds", "0"], ["seeds must be at least 1, got 0"]),
            (["--width", "-1"], ["width must be at least 1, got -1"]),
            (["--batch-size", "1198"], ["at most 1197", "got 1198"]),
            (["--lr", "0"], ["learning_rate must be above 0, got 0.0"]),
            (["--lr", "nan"], ["learning_rate must be above 0, got nan"]),
            (["--optimizer", "lamb"], ["lamb", "sgd", "adamw"]),
        ],
    )
    def test_told_on_the_command_line(self, digits, tmp_path, capsys, args, messages):
        with pytest.raises(SystemExit) as error:
            digits.main(["--output", str(tmp_path / "none"), *args])
        assert error.value.code == 2
        said = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
        for text in messages:
            assert re.search(text, said), said
        assert not (tmp_path / "none").exists()

    def test_layer_without_weights(self, digits, tmp_path):
        with pytest.raises(SystemExit, match=r"error: .* keeps at least one"):
            digits.main(["--output", str(tmp_path / "none"), "--sparsity", "0.9999"])
        assert not (tmp_path / "none").exists()

    def test_output_is_a_file(self, digits, tmp_path):
        path = tmp_path / "file"
        path.touch()
        with pytest.raises(SystemExit, match=r"is a file; pass a folder"):
            digits.main(["--output", str(path)])

    def test_methods_in_code(self, digits):
        with pytest.raises(ValueError, match="'lottery' is not one of dense, static"):
            Config(methods=("lottery",))


class TestConfig:
    @pytest.mark.parametrize(
        ("methods", "correction", "labels"),
        [
            (("dense", "static", "set", "rigl"), "auto", LABELS),
            (("rigl",), "batch_variance", ["RigL", "RigL + BN variance"]),
            (("dense", "set"), "fan_in", ["dense", "SET", "SET + SparseOpt"]),
            (("rigl", "static", "rigl"), "none", ["RigL", "static"]),
        ],
    )
    def test_arms(self, digits, methods, correction, labels):
        config = Config(methods=methods, correction=correction)
        assert [arm.label for arm in config.arms] == labels

    @pytest.mark.parametrize("epochs", [1, 2, 5, 20, 100])
    @pytest.mark.parametrize("method", ["set", "rigl"])
    def test_topology_changes_often_enough(self, digits, method, epochs):
        config = Config(epochs=epochs)
        steps = epochs * config.steps_per_epoch
        due = training.make_topology(config, method).due(np.arange(steps))
        assert due.sum() >= min(20, 3 * steps // 4)
        assert not due[math.ceil(3 * steps / 4) :].any()

    @pytest.mark.parametrize("epochs", [1, 20])
    @pytest.mark.parametrize("batch_size", [64, 1197])
    def test_learning_rate(self, digits, epochs, batch_size):
        config = Config(epochs=epochs, batch_size=batch_size)
        schedule = training.learning_rate(config)
        steps = epochs * config.steps_per_epoch
        rates = np.array([schedule(step) for step in range(steps)])
        assert rates.max() == pytest.approx(0.1)
        assert rates.argmax() == steps // 10
        assert np.all(np.diff(rates[steps // 10 :]) < 0)

    def test_adamw_is_corrected_behind_adam(self, digits):
        config = Config(optimizer="adamw")
        assert config.peak == 0.01
        assert dataclasses.replace(config, learning_rate=0.5).peak == 0.5
        correction = training.make_correction(config, "fan_in")
        params = {"kernel": np.ones((40, 8), np.float32)}
        grads = {"kernel": jax.random.normal(jax.random.key(0), (40, 8))}
        steps = []
        for maker in (correction, training.make_correction(config, "none")):
            tx = training.make_optimizer(config, "static", maker, key=0)
            state = tx.init(params)
            for _ in range(2):  # the learning rate starts at 0
                updates, state = tx.update(grads, state, params)
            steps.append(np.asarray(updates["kernel"]))
        mask = steps[1] != -1.0
        ratio = np.where(mask, steps[0] / steps[1], np.nan)
        assert np.nanmax(ratio) > 1.2
        assert np.nanmin(ratio) < 0.8

    def test_batch_variance_reads_every_norm(self, digits):
        config = Config()
        correction = training.make_correction(config, "batch_variance")
        random = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda x: random.uniform(1, 2, x.shape).astype(x.dtype),
            training.abstract_variables(config),
        )
        params = jax.tree.map(np.ones_like, variables["params"])
        factors, _ = correction.update(
            params,
            correction.init(params),
            params,
            batch_stats=variables["batch_stats"],
        )
        assert np.std(factors["stem"]["kernel"]) > 0.01
        assert np.std(factors["block_1"]["conv_1"]["kernel"]) > 0.01
        assert np.std(factors["block_1"]["conv_2"]["kernel"]) > 0.01
        assert np.std(factors["head"]["kernel"]) == 0


class TestRunFolder:
    @staticmethod
    def folder(path, **changes):
        config = {"sparsity": 0.9, "methods": ["rigl"], "bound": math.inf}
        return run_folder.RunFolder(path, {**config, **changes})

    def test_same_configuration_opens_again(self, tmp_path):
        self.folder(tmp_path / "a" / "b")
        self.folder(tmp_path / "a" / "b")

    def test_differences_are_named(self, tmp_path):
        self.folder(tmp_path)
        with pytest.raises(ValueError, match="methods was rigl, is set rigl"):
            self.folder(tmp_path, methods=["set", "rigl"])
        with pytest.raises(ValueError, match="more was None, is 1"):
            self.folder(tmp_path, more=1)

    def test_unreadable_configuration(self, tmp_path):
        (tmp_path / "config.json").write_text('{"spars')
        with pytest.raises(ValueError, match="cannot be read"):
            self.folder(tmp_path)
        (tmp_path / "config.json").write_text("[1]")
        with pytest.raises(ValueError, match="cannot be read"):
            self.folder(tmp_path)

    @pytest.mark.parametrize("name", sorted(FILES - {"config.json"}))
    def test_files_without_configuration(self, tmp_path, name):
        (tmp_path / name).touch()
        with pytest.raises(
            ValueError, match=rf"{name} exists, but config\.json does not\. Pass --over"
        ):
            self.folder(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        run_folder.RunFolder(tmp_path, {}, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    def test_overwrite_leaves_what_is_not_its_own(self, tmp_path):
        self.folder(tmp_path).append({"event": "start"})
        (tmp_path / "thesis.txt").touch()
        run_folder.RunFolder(tmp_path, {"sparsity": 0.5}, overwrite=True)
        assert {path.name for path in tmp_path.iterdir()} == {
            "thesis.txt",
            "config.json",
        }

    def test_broken_lines_and_unfinished_runs_are_forgotten(self, tmp_path):
        folder = self.folder(tmp_path)
        arm = {"method": "rigl", "correction": "none"}
        rows = [
            {"event": "start"},
            {"event": "epoch", **arm, "seed": 0, "epoch": 1},
            {"event": "run", **arm, "seed": 0},
            {"event": "epoch", **arm, "seed": 1, "epoch": 1},
        ]
        for row in rows:
            folder.append(row)
        with (tmp_path / "log.jsonl").open("ab") as file:
            file.write(b'3\n{"event": "run", "method": "\xc3')
        folder.forget_unfinished()
        assert log(tmp_path) == rows[:3]

    def test_failed_write_leaves_the_old_file(self, tmp_path):
        folder = self.folder(tmp_path)
        folder.write_text("results.md", "old")
        with pytest.raises(KeyboardInterrupt), folder.writing("results.md") as path:
            path.write_text("half of the n")
            raise KeyboardInterrupt
        assert (tmp_path / "results.md").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "config.json",
            "results.md",
        ]

    def test_two_processes_write_the_same_file(self, tmp_path, monkeypatch):
        folder = self.folder(tmp_path)
        with folder.writing("results.md") as one:
            one.write_text("one")
            monkeypatch.setattr("os.getpid", lambda: 0)
            folder.write_text("results.md", "other")
        assert (tmp_path / "results.md").read_text() == "one"

    def test_numbers_that_are_not_finite_become_null(self, tmp_path):
        folder = self.folder(tmp_path)
        folder.append({"event": "start", "losses": [math.nan, -math.inf, 1.0]})
        assert log(tmp_path) == [{"event": "start", "losses": [None, None, 1.0]}]


def test_versions_name_the_device():
    assert versions()["device"] == jax.devices()[0].device_kind
    assert "matmul_precision" not in versions()
    with jax.default_matmul_precision("float32"):
        assert versions()["matmul_precision"] == "float32"


class TestReport:
    @staticmethod
    def run(accuracies, **changes):
        curves = {"test_accuracy": accuracies, "test_loss": [None] * len(accuracies)}
        row = {"method": "rigl", "correction": "none", "label": "RigL", "layers": []}
        return {**row, "explored": 0.5, "ms_per_step": 2.0, "curves": curves, **changes}

    def test_epochs_to_target_counts_those_that_got_there(self):
        runs = [self.run([0.5, 0.95, 0.9]), self.run([0.1, 0.2, 0.3])]
        [entry] = report.summarize(runs, weights=100)
        assert entry["epochs_to_target"] == 2.0
        assert report.cells(entry)[1] == "60.00 ± 42.43"
        assert report.cells(entry)[3] == "2.0 (1/2)"
        [entry] = report.summarize(runs[1:], weights=100)
        assert report.cells(entry)[3] == "-"
        assert report.cells(entry)[1] == "30.00"

    def test_diverged_runs_are_drawn(self, tmp_path):
        report.draw([self.run([0.2, 0.1])], "", tmp_path / "a.png")
        assert (tmp_path / "a.png").exists()


@pytest.fixture(scope="module")
def data():
    return dataset


@pytest.fixture(scope="module")
def prepared(data, tmp_path_factory):
    """Return a folder with prepared files, and the splits read from it."""
    folder = tmp_path_factory.mktemp("data")
    return folder, data.load(folder)


class TestDataset:
    def test_every_image_is_in_one_split(self, data):
        _, labels = load_digits(return_X_y=True)
        train, test = data.split_indices(labels)
        assert sorted([*train, *test]) == list(range(1797))

    def test_sizes(self, prepared):
        _, (train, test) = prepared
        assert len(train.labels) == len(train.images) == TRAIN_IMAGES
        assert len(test.labels) == len(test.images) == TEST_IMAGES

    def test_splits_are_stratified(self, prepared):
        _, (train, test) = prepared
        shares = [
            np.bincount(split.labels) / len(split.labels) for split in (train, test)
        ]
        np.testing.assert_allclose(shares[0], shares[1], atol=0.002)

    def test_images_survive_the_files(self, data, prepared):
        pixels, labels = load_digits(return_X_y=True)
        places = data.split_indices(labels)
        scale = pixels[places[0]]
        for split, indices in zip(prepared[1], places, strict=True):
            expected = (pixels[indices] - scale.mean()) / scale.std()
            expected = np.column_stack([expected, labels[indices]])
            stored = np.column_stack([split.images.reshape(-1, 64), split.labels])
            # The files are shuffled.
            expected, stored = (x[np.lexsort(x.T)] for x in (expected, stored))
            np.testing.assert_allclose(stored, expected, atol=1e-4)

    def test_second_time_reads_the_files(self, data, prepared, monkeypatch):
        folder, (train, _) = prepared
        monkeypatch.setattr(data, "load_digits", None)
        again, _ = data.load(folder)
        np.testing.assert_array_equal(again.images, train.images)

    def test_killed_while_preparing(self, data, tmp_path, prepared, monkeypatch):
        def generate(self, indices):
            for count, example in enumerate(original(self, indices)):
                if count == 100:
                    raise KeyboardInterrupt
                yield example

        original = data.ScannedDigits._generate_examples
        with monkeypatch.context() as patch:
            patch.setattr(data.ScannedDigits, "_generate_examples", generate)
            with pytest.raises(KeyboardInterrupt):
                data.load(tmp_path)
        train, _ = data.load(tmp_path)
        np.testing.assert_array_equal(train.images, prepared[1][0].images)

    def test_lost_file_is_written_again(self, data, tmp_path):
        data.prepare(tmp_path)
        for lost in ("*test.array_record*", "dataset_info.json"):
            [path] = tmp_path.rglob(lost)
            path.unlink()
            _, test = data.load(tmp_path)
            assert len(test.labels) == data.TEST_IMAGES

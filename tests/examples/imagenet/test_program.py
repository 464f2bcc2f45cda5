"""The program for a pod: its parts, and a run of two processes on invented images."""

import os
import re
import socket
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax.sharding import AxisType

from examples.common import event_log
from examples.imagenet import __main__ as imagenet
from examples.imagenet import data, recipes
from examples.imagenet import mesh as mesh_of
from examples.imagenet import trainer as trainers
from tests.helpers.programs import events, help_of, rows_of
from tests.helpers.together import ROOT, Together, environment, free_port

MOCKED = 33  # images; not a multiple of any batch here
STEPS = 12  # two per epoch, in the run of two processes
TINY = [
    *("--width", "4", "--stages", "1", "--image-size", "32", "--resize", "36"),
    *("--batch-size", "16", "--workers", "2", "--log-every", "1"),
]


POD = [
    *("--recipe", "rigl_erk", "--every", "2", "--multiplier", "0.06"),
    *("--accumulate", "2", "--mesh", "data=2,fsdp=2", "--sparsity", "0.5"),
    *("--save-every", "100", "--evaluate-every", "3"),
]


# In two processes.

PROGRAM = """
import os, signal, sys
import tensorflow_datasets as tfds
from examples.imagenet import __main__ as imagenet

stop_at = int(sys.argv[1])
tell = imagenet.Run._tell_training

def tell_and_stop(run):
    if run.step == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
    return tell(run)

imagenet.Run._tell_training = tell_and_stop
with tfds.testing.mock_data(num_examples=int(sys.argv[2])):
    imagenet.main(sys.argv[3:])
"""


def run_in(folder, processes, *args, stop_at=0):
    """Run the program; send SIGTERM to one process at ``stop_at``, unless that is 0."""
    name = "_".join(["logs", str(processes), str(stop_at)])
    (folder / name).mkdir()
    commands = [
        [
            *(sys.executable, "-W", "error", "-c", PROGRAM),
            *(str(stop_at if process == processes - 1 else 0), str(MOCKED)),
            *(*TINY, *args, "--output", str(folder / "run")),
        ]
        for process in range(processes)
    ]
    environments = [environment(4 // processes) for _ in commands]
    if stop_at:
        group = ["--coordinator", f"localhost:{free_port()}", "--processes"]
        for process, command in enumerate(commands):
            command += [*group, str(processes), "--process", str(process)]
    elif processes > 1:
        for process, (command, variables) in enumerate(
            zip(commands, environments, strict=True)
        ):
            command += ["--distributed"]
            variables |= slurm(processes, process)
    with Together(commands, environments, folder / name) as running:
        running.finish(timeout=240, code=143 if stop_at else 0)
        return " ".join(running.output().split())


def slurm(processes, process):
    """Return the variables that Slurm sets for a task on a single node, for JAX."""
    # JAX takes the port from the job's number.
    ports = range(61440, 65536)
    first = os.getpid() % len(ports)
    port = next(p for p in (*ports[first:], *ports[:first]) if is_free(p))
    return {
        "SLURM_JOB_ID": str(port - ports[0]),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(processes),
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
        "SLURM_STEP_NUM_NODES": "1",
    }


def is_free(port):
    with socket.socket() as sock:
        return sock.connect_ex(("localhost", port)) != 0


@pytest.fixture(scope="module")
def pod(tmp_path_factory):
    """Return the folder of a stopped run of two processes, and their output."""
    folder = tmp_path_factory.mktemp("pod")
    said = [run_in(folder, 2, *POD, stop_at=stop_at) for stop_at in (3, 0)]
    return folder / "run", said


@pytest.mark.slow
class TestTwoProcesses:
    def test_stop_together_and_go_on(self, pod):
        folder, (stopped, finished) = pod
        (step,) = {row["step"] for row in self.fingerprints(folder, 0)} - {STEPS}
        assert 3 <= step < STEPS
        assert f"saved step {step}" in stopped
        assert f"Resuming from step {step} of {STEPS}" in finished
        assert "Finished" in finished

    def test_hold_the_same(self, pod):
        folder, _ = pod
        first, second = (self.fingerprints(folder, process) for process in range(2))
        assert first == second
        assert [row["step"] for row in first] == sorted(row["step"] for row in first)

    def test_the_topology_changes(self, pod):
        folder, _ = pod
        early, late = self.fingerprints(folder, 0)
        assert early["masks"] != late["masks"]
        last = [row for row in rows_of(folder / "log.jsonl") if "explored" in row][-1]
        assert last["explored"] > last["density"]
        assert last["density"] == pytest.approx(0.5, abs=0.01)
        assert last["inactive_nonzero"] == 0

    def test_every_step_is_logged_once(self, pod):
        folder, _ = pod
        rows = rows_of(folder / "log.jsonl")
        steps = [row["step"] for row in rows if row["event"] == "train"]
        assert steps == list(range(1, STEPS + 1))
        assert all(np.isfinite(row["loss"]) for row in rows)
        assert all(row["images_per_second"] > 0 for row in rows if "epoch" not in row)

    def test_every_image_is_evaluated_once(self, pod):
        folder, _ = pod
        rows = rows_of(folder / "log.jsonl")
        evaluations = [row for row in rows if row["event"] == "evaluation"]
        assert [row["step"] for row in evaluations] == [6, STEPS]
        assert {row["images"] for row in evaluations} == {MOCKED}

    def test_the_last_step_is_kept(self, pod):
        folder, _ = pod
        kept = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
        assert max(kept) == STEPS

    def test_tensorboard_can_read_it(self, pod):
        folder, _ = pod
        found = events(folder / "events")
        losses = {step: x for step, tag, x in found if tag == "train/loss"}
        logged = {
            row["step"]: row["loss"]
            for row in rows_of(folder / "log.jsonl")
            if row["event"] == "train"
        }
        assert losses == pytest.approx(logged)
        assert {tag for _, tag, _ in found} >= {
            "evaluation/accuracy",
            "evaluation/explored",
            "evaluation/dead_neurons/stem/kernel",
            "train/learning_rate",
        }

    @staticmethod
    def fingerprints(folder, process):
        return rows_of(folder / f"fingerprints.{process}.jsonl")


# In one.


@pytest.fixture
def mocked():
    with tfds.testing.mock_data(num_examples=MOCKED):
        yield


@pytest.mark.usefixtures("mocked")
@pytest.mark.slow
class TestOneProcess:
    def test_finished_is_finished(self, pod):
        """Also with another number of processes and on another mesh."""
        folder, _ = pod
        before = rows_of(folder / "log.jsonl")
        said = run_in(folder.parent, 1, *POD, "--mesh", "data=4")
        assert f"Resuming from step {STEPS} of {STEPS}" in said
        assert rows_of(folder / "log.jsonl") == before

    def test_another_configuration_is_refused(self, pod):
        folder, _ = pod
        args = [*TINY, *POD, "--mesh", "data=1", "--output", str(folder)]
        with pytest.raises(SystemExit, match=r"sparsity was 0\.5, is 0\.8"):
            imagenet.main([*args, "--sparsity", "0.8"])
        assert (folder / "checkpoints").exists()

    def test_sparseopt(self, tmp_path):
        args = ["--recipe", "sparseopt_90", "--multiplier", "0.02", "--every", "2"]
        assert "Finished" in run_in(tmp_path, 1, *args)
        *rows, last = rows_of(tmp_path / "run" / "log.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert last["event"] == "evaluation"
        assert np.isfinite(last["loss"])
        factors = {
            tag: value
            for _, tag, value in events(tmp_path / "run" / "events")
            if "/factor_" in tag
        }
        assert factors["evaluation/factor_min/head/kernel"] < 1
        assert factors["evaluation/factor_max/head/kernel"] > 1


def test_a_loss_that_is_no_number_ends_the_run():
    trainer = types.SimpleNamespace(
        config=None, recipe=recipes.RECIPES["dense"], per_epoch=10
    )
    run = imagenet.Run(trainer, (None, None), log=None)
    run.step = 7
    run._metrics = [{"loss": np.float32(2)}, {"loss": np.float32(np.nan)}]
    with pytest.raises(SystemExit, match="the loss is nan at step 7"):
        run._tell_training()


def test_a_mistake_in_one_process_ends_all(monkeypatch):
    def find():
        raise ValueError("no such folder")

    with pytest.raises(SystemExit, match="error: no such folder"):
        mesh_of.together(find)
    assert mesh_of.together(lambda: 7) == 7
    failed = np.array([[False], [True]])
    monkeypatch.setattr(mesh_of, "_gathered", lambda local: failed)
    with pytest.raises(SystemExit, match="process 1 failed"):
        mesh_of.together(lambda: 7)


def test_drifted_processes_end_the_run(monkeypatch):
    """Simulate what one process would see of another that holds different values."""
    monkeypatch.setattr(
        mesh_of, "_gathered", lambda local: np.stack([local, local ^ np.uint8(1)])
    )
    assert not mesh_of.same_everywhere("00ff")
    monkeypatch.setattr(mesh_of, "_gathered", lambda local: np.stack([local, local]))
    assert mesh_of.same_everywhere("00ff")


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "messages"),
        [
            (["--recipe", "lottery"], ["lottery", "sparseopt_270"]),
            (["--sparsity", "1"], [r"sparsity must be in \[0, 1\), got 1.0"]),
            (["--batch-size", "0"], ["batch_size must be at least 1, got 0"]),
            (["--learning-rate", "nan"], ["learning_rate must be above 0, got nan"]),
            (["--every", "0"], ["every must be at least 1 step, got 0"]),
            (["--multiplier", "0"], ["multiplier must be above 0, got 0.0"]),
            (["--accumulate", "3"], ["multiple of accumulate = 3, got 4096"]),
            (["--width", "0"], ["width must be at least 1, got 0"]),
            (["--stages"], ["stages must all be at least 1"]),
            (["--resize", "200"], ["at least image_size = 224, got 200"]),
            (["--process", "1"], ["must be passed together", "None, None and 1"]),
            (
                ["--recipe", "sparseopt_90", "--method", "dense"],
                ["sparseopt must be False for method dense"],
            ),
        ],
    )
    def test_told_on_the_command_line(self, tmp_path, capsys, args, messages):
        with pytest.raises(SystemExit) as error:
            imagenet.main(["--output", str(tmp_path / "none"), *args])
        assert error.value.code == 2
        said = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
        for text in messages:
            assert re.search(text, said), said
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--mesh", "data=2"], "data=2,fsdp=1 needs 2 devices, there are 1"),
            (["--batch-size", "64"], "at most 33, the number of training images"),
            (["--sparsity", "0.99999"], "keeps at least one"),
        ],
    )
    @pytest.mark.usefixtures("mocked")
    def test_told_before_anything_is_written(self, tmp_path, args, message):
        with pytest.raises(SystemExit, match=re.escape(message)):
            imagenet.main([*TINY, "--output", str(tmp_path / "none"), *args])
        assert not (tmp_path / "none").exists()

    def test_missing_data(self, tmp_path):
        with pytest.raises(SystemExit) as error:
            imagenet.main([*TINY, "--data-dir", str(tmp_path / "data")])
        message = str(error.value)
        assert f"imagenet2012 is not in {tmp_path / 'data'}" in message
        assert "ILSVRC2012_img_train.tar" in message
        assert "tfds build imagenet2012 --file_format=array_record" in message


# Its parts.


class TestMesh:
    @pytest.mark.parametrize(
        ("text", "sizes"),
        [
            ("", (8, 1)),
            ("data=8", (8, 1)),
            ("fsdp=8", (1, 8)),
            ("data=2,fsdp=4", (2, 4)),
            ("fsdp=4, data=2", (2, 4)),
        ],
    )
    def test_sizes(self, text, sizes):
        assert mesh_of.parse_mesh(text, 8) == sizes

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("model=8", "must be like data=8,fsdp=1, got 'model=8'"),
            ("data", "must be like"),
            ("data=-1", "must be like"),
            ("data=4,data=2", "at 'data=2'"),
            ("data=4", "data=4,fsdp=1 needs 4 devices, there are 8"),
            ("fsdp=3", "data=2,fsdp=3 needs 6 devices, there are 8"),
            ("fsdp=16", "data=1,fsdp=16 needs 16 devices"),
        ],
    )
    def test_what_cannot_be(self, text, message):
        with pytest.raises(ValueError, match=message):
            mesh_of.parse_mesh(text, 8)

    def test_kernels_are_split_along_their_largest_axis(self):
        mesh = jax.sharding.AbstractMesh(
            (2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
        )
        shapes = {
            "kernel": (1, 1, 64, 256),
            "wide": (7, 7, 3, 63),
            "uneven": (3, 3, 64, 63),
            "scale": (64,),
        }
        params = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32)
            for name, shape in shapes.items()
        }
        specs = {
            name: tuple(sharding.spec)
            for name, sharding in mesh_of.param_shardings(mesh, params).items()
        }
        assert specs == {
            "kernel": (None, None, None, "fsdp"),
            "wide": (),
            "uneven": (None, None, "fsdp"),
            "scale": (),
        }

    def test_uneven_batches_are_refused(self):
        mesh = mesh_of.make_mesh("")
        sharding = mesh_of.split_batch(mesh)
        assert mesh_of.own_rows(sharding, 6).tolist() == list(range(6))
        with pytest.raises(ValueError, match="batch of 7 images cannot be split"):
            sharding = jax.sharding.NamedSharding(
                jax.sharding.AbstractMesh((2,), ("data",)),
                jax.sharding.PartitionSpec("data"),
            )
            mesh_of.own_rows(sharding, 7)


class TestObjective:
    LOGITS = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]))
    BATCH = data.Batch(None, jnp.array([0, 2, 2]), jnp.array([1.0, 1.0, 0.0]))

    @classmethod
    def trainer(cls):
        """Everything except the network."""

        def apply(variables, images, train, mutable=()):
            return (cls.LOGITS, {"batch_stats": 5}) if train else cls.LOGITS

        return types.SimpleNamespace(
            model=types.SimpleNamespace(apply=apply, classes=3),
            recipe=recipes.RECIPES["dense"],
            _normalized=lambda images: images,
        )

    def test_labels_are_smoothed(self):
        loss, (metrics, batch_stats) = trainers.Trainer._loss(
            self.trainer(), None, None, self.BATCH
        )
        targets = 0.9 * np.eye(3)[[0, 2, 2]] + 0.1 / 3
        expected = -np.mean(np.sum(targets * np.asarray(self.LOGITS), axis=1))
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert float(metrics["accuracy"]) == pytest.approx(2 / 3)
        assert batch_stats == 5

    def test_evaluation_leaves_out_what_fills_up(self):
        counts = trainers.Trainer._count(self.trainer(), {}, self.BATCH)
        assert {name: float(value) for name, value in counts.items()} == pytest.approx(
            {"loss": -np.log(0.7) - np.log(0.1), "accuracy": 1.0, "images": 2.0},
            rel=1e-5,
        )

    def test_pixels_are_normalised(self):
        trainer = types.SimpleNamespace(model=types.SimpleNamespace(dtype=jnp.bfloat16))
        images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 255)])
        seen = trainers.Trainer._normalized(trainer, images)
        assert seen.dtype == jnp.bfloat16
        black, white = np.asarray(seen[:, 0, 0], np.float32)
        np.testing.assert_allclose(black, (-2.118, -2.036, -1.804), atol=0.01)
        np.testing.assert_allclose(white, (2.249, 2.429, 2.640), atol=0.01)


class TestLog:
    @staticmethod
    def run_with_rows(path, steps):
        with event_log.Log(path, {"sparsity": 0.9}) as log:
            log.begin(0)
            for step in steps:
                log.write("train", step, {"loss": float(step)})
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / "1").touch()
        (path / "fingerprints.0.jsonl").touch()

    def test_going_on_forgets_later_steps(self, tmp_path):
        self.run_with_rows(tmp_path, (1, 2, 3))
        with event_log.Log(tmp_path, {"sparsity": 0.9}) as log:
            log.begin(2)
            log.write("train", 3, {"loss": 5.0})
        assert [row["loss"] for row in rows_of(tmp_path / "log.jsonl")] == [1, 2, 5]

    @pytest.mark.parametrize(
        ("step", "shown"), [(0, [(1, 7.0)]), (1, [(1, 1.0), (2, 7.0)])]
    )
    def test_going_on_hides_later_points(self, tmp_path, step, shown):
        """Also if it starts over, before the first checkpoint."""
        self.run_with_rows(tmp_path, (1, 2, 3))
        (first,) = (tmp_path / "events").iterdir()
        # Or the second, which has the same name within a second, replaced it.
        first.rename(first.with_name("events.out.tfevents.0"))
        with event_log.Log(tmp_path, {"sparsity": 0.9}) as log:
            log.begin(step)
            log.write("train", step + 1, {"loss": 7.0})
        points = [(step, value) for step, _, value in events(tmp_path / "events")]
        assert points == shown

    def test_the_same_run_is_never_removed(self, tmp_path):
        self.run_with_rows(tmp_path, (1, 2))
        event_log.Log(tmp_path, {"sparsity": 0.9}, overwrite=True)
        assert len(rows_of(tmp_path / "log.jsonl")) == 2
        assert (tmp_path / "checkpoints" / "1").exists()

    def test_another_one_is_removed_if_told(self, tmp_path):
        self.run_with_rows(tmp_path, (1, 2))
        (tmp_path / "thesis.txt").touch()
        with pytest.raises(ValueError, match=r"was 0\.9, is 0\.5"):
            event_log.Log(tmp_path, {"sparsity": 0.5})
        event_log.Log(tmp_path, {"sparsity": 0.5}, overwrite=True)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"config.json", "thesis.txt"}


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({}, "rigl_erk"),
        ({"dataset": "imagenette", "sparsity": 0.95}, "rigl_erk-imagenette-0.95"),
        ({"recipe": "dense", "multiplier": 0.5}, "dense-50"),
        ({"output": Path("elsewhere"), "sparsity": 0.95}, "elsewhere"),
    ],
)
def test_the_folder_is_named_after_the_recipe(args, name):
    parent = Path() if "output" in args else Path("runs/imagenet")
    assert imagenet.Config(**args).folder == parent / name


@pytest.mark.slow
def test_starts_as_a_program():
    assert "--mesh" in help_of("examples.imagenet")


@pytest.mark.slow
def test_what_a_step_sends(tmp_path):
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        str(ROOT / "tests" / "distributed" / "imagenet_traffic.py"),
    ]
    with Together([command], [environment(8)], tmp_path) as processes:
        processes.finish(timeout=240)

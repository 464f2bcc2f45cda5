"""The measurements on an accelerator, on CPU: that they run, and their records."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import arms, part, seed_program, seeds
from examples.cifar.data import Dataset
from reporting import harness
from reporting.pages import gpu as page
from reporting.pages import real_gains
from tests.helpers.pages import ROOT

# Packages that only the examples need are missing on the accelerator's machine.
MISSING = ("tyro", "PIL", "matplotlib", "tensorflow_datasets", "tensorboardX")


@pytest.fixture
def report(tmp_path):
    options = part.Options(
        quick=True, output=tmp_path / "record.json", allow_dirty=True
    )
    return part.Report("benchmarks.gpu.part", options)


def stored(report):
    return json.loads(report.path.read_text())


def make_arm(name="double", step=lambda x: 2 * x):
    return arms.Arm(name, step, jnp.ones(()))


def test_a_record_is_whole_after_everything_that_is_added(report):
    assert stored(report)["tables"] == [] and stored(report)["quick"]
    report.listing("sizes", [{"name": "a"}], kind="bytes")
    assert stored(report)["tables"][0]["key"] == {"kind": "bytes"}
    report.claim("ratio", 2.0)
    assert stored(report)["claims"][0]["measured"] == 2.0
    report.error("arm", ValueError("first line\nsecond line"))
    found = {"what": "arm", "error": "ValueError: first line"}
    assert stored(report)["errors"] == [found]
    assert [path.name for path in report.path.parent.iterdir()] == ["record.json"]


def test_what_cannot_be_made_or_compiled_is_told_and_the_others_go_on(report):
    def fail():
        raise MemoryError("no room")

    def untraceable(x):
        raise TypeError("not to be traced")

    made = {
        "double": make_arm,
        "fails": fail,
        "untraceable": lambda: make_arm("untraceable", untraceable),
        "triple": lambda: make_arm("triple", lambda x: 3 * x),
    }
    built = arms.build(report, made.items(), part.Budget(100))
    assert [arm.name for arm in built] == ["double", "triple"]
    errors = {row["what"]: row["error"] for row in stored(report)["errors"]}
    assert errors == {
        "fails": "MemoryError: no room",
        "untraceable": "TypeError: not to be traced",
    }
    assert built[0].row()["peak_bytes"] > 0 and built[0].compile_s > 0


def test_when_the_time_is_up_nothing_more_is_compiled(report):
    made = {"double": make_arm, "triple": lambda: pytest.fail("made")}
    built = arms.build(report, made.items(), part.Budget(-1))
    assert [arm.name for arm in built] == ["double"]
    assert "no time" in stored(report)["errors"][0]["error"]


def test_steps_go_on_from_each_other_unless_they_carry_nothing_on(report):
    (arm,) = arms.build(report, [("double", make_arm)], part.Budget(100))
    assert float(arm.block(3)()) == 8.0
    assert float(arm.block(1, lambda x: x + 1)()) == 18.0
    still = arms.Arm("still", lambda x: 2 * x, jnp.ones(()), donates=False)
    (still,) = arms.build(report, [("still", lambda: still)], part.Budget(100))
    assert float(still.block(3)()) == float(still.block(1)()) == 2.0


def test_a_candidate_that_fails_is_left_out(report):
    def fail():
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    good = harness.Candidate("good", lambda: jnp.ones(()))
    candidates = [good, harness.Candidate("bad", fail)]
    timings = arms.compare(report, "title", candidates, part.Budget(0), kind="step")
    assert [*timings] == ["good"] and len(timings["good"].seconds) == 2
    assert "RESOURCE_EXHAUSTED" in stored(report)["errors"][0]["error"]
    assert not arms.compare(report, "t", candidates[::-1], part.Budget(0))


def test_a_part_that_is_stopped_keeps_what_it_had(tmp_path):
    path = tmp_path / "resnet50.json"
    record = program._finished(path, "resnet50", "stopped")
    error = {"what": "resnet50", "error": "stopped"}
    assert json.loads(path.read_text()) == record and record["errors"] == [error]
    path.write_text(json.dumps({"tables": [1], "errors": []}))
    assert program._finished(path, "resnet50", None)["tables"] == [1]
    stopped = program._finished(path, "resnet50", "stopped")
    assert stopped == {"tables": [1], "errors": [error]}


def test_parts_share_the_time_that_is_left(tmp_path, monkeypatch, capsys):
    given = {}

    def run(options, name, seconds, most):
        given[name] = seconds + program.GRACE / 2, most
        return "stopped" if name == "seeds" else "failed"

    monkeypatch.setattr(program, "_run", run)
    assert program.main(["--minutes", "10", "--output", str(tmp_path)]) == 1
    assert [*given] == [*program.SHARES]
    assert given["optimizers"][0] == pytest.approx(0.24 * 600, abs=1)
    assert given["compact_kernels"] == pytest.approx((600, 600), abs=2)
    assert "== seeds: seeds: stopped" in capsys.readouterr().out
    program.main(["--minutes", "0.1", "--output", str(tmp_path)])
    record = json.loads((tmp_path / "seeds.json").read_text())
    assert record["errors"][-1]["error"] == "no time was left"


def test_each_run_has_the_correction_of_its_number():
    ways = (optax.scale(2.0), optax.scale(3.0))
    tx = seed_program.choose(tuple(map(optax.with_extra_args_support, ways)))

    def update(correction):
        grads = {"kernel": jnp.ones(4)}
        return tx.update(grads, tx.init(grads), correction=correction)[0]["kernel"][0]

    np.testing.assert_array_equal(jax.vmap(update)(jnp.arange(3)), [1, 2, 3])


def test_seeds_are_summarized_by_correction():
    accuracies = [np.full(6, 0.5), np.array([0.5, 0.7, 0.6, 0.9, 0.5, 0.7])]
    dead = np.array([0.0, 0.0, 0.5, 0.7, 0.0, 0.2])
    none, fan_in, variance = seeds.summarize(accuracies, dead, 2)
    assert none["accuracy"] == pytest.approx(0.6) and none["gain"] is None
    assert fan_in["gain"]["mean"] == pytest.approx(0.15)
    assert fan_in["dead"] == pytest.approx(0.6) and fan_in["early"] == [0.5]
    assert variance["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


@pytest.mark.slow
def test_a_quick_run_fills_the_page_without_what_examples_need(tmp_path, monkeypatch):
    """Run with modules of these names that cannot be imported."""
    for name in MISSING:
        code = f"raise ModuleNotFoundError('No module named {name!r}', name={name!r})"
        (tmp_path / f"{name}.py").write_text(code)
    output = tmp_path / "records"
    command = [sys.executable, "-W", "error", "-m", "benchmarks.gpu", "--quick"]
    done = subprocess.run(
        [*command, "--minutes", "60", "--output", str(output)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {path.stem for path in output.glob("*.json")} == {*program.SHARES}
    assert any((output / "cache").iterdir())

    def path_of(name):
        return output / f"{name.rpartition('.')[2]}.json"

    monkeypatch.setattr(real_gains, "path_of", path_of)
    monkeypatch.setattr(
        real_gains, "load", lambda name: json.loads(path_of(name).read_text())
    )
    shown = {name: show() for name, show in page.PAGE.items()}
    assert all(
        "\ncpu, jax " in text and "Left out" not in text for text in shown.values()
    )
    assert shown["gpu_steps"].count("\n| ") == 8
    assert shown["gpu_selection"].count(" ms |") == 4
    assert shown["gpu_updates"].count("| RigL, tiny, 128 weights |") == 1
    assert "| RigL |" in shown["gpu_resnet50"] and "GiB" in shown["gpu_resnet50"]
    assert "batch variance" in shown["gpu_seeds"] and "| 95% |" in shown["gpu_seeds"]
    assert "SMET, density 0.25, block 16" in shown["gpu_language_model"]
    assert "| 256 | blocks of 128, 90% zeros |" in shown["gpu_compact"]


@pytest.mark.slow
def test_without_an_accelerator_only_a_quick_run_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(SystemExit, match="finds no accelerator, and on CPU this takes"):
        program.main(["--output", str(tmp_path / "records")])
    assert not [*tmp_path.glob("records/*.json")]


@pytest.mark.slow
def test_runs_of_a_seed_differ_by_their_correction_alone():
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(32, 8, 8, 1), dtype=np.uint8)
    labels = draw.integers(10, size=32, dtype=np.int32)
    dataset = Dataset("noise", images, labels, images, labels, 10)
    one = seed_program.Program(dataset, 0.8, width=4, blocks=1, batch=4)
    numbers = jnp.arange(len(seed_program.CORRECTIONS))

    def kernels(run):
        return run.state.params["stage_2_block_1"]["conv_1"]["kernel"]

    first = jax.jit(jax.vmap(one.begin, in_axes=(None, 0)))(jnp.int32(1), numbers)
    many = jax.jit(jax.vmap(one.many, in_axes=(0, None, None, None)))
    runs = many(first, (images, labels), jnp.int32(3), jnp.int32(20))
    before, after = kernels(first), kernels(runs)
    assert (before == before[:1]).all() and runs.state.step.tolist() == [3, 3, 3]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (after[i] != after[j]).any()
    assert ((after != 0) == (before != 0)).all()  # the mask of one seed
    updated = jax.jit(jax.vmap(one.update, in_axes=(0, None, None)))(
        runs, (images, labels), jnp.int32(20)
    )
    changed = kernels(updated)
    assert ((changed != 0) != (after != 0)).any()
    kept = changed != 0
    np.testing.assert_array_equal(changed[kept], after[kept])
    assert runs.state.opt_state.count.tolist() == [3, 3, 3]
    assert updated.state.opt_state.count.tolist() == [3, 3, 3]

"""Readers of checkpoints change nothing, and there is only one writer."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax.numpy as jnp
import pytest

from sparseopt_jax.checkpoint import Checkpoints, forgotten
from sparseopt_jax.checkpoint.flushed_path import FlushedPath
from sparseopt_jax.checkpoint.lock import WriterLock
from tests.helpers.together import ROOT

STATE = {"x": jnp.arange(4.0)}


def save(directory, *steps, **options):
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, STATE)


def contents(directory):
    """Return every path below a directory, with its time of modification."""
    found = {path: path.lstat().st_mtime_ns for path in directory.rglob("*")}
    return found | {directory: directory.lstat().st_mtime_ns}


# Readers.


def test_a_reader_changes_nothing(tmp_path):
    directory = tmp_path / "run"
    save(directory, 1, 2)
    # A step that a trainer is writing, and one that it is deleting.
    shutil.copytree(directory / "2", directory / "3.orbax-checkpoint-tmp")
    shutil.copytree(directory / "1", directory / ".deleted" / "0")
    (directory / ".writer").write_text("")
    before = contents(directory)
    with Checkpoints(directory, max_to_keep=1) as checkpoints:
        assert checkpoints.steps == [1, 2]
        state, _ = checkpoints.restore(STATE)
        assert (state["x"] == STATE["x"]).all()
        assert checkpoints.restore(STATE, step=1)
        with pytest.raises(ValueError, match="holds no step 3"):
            checkpoints.restore(STATE, step=3)
        checkpoints.wait()
    assert contents(directory) == before


def test_a_reader_makes_no_directory(tmp_path):
    with Checkpoints(tmp_path / "a" / "run") as checkpoints:
        assert checkpoints.steps == [] and checkpoints.latest_step is None
        assert checkpoints.restore(STATE) is None
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_can_be_read(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    tmp_path.chmod(0o555)
    try:
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.restore(STATE)
    finally:
        tmp_path.chmod(0o755)


def test_a_reader_sees_new_steps_when_it_asks_again(tmp_path):
    with Checkpoints(tmp_path) as reader, Checkpoints(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.save(step, {"x": STATE["x"] + step}, {"index": step})
            writer.wait()
            assert reader.latest_step == step
            state, data = reader.restore(STATE)
            assert state["x"][0] == step and data == {"index": step}
        assert reader.steps == [2, 3, 4]
        with pytest.raises(ValueError, match="holds no step 1"):
            reader.restore(STATE, step=1)


def test_a_step_deleted_while_it_is_read_is_not_called_damaged(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    with Checkpoints(tmp_path) as reader:
        monkeypatch.setattr(
            "sparseopt_jax.checkpoint.record.checked",
            lambda record: shutil.rmtree(tmp_path / "2") or int("deleted"),
        )
        with pytest.raises(ValueError, match=r"step 2 was deleted .*\[1\] now"):
            reader.restore(STATE)


def test_a_writer_reads_what_it_has_just_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, STATE)
        assert checkpoints.restore(STATE) is not None
        assert checkpoints.steps == [5]


TRAINER = """
    import sys, time
    import jax.numpy as jnp
    from sparseopt_jax.checkpoint import Checkpoints

    big = {"x": jnp.arange(2**22, dtype=jnp.float32)}
    with Checkpoints(sys.argv[1]) as checkpoints:
        for step in range(1, int(sys.argv[2]) + 1):
            checkpoints.save(step, big)
            print(step, flush=True)
    print("left", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def trainer(directory, steps, sleep=0):
    return subprocess.Popen(
        [
            *(sys.executable, "-c", textwrap.dedent(TRAINER)),
            *(str(directory), str(steps), str(sleep)),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_goes_on_while_others_read_it(tmp_path):
    template, opened = {"x": jnp.zeros(2**22, jnp.float32)}, 0
    process = trainer(tmp_path, 40)
    try:
        while process.poll() is None:
            with Checkpoints(tmp_path) as checkpoints:
                opened += 1
                steps = checkpoints.steps
                if opened % 5 == 0 and steps:
                    # Old steps may be deleted while they are read.
                    try:
                        state, _ = checkpoints.restore(template)
                        assert state["x"][-1] == 2**22 - 1
                    except ValueError as error:
                        assert "deleted while" in str(error), error
        output, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert output.split() == [*map(str, range(1, 41)), "left"]
    assert opened > 20
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [38, 39, 40]


# Writers.


def test_a_second_writer_of_a_process_is_refused(tmp_path):
    with Checkpoints(tmp_path) as first, Checkpoints(tmp_path) as second:
        assert second.restore(STATE) is None
        first.save(1, STATE)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"other Checkpoints of this process"):
                second.save(2, STATE)
        first.wait()
        assert second.restore(STATE) is not None
        first.save(2, STATE)
        first.close()
        second.save(3, STATE)
    with Checkpoints(tmp_path) as third:
        assert third.save(4, STATE) and third.steps == [2, 3, 4]
    assert sorted(os.listdir(tmp_path)) == ["2", "3", "4"]


def test_forgotten_checkpoints_hold_no_directory(tmp_path):
    lock = WriterLock(tmp_path)
    del lock
    WriterLock(tmp_path).release()
    assert os.listdir(tmp_path) == []


def test_the_save_of_forgotten_checkpoints_completes(tmp_path, monkeypatch):
    rename = FlushedPath._name

    def slowly(path):
        time.sleep(0.2)
        rename(path)

    monkeypatch.setattr(FlushedPath, "_name", slowly)
    for step in (1, 2):
        assert Checkpoints(tmp_path).save(step, STATE)
    forgotten.wait_for_all()
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_an_error_of_a_forgotten_save_is_reported(tmp_path, monkeypatch):
    def no_disk(path):
        time.sleep(0.2)
        raise OSError("no disk")

    reported = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    monkeypatch.setattr(FlushedPath, "_name", no_disk)
    Checkpoints(tmp_path).save(1, STATE)
    forgotten.wait_for_all()
    assert "no disk" in str(reported[-1].exc_value)
    monkeypatch.undo()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(2, STATE)
    assert os.listdir(tmp_path) == ["2"]


NOT_CLOSED = """
    import sys
    import jax.numpy as jnp
    from sparseopt_jax.checkpoint import Checkpoints

    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, {"x": jnp.arange(2.0**22)})
    if sys.argv[2] == "deleted":
        del checkpoints
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kept", "deleted"])
def test_a_process_ends_after_the_save_of_checkpoints_not_closed(end, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NOT_CLOSED), str(tmp_path), end],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(tmp_path) == ["1"]


HOLDER = """
    import sys, time
    from sparseopt_jax.checkpoint.lock import WriterLock
    lock = WriterLock(sys.argv[1])
    print("locked", flush=True)
    time.sleep(300)
"""


def holder(directory):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(directory)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.mark.slow
def test_another_process_is_named_and_a_dead_one_is_not_in_the_way(tmp_path):
    process = holder(tmp_path)
    try:
        with Checkpoints(tmp_path) as checkpoints:
            with pytest.raises(
                ValueError, match=f"written to by process {process.pid} on .*: wait"
            ):
                checkpoints.save(1, STATE)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert json.loads((tmp_path / ".writer").read_text())
            assert checkpoints.save(1, STATE)
    finally:
        process.kill()
        process.communicate()
    assert os.listdir(tmp_path) == ["1"]


def _sleep():
    time.sleep(300)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_children_hold_no_lock_and_release_none(tmp_path):
    lock = WriterLock(tmp_path)
    child = multiprocessing.get_context("fork").Process(target=lock.release)
    child.start()
    child.join()
    with pytest.raises(ValueError, match="other Checkpoints of this process"):
        WriterLock(tmp_path)
    assert os.listdir(tmp_path) == [".writer"]
    child = multiprocessing.get_context("fork").Process(target=_sleep)
    child.start()
    try:
        lock.release()
        process = holder(tmp_path)
        process.kill()
        process.communicate()
    finally:
        child.kill()
        child.join()


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    locks = [WriterLock(tmp_path), WriterLock(tmp_path)]
    for lock in locks:
        lock.release()


# After the end.


def test_closed_checkpoints_say_so(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE)
    checkpoints.close()
    for use in (
        lambda: checkpoints.save(2, STATE),
        lambda: checkpoints.restore(STATE),
        lambda: checkpoints.steps,
        lambda: checkpoints.latest_step,
        lambda: checkpoints.wait(),
    ):
        with pytest.raises(ValueError, match="are closed; make a new Checkpoints"):
            use()
    assert os.listdir(tmp_path) == ["1"]

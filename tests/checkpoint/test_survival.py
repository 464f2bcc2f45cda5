"""Runs that are killed, stopped and restarted end like uninterrupted ones."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from sparseopt_jax.checkpoint import Checkpoints
from tests.helpers import checkpoint_program
from tests.helpers.checkpoint_program import leaves, new_state, topology, train_step

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPORARY = "orbax-checkpoint-tmp"
KILLS = 10  # of each of two runs
STEPS = 600


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start the program in a separate process, without importing JAX again.

    Processes are forked from one that has imported everything and computed nothing, so
    JAX is in its initial state in each of them.
    """
    cache = tmp_path_factory.mktemp("cache")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["jax", "optax", "flax", "sparseopt_jax.linen", "sparseopt_jax.checkpoint"]
    )

    def start(directory, method, steps, **options):
        process = context.Process(
            target=checkpoint_program.run,
            args=(directory, method),
            kwargs={"steps": steps, "cache": cache, **options},
        )
        process.start()
        return process

    return start


def names(directory):
    return os.listdir(directory) if directory.exists() else []


def complete(directory):
    return sorted(int(name) for name in names(directory) if name.isdigit())


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.0005)


def wait_for(process):
    # Not `join`, which two threads must not call at the same time.
    assert multiprocessing.connection.wait([process.sentinel], 120), "it goes on"


def kill_again_and_again(start, directory, method, seed):
    """Start and kill a run; return how many of the kills were inside a save.

    Alternately: at any moment of a life, start-up included; at any moment after its
    first save; as soon as a save is under way.
    """
    rng = random.Random(seed)
    log = directory.with_suffix(".log")
    inside = 0
    for life in range(KILLS):
        before, started = complete(directory), len(lines(log))
        process = start(directory, method, STEPS, log=log)
        try:
            if life % 3 == 0:
                time.sleep(rng.uniform(0.0, 2.0))
            else:
                wait_until(lambda before=before: complete(directory)[-1:] > before[-1:])
                if life % 3 == 1:
                    time.sleep(rng.uniform(0.0, 0.2))
                else:
                    wait_until(
                        lambda: any(TEMPORARY in name for name in names(directory))
                    )
                    time.sleep(rng.uniform(0.0, 0.02))
        finally:
            process.kill()
            wait_for(process)
        # It resumed from the last step that the previous life had completed.
        assert lines(log)[started:] in ([], [f"started {max(before, default=0)}"])
        # A save that was under way still has its temporary name.
        inside += any(TEMPORARY in name for name in names(directory))
    return inside


def finish(start, directory, method, steps=STEPS):
    """Run a training to its end, saving only there; return its last arrays."""
    result = directory.with_suffix(".npz")
    process = start(directory, method, steps, every=steps, result=result)
    wait_for(process)
    return np.load(result)


def killed_and_left_alone(start, directory, method, seed):
    alone = directory.with_name(f"{method}_alone")
    # In two parts: afterwards everything has been compiled.
    finish(start, alone, method, 1)
    expected = finish(start, alone, method)
    inside = kill_again_and_again(start, directory, method, seed)
    assert 0 < complete(directory)[-1] < STEPS
    return inside, expected, finish(start, directory, method)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_left_alone(start, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        runs = [
            threads.submit(killed_and_left_alone, start, tmp_path / method, method, i)
            for i, method in enumerate(["rigl", "set"])
        ]
        runs = [run.result() for run in runs]
    assert sum(inside for inside, _, _ in runs) >= 5
    for _, expected, actual in runs:
        assert sorted(actual) == sorted(expected)
        for name in expected:
            assert actual[name].tobytes() == expected[name].tobytes(), name


# SIGTERM, in programs started as a user starts them.


def program(directory, *options):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.helpers.checkpoint_program", directory),
            *("--steps", "100000", *options),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alone(method, steps):
    state = new_state(method)
    for index in range(steps):
        state = train_step(state, index)
    return state


@pytest.mark.slow
def test_sigterm_saves_and_leaves(tmp_path):
    directory, log = tmp_path / "run", tmp_path / "log"
    process = program(directory, "--log", log)
    try:
        wait_until(lambda: complete(directory))
        process.terminate()
        output = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "Traceback" not in output[1]
    assert not any(TEMPORARY in name for name in names(directory))
    left = complete(directory)[-1]
    assert lines(log) == ["started 0", f"left {left}"]
    with Checkpoints(directory, topology=topology("rigl")) as checkpoints:
        state, data = checkpoints.restore(new_state("rigl"))
    assert data == {"index": left} and int(state.step) == left
    expected = leaves(alone("rigl", left))
    for path, x in leaves(state).items():
        assert x.tobytes() == expected[path].tobytes(), path


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_lets_both_leave_at_one_step(tmp_path):
    directory = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    processes = [
        program(
            directory,
            *("--coordinator", f"localhost:{port}", "--processes", "2"),
            *("--process", str(i), "--log", logs[i]),
            *("--result", logs[i].with_suffix(".npz")),
        )
        for i in range(2)
    ]
    try:
        wait_until(lambda: complete(directory))
        processes[1].terminate()
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    left = complete(directory)[-1]
    for log in logs:
        assert lines(log) == ["started 0", f"left {left}"]
    # One device takes over what two processes have sharded between them.
    with Checkpoints(directory, topology=topology("rigl")) as checkpoints:
        state, _ = checkpoints.restore(new_state("rigl"))
    assert int(state.step) == left
    restored = leaves(state)
    for log in logs:
        expected = np.load(log.with_suffix(".npz"))
        assert sorted(expected) == sorted(restored)
        for path, x in restored.items():
            assert x.tobytes() == expected[path].tobytes(), path

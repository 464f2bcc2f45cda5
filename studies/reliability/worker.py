"""Training processes that others interrupt; they log what they do."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sparseopt_jax.checkpoint import Checkpoints
from studies.reliability.trainings import STEPS, State, build, digest

# Two checkpoints are fewer than this many steps apart.
MOST = 6


class Setup(NamedTuple):
    """What a process needs to take part in a training.

    Attributes:
      name: name of the training.
      data: file with its images and texts.
      cache: folder of compiled programs.
      process: number of this process.
      coordinator: address at which several processes meet; None for one process.
      processes: number of processes.
    """

    name: str
    data: Path
    cache: Path
    process: int = 0
    coordinator: str | None = None
    processes: int = 1

    def configure(self) -> None:
        """Configure JAX; call it before anything is computed."""
        jax.config.update("jax_compilation_cache_dir", str(self.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        if self.coordinator is not None:
            jax.distributed.initialize(self.coordinator, self.processes, self.process)


def uninterrupted(setup: Setup, result: Path) -> None:
    """Train without checkpoints; write the digest of the state after every step."""
    setup.configure()
    program = build(setup.name, setup.data)
    state = program.start()
    digests = [digest(state)]
    for index in range(STEPS):
        state = program.step(state, index)
        digests.append(digest(state))
    if setup.process == 0:
        aside = result.with_suffix(".part")
        aside.write_text(json.dumps(digests))
        aside.rename(result)


def train(setup: Setup, directory: Path, log: Path, seed: int, most: int) -> None:
    """Resume from the last checkpoint and train to the end, saving at random steps.

    The log gets ``checked STEP DIGEST`` for every checkpoint found, or ``unreadable
    STEP``; then ``started STEP DIGEST``, ``saving STEP``, ``saved STEP`` after waiting
    for that save, and ``ended STEP DIGEST``.

    Args:
      setup: of this process.
      directory: folder of the checkpoints.
      log: file to append to.
      seed: chooses the steps to save at.
      most: two checkpoints are fewer than this many steps apart.
    """
    setup.configure()
    program = build(setup.name, setup.data)
    # The same steps in all processes.
    rng = np.random.default_rng(seed)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(what: str, step: int, state: State | None = None) -> None:
        # Every process waits here for the computation that all of them share; one
        # that ran ahead and exited would break it for the others.
        words = [what, str(step), *([] if state is None else [digest(state)])]
        if setup.process == 0:
            os.write(descriptor, f"{' '.join(words)}\n".encode())

    state, first = program.start(), 0
    with Checkpoints(directory, topology=program.topology, max_to_keep=2) as saved:
        for step in saved.steps:
            try:
                state, data = _restored(saved, program.start(), step)
            except ValueError:
                say("unreadable", step)
                raise
            say("checked", step, state)
            first = data["index"]
        say("started", first, state)
        due = first + int(rng.integers(1, most))
        waiting = None
        for index in range(first, STEPS):
            state = program.step(state, index)
            if index + 1 == due:
                saved.wait()
                if waiting is not None:
                    say("saved", waiting)
                say("saving", due)
                saved.save(due, state, {"index": due})
                waiting, due = due, due + int(rng.integers(1, most))
    if waiting is not None:
        say("saved", waiting)
    say("ended", STEPS, state)


def _restored(checkpoints: Checkpoints, state: State, step: int) -> tuple[State, Any]:
    restored = checkpoints.restore(state, step=step)
    assert restored is not None
    return restored

"""Processes that train, which others kill: what they do is in their log."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sparseopt_jax.checkpoint import Checkpoints
from studies.reliability.trainings import STEPS, State, build, digest

# Steps between two checkpoints are fewer.
MOST = 6


class Place(NamedTuple):
    """What the processes of a training share.

    Attributes:
      name: of the training.
      data: its images and texts.
      cache: of compiled programs.
      process: which of several this is.
      coordinator: where they meet; None if there is one.
      processes: how many.
    """

    name: str
    data: Path
    cache: Path
    process: int = 0
    coordinator: str | None = None
    processes: int = 1

    def join(self) -> None:
        """Configures the process, before it computes anything."""
        jax.config.update("jax_compilation_cache_dir", str(self.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        if self.coordinator is not None:
            jax.distributed.initialize(self.coordinator, self.processes, self.process)


def uninterrupted(place: Place, result: Path) -> None:
    """Trains without checkpoints; writes the digest of the state after each step."""
    place.join()
    program = build(place.name, place.data)
    state = program.start()
    digests = [digest(state)]
    for index in range(STEPS):
        state = program.step(state, index)
        digests.append(digest(state))
    if place.process == 0:
        aside = result.with_suffix(".part")
        aside.write_text(json.dumps(digests))
        aside.rename(result)


def live(place: Place, directory: Path, log: Path, seed: int, most: int) -> None:
    """Goes on from the last checkpoint and saves at random steps, until the end.

    Fewer than ``most`` steps lie between two checkpoints; the seed decides how many.

    Its log has ``checked STEP DIGEST`` for every checkpoint that it finds, or
    ``unreadable STEP``, then ``started STEP DIGEST``, ``saving STEP``, ``saved STEP``
    once it has waited for a save, and ``ended STEP DIGEST``.
    """
    place.join()
    program = build(place.name, place.data)
    # The same steps in all processes.
    rng = np.random.default_rng(seed)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(what: str, step: int, state: State | None = None) -> None:
        # All wait for what they have computed together, and one of them tells.
        words = [what, str(step), *([] if state is None else [digest(state)])]
        if place.process == 0:
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
    found = checkpoints.restore(state, step=step)
    assert found is not None
    return found

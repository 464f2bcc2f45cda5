"""Measure the cost of flushing a checkpoint to disk before it gets its name.

    python -m studies.reliability.flushing

The state of a small network is saved repeatedly, with and without the flushes that the
library adds to Orbax's own. Each save is timed from the call until the step is
complete. Training continues in the meantime, so this is the time until the next
checkpoint can begin, not time lost to training.
"""

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax.numpy as jnp

from reporting import harness
from sparseopt_jax.checkpoint import Checkpoints
from sparseopt_jax.files import flush
from studies.reliability.options import Options

WEIGHTS = 4_000_000
_LEAVES = 20


def main(options: Options) -> None:
    """Run the program."""
    report = harness.Report("studies.reliability.flushing", options)
    weights = 20_000 if options.quick else WEIGHTS
    with (
        tempfile.TemporaryDirectory(dir=_work(options)) as folder,
        Checkpoints(Path(folder, "flushed"), max_to_keep=1) as flushed,
        Checkpoints(Path(folder, "unflushed"), max_to_keep=1) as unflushed,
    ):
        save = _saving(flushed, weights)
        save_unflushed = _saving(unflushed, weights)

        def without() -> None:
            with mock.patch.object(flush, "_flush", _nothing):
                save_unflushed()

        timings = harness.measure(
            [harness.Candidate("without", without), harness.Candidate("with", save)],
            options.rounds_or(20),
        )
        flushes = {"with": _flushes(save), "without": _flushes(without)}
    title = f"A checkpoint of {weights:,} weights with momentum and masks"
    report.table(title, timings, "without", kind="flushing", weights=weights)
    rows = [{"checkpoint": name, "flushes": n} for name, n in flushes.items()]
    report.listing("Flushes that the library adds", rows, kind="flushes")
    report.store()


def _work(options: Options) -> Path:
    """Return a folder on a real disk, where temporary folders may be in memory."""
    options.work.mkdir(parents=True, exist_ok=True)
    return options.work


def _saving(checkpoints: Checkpoints, weights: int) -> Callable[[], None]:
    leaf = jnp.arange(weights // _LEAVES, dtype=jnp.float32)
    state = {
        f"layer_{i}": {"kernel": leaf, "trace": leaf, "mask": leaf % 10 == 0}
        for i in range(_LEAVES)
    }
    steps = itertools.count(1)

    def save() -> None:
        checkpoints.save(next(steps), state)
        checkpoints.wait()

    return save


def _flushes(save: Callable[[], None]) -> int:
    with mock.patch.object(os, "fsync", wraps=os.fsync) as fsync:
        save()
    return fsync.call_count


def _nothing(path: object, flags: int) -> None:
    """Replace the flush."""


if __name__ == "__main__":
    harness.start(main, __doc__, Options)

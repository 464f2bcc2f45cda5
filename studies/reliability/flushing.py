"""What it costs to have a checkpoint on the disk before it has its name.

    python -m studies.reliability.flushing

A state of the size of a small network's is saved again and again, from the call until
the step is complete: as it is, and without the flushes that the library adds to those
of Orbax. Training goes on meanwhile, so that it is the time until the next checkpoint
may begin, and not time lost.
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
    """Runs the program."""
    report = harness.Report("studies.reliability.flushing", options)
    weights = 20_000 if options.quick else WEIGHTS
    with (
        tempfile.TemporaryDirectory(dir=_work(options)) as folder,
        Checkpoints(Path(folder, "as_is"), max_to_keep=1) as as_is,
        Checkpoints(Path(folder, "unflushed"), max_to_keep=1) as unflushed,
    ):
        save = _saving(as_is, weights)
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
    """On the disk that users have, which a folder for temporary files may not be."""
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
    """Flushes nothing."""


if __name__ == "__main__":
    harness.start(main, __doc__, Options)

"""Save checkpoints where they cannot be written, or not completely.

    python -m studies.reliability.faults

In each trial a training saves a checkpoint, fails to save the next one because of a
fault, sees the exception, continues, and saves again once the fault is gone. Every
checkpoint is then compared, bit for bit, with the same step of a run without faults.
There are three faults:

- a file size limit (``RLIMIT_FSIZE``) below the size of the largest file;
- a disk that fills up part of the way through the checkpoint: an ext4 file system in a
  file, which only root may mount;
- an unwritable folder. Root may write anywhere, so a trial run by root acts as another
  user during that save.
"""

import contextlib
import json
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reporting import harness
from sparseopt_jax.checkpoint import Checkpoints
from studies.reliability.disk_images import DiskImage, can_mount
from studies.reliability.interruptions import Trials
from studies.reliability.options import Notes, Options
from studies.reliability.trainings import State, build, digest
from studies.reliability.worker import Setup

TRAINING = "language model"
FAULTS = {
    "a file size limit": 10,
    "a full disk": 10,
    "an unwritable folder": 5,
}
_NOBODY = 65534
# Steps of the three checkpoints: before, during and after the fault.
BEFORE, DURING, AFTER = 2, 4, 6


def main(options: Options) -> None:
    """Run the program."""
    report = harness.Report("studies.reliability.faults", options)
    notes = Notes(report, options)
    trials = Trials(notes.folder / "runs", TRAINING, options.quick)
    rows = []
    for fault, count in FAULTS.items():
        if fault == "a full disk" and not can_mount():
            print("A full disk needs root, who may mount one: skipped.")
            continue
        for seed in range(len(notes.select(fault=fault)), options.count_or(count)):
            notes.add({"fault": fault, **_once(trials, fault, seed)})
        rows.append(_summary(notes, fault))
    report.listing("Saves during a fault", rows, kind="faults")
    for what in ("lost", "corrupt"):
        total = sum(row[what] for row in rows)
        report.claim(f"checkpoints {what}", total, at_most=0, kind=what)
    report.store()


def _once(trials: Trials, fault: str, seed: int) -> dict[str, Any]:
    """Run one trial in its own process; return what came of it."""
    result = trials.folder / "result.json"
    result.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(dir=trials.folder)
        folder = Path(stack.enter_context(made))
        folder.chmod(0o755)  # readable by other users, as most folders are
        if fault == "a full disk":
            folder = stack.enter_context(DiskImage(folder, 8).mounted())
        (process,) = trials.start(attempt, fault, folder, seed, result)
        process.join()
    if not result.exists():
        raise SystemExit(f"{fault}: the training failed with the error above")
    outcome = json.loads(result.read_text())
    digests = outcome.pop("digests")
    expected = {BEFORE, AFTER} if outcome["error"] else {BEFORE, DURING, AFTER}
    outcome["lost"] = sum(str(step) not in digests for step in expected)
    outcome["corrupt"] = sum(
        trials.digests[int(step)] != restored for step, restored in digests.items()
    )
    return outcome


def attempt(setup: Setup, fault: str, folder: Path, seed: int, result: Path) -> None:
    """Save three times, the second time with a fault; write what happened.

    Args:
      setup: of this process.
      fault: one of ``FAULTS``.
      folder: where to save.
      seed: chooses how much can be written before the fault.
      result: JSON file to write.
    """
    setup.configure()
    program = build(setup.name, setup.data)
    directory = folder / "checkpoints"

    def train(state: State, first: int, last: int) -> State:
        for index in range(first, last):
            state = program.step(state, index)
        return state

    def save(checkpoints: Checkpoints, step: int, state: State) -> str:
        """Save and wait; return the error, empty if there was none."""
        try:
            checkpoints.save(step, state, {"index": step})
            checkpoints.wait()
        except Exception as error:  # of any kind: which one is recorded
            return f"{type(error).__name__}: {error}"[:200]
        return ""

    state = train(program.start(), 0, BEFORE)
    with Checkpoints(directory, topology=program.topology) as checkpoints:
        assert not save(checkpoints, BEFORE, state)
        state = train(state, BEFORE, DURING)
        with _FAULTY[fault](directory, np.random.default_rng(seed)):
            error = save(checkpoints, DURING, state)
        state = train(state, DURING, AFTER)
        later_error = save(checkpoints, AFTER, state)
    digests = {}
    with Checkpoints(directory, topology=program.topology) as checkpoints:
        for step in checkpoints.steps:
            # A checkpoint that cannot be read has no digest and counts as corrupt.
            digests[step] = ""
            with contextlib.suppress(ValueError):
                restored = checkpoints.restore(program.start(), step=step)
                digests[step] = digest(restored[0]) if restored else ""
    content = {"error": error, "recovered": not later_error, "digests": digests}
    aside = result.with_suffix(".part")
    aside.write_text(json.dumps(content))
    aside.rename(result)


@contextlib.contextmanager
def _file_limit(directory: Path, rng: np.random.Generator) -> Iterator[None]:
    largest = max(path.stat().st_size for path in _files(directory))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # At most half: compressed, the next checkpoint may be a little smaller.
    limit = int(rng.integers(1, largest // 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def _full_disk(directory: Path, rng: np.random.Generator) -> Iterator[None]:
    size = sum(path.stat().st_size for path in _files(directory))
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    filler = directory.parent / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - int(rng.integers(size)))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def _unwritable(directory: Path, rng: np.random.Generator) -> Iterator[None]:
    del rng
    directory.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        directory.chmod(0o755)


_Faulty = Callable[[Path, np.random.Generator], contextlib.AbstractContextManager[None]]
_FAULTY: dict[str, _Faulty] = dict(
    zip(FAULTS, (_file_limit, _full_disk, _unwritable), strict=True)
)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _summary(notes: Notes, fault: str) -> dict[str, Any]:
    rows = notes.select(fault=fault)
    return {
        "fault": fault,
        "met": len(rows),
        "heard of": sum(bool(row["error"]) for row in rows),
        "lost": sum(row["lost"] for row in rows),
        "corrupt": sum(row["corrupt"] for row in rows),
        "went on": sum(row["recovered"] for row in rows),
    }


if __name__ == "__main__":
    harness.start(main, __doc__, Options)

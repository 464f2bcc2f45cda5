"""Saves to where nothing, or not enough, can be written.

    python -m studies.reliability.faults

Each time a training saves a checkpoint, meets a fault while it saves the next one,
hears of it as an exception, goes on, and saves again once the fault is over. Then every
checkpoint is compared with the same step of a run without faults, bit by bit. The
faults: a limit on the size of files (``RLIMIT_FSIZE``) somewhere within the largest
one; a disk that is full somewhere within the checkpoint, an ext4 file system in a file
that only root may mount; a folder that may not be written to, for which root is another
user meanwhile, since root may write anywhere.
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
from studies.reliability.images import Image, can_mount
from studies.reliability.lives import Trials
from studies.reliability.options import Notes, Options
from studies.reliability.trainings import State, build, digest
from studies.reliability.worker import Place

TRAINING = "language model"
FAULTS = {
    "a limit on the size of files": 10,
    "a full disk": 10,
    "an unwritable folder": 5,
}
_NOBODY = 65534
# Steps of the checkpoints: before the fault, with it, and after it.
BEFORE, WITH, AFTER = 2, 4, 6


def main(options: Options) -> None:
    """Runs the program."""
    report = harness.Report("studies.reliability.faults", options)
    notes = Notes(report, options)
    trials = Trials(notes.folder / "runs", TRAINING, options.quick)
    rows = []
    for fault, count in FAULTS.items():
        if fault == "a full disk" and not can_mount():
            print("A full disk needs root, who may mount one: left out.")
            continue
        for seed in range(len(notes.select(fault=fault)), options.count_or(count)):
            notes.add({"fault": fault, **_once(trials, fault, seed)})
        rows.append(_summary(notes, fault))
    report.listing("Saves that met a fault", rows, kind="faults")
    for what in ("lost", "corrupt"):
        total = sum(row[what] for row in rows)
        report.claim(f"checkpoints {what}", total, at_most=0, kind=what)
    report.store()


def _once(trials: Trials, fault: str, seed: int) -> dict[str, Any]:
    """One fault, met in a process of its own; what came of it."""
    result = trials.folder / "result.json"
    result.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(dir=trials.folder)
        folder = Path(stack.enter_context(made))
        folder.chmod(0o755)  # others may look into it, as into most folders
        if fault == "a full disk":
            folder = stack.enter_context(Image(folder, 8).mounted())
        (process,) = trials.start(meet, fault, folder, seed, result)
        process.join()
    if not result.exists():
        raise SystemExit(f"{fault}: the training failed, as said above")
    found = json.loads(result.read_text())
    digests = found.pop("digests")
    kept = {BEFORE, AFTER} if found["heard"] else {BEFORE, WITH, AFTER}
    found["lost"] = sum(str(step) not in digests for step in kept)
    found["corrupt"] = sum(
        trials.digests[int(step)] != there for step, there in digests.items()
    )
    return found


def meet(place: Place, fault: str, folder: Path, seed: int, result: Path) -> None:
    """Saves three times, the second time with a fault; writes what was found.

    Args:
      place: of the training.
      fault: one of ``FAULTS``.
      folder: where to save.
      seed: decides how much is written before the fault.
      result: receives it as JSON.
    """
    place.join()
    program = build(place.name, place.data)
    directory = folder / "checkpoints"

    def train(state: State, first: int, last: int) -> State:
        for index in range(first, last):
            state = program.step(state, index)
        return state

    def save(checkpoints: Checkpoints, step: int, state: State) -> str:
        """What is heard of it."""
        try:
            checkpoints.save(step, state, {"index": step})
            checkpoints.wait()
        except Exception as error:  # of whatever kind: that is what is looked at
            return f"{type(error).__name__}: {error}"[:200]
        return ""

    state = train(program.start(), 0, BEFORE)
    with Checkpoints(directory, topology=program.topology) as checkpoints:
        assert not save(checkpoints, BEFORE, state)
        state = train(state, BEFORE, WITH)
        with _FAULTY[fault](directory, np.random.default_rng(seed)):
            heard = save(checkpoints, WITH, state)
        state = train(state, WITH, AFTER)
        again = save(checkpoints, AFTER, state)
    digests = {}
    with Checkpoints(directory, topology=program.topology) as checkpoints:
        for step in checkpoints.steps:
            # One that cannot be read is not what was saved.
            with contextlib.suppress(ValueError):
                digests[step] = ""
                found = checkpoints.restore(program.start(), step=step)
                digests[step] = digest(found[0]) if found else ""
    content = {"heard": heard, "went_on": not again, "digests": digests}
    aside = result.with_suffix(".part")
    aside.write_text(json.dumps(content))
    aside.rename(result)


@contextlib.contextmanager
def _file_limit(directory: Path, rng: np.random.Generator) -> Iterator[None]:
    largest = max(path.stat().st_size for path in _files(directory))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Compressed, the next checkpoint may be a little smaller.
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
        "heard of": sum(bool(row["heard"]) for row in rows),
        "lost": sum(row["lost"] for row in rows),
        "corrupt": sum(row["corrupt"] for row in rows),
        "went on": sum(row["went_on"] for row in rows),
    }


if __name__ == "__main__":
    harness.start(main, __doc__, Options)

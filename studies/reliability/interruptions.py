"""Start training processes, interrupt them, and inspect the checkpoints they leave."""

import contextlib
import json
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from studies.reliability import trainings
from studies.reliability.worker import MOST, Setup, train, uninterrupted

TEMPORARY = "orbax-checkpoint-tmp"
_PATIENCE = 900  # seconds after which a process counts as stuck
_SAVES = 4  # a run begins at most this many saves before it is interrupted

Interrupt = Callable[[list[Any], random.Random], None]


class Outcome(NamedTuple):
    """What one run of a training showed.

    Attributes:
      inside: whether it was interrupted during a save.
      latest: latest complete step afterwards; 0 if there is none.
      lost: steps that ``wait`` reported as saved, where neither they nor a later step
        is left.
      unreadable: checkpoints that the run found and could not read.
      different: states that differ from the uninterrupted run.
      failed: whether it stopped on its own, before the end of the training.
      ended: whether it reached the end of the training.
    """

    inside: bool
    latest: int
    lost: int
    unreadable: int
    different: int
    failed: bool
    ended: bool


class Trials:
    """One training that is interrupted many times, in its own folder."""

    def __init__(self, folder: Path, name: str, quick: bool):
        """Train once without interruption, unless that was done before."""
        self.folder, self.name = folder, name
        self.processes = trainings.TRAININGS[name]
        self._context = multiprocessing.get_context("forkserver")
        # The fork server imports everything once and computes nothing, so that each
        # process it forks is like a new one.
        self._context.set_forkserver_preload(["studies.reliability.worker"])
        folder.mkdir(parents=True, exist_ok=True)
        self._data, self._cache = folder.parent / "content.npz", folder / "cache"
        trainings.prepare(self._data, quick)
        result = folder / "uninterrupted.json"
        if not result.exists():
            processes = self.start(uninterrupted, result)
            for process in processes:
                process.join(_PATIENCE)
        self.digests = json.loads(result.read_text())
        # Seconds, measured again and again: a busy machine takes longer.
        self._startup, self._save = 1.0, 0.1

    def start(self, target: Callable[..., None], *args: Any) -> list[Any]:
        """Call ``target(setup, *args)`` in every process of the training."""
        coordinator = None
        if self.processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                coordinator = f"localhost:{free.getsockname()[1]}"
        started = []
        for number in range(self.processes):
            setup = Setup(
                name=self.name,
                data=self._data,
                cache=self._cache,
                process=number,
                coordinator=coordinator,
                processes=self.processes,
            )
            process = self._context.Process(target=target, args=(setup, *args))
            process.start()
            started.append(process)
        return started

    def run_interrupted(
        self, directory: Path, log: Path, seed: int, interrupt: Interrupt
    ) -> Outcome:
        """Start or resume the training, interrupt it, and inspect what is left.

        The seed chooses the moment, in turn: any time, start-up included; during or
        just after one of the first saves; within half a second of learning that a save
        is complete; during or just after a save again.

        Args:
          directory: folder of the checkpoints.
          log: file to which all runs in this directory write.
          seed: seed of this run.
          interrupt: interrupts the processes.

        Returns:
          What the run showed.
        """
        rng = random.Random(seed)
        before = _lines(log)
        moment = _Moment(directory, log, len(before))
        processes = moment.processes = self.start(train, directory, log, seed, MOST)
        with _ended(processes):
            if seed % 4 == 0:
                moment.wait(rng.uniform(0.0, 2.0 * self._startup))
            else:
                self._startup = moment.wait_for(lambda: moment.said("started"))
                saves = rng.randint(1, _SAVES)
                moment.wait_for(lambda: moment.said("saving", saves))
                moment.wait_for(lambda: moment.is_saving)
                if seed % 4 == 2:
                    lasted = moment.wait_for(lambda: not moment.is_saving)
                    self._save = lasted if moment.all_alive else self._save
                    moment.wait_for(lambda: moment.said("saved", saves))
                    moment.wait(rng.uniform(0.0, 0.5))
                else:
                    moment.wait(rng.uniform(0.0, 1.2 * self._save))
            alive = moment.all_alive
            inside = alive and moment.is_saving
            if alive:
                interrupt(processes, rng)
        outcome = self.inspect(directory, log, len(before), over=not alive)
        return outcome._replace(inside=inside)

    def run_to_end(self, directory: Path, log: Path) -> Outcome:
        """Resume the training once more and do not interrupt it."""
        before = len(_lines(log))
        processes = self.start(train, directory, log, 0, 10 * trainings.STEPS)
        with _ended(processes):
            for process in processes:
                process.join(_PATIENCE)
        return self.inspect(directory, log, before, over=True)

    def inspect(self, directory: Path, log: Path, begun: int, over: bool) -> Outcome:
        """Inspect what a run left.

        Args:
          directory: folder of the checkpoints.
          log: log of all runs in it.
          begun: number of the run's first line in the log.
          over: whether the run stopped on its own.

        Returns:
          What the run showed; ``inside`` is False, as it cannot be seen afterwards.
        """
        lines = _lines(log)
        latest = max(_complete(directory), default=0)
        saved = {int(line[1]) for line in lines if line[0] == "saved"}
        ended = any(line[0] == "ended" for line in lines[begun:])
        return Outcome(
            inside=False,
            latest=latest,
            lost=sum(step > latest for step in saved),
            unreadable=sum(line[0] == "unreadable" for line in lines[begun:]),
            different=sum(
                self.digests[int(line[1])] != line[2]
                for line in lines[begun:]
                if len(line) == 3
            ),
            failed=over and not ended,
            ended=ended,
        )


def kill(processes: list[Any], rng: random.Random) -> None:
    """Send SIGKILL to all processes at once, or to one of them before the others."""
    if rng.random() < 0.5:
        rng.choice(processes).kill()
        if len(processes) > 1:
            time.sleep(rng.uniform(0.0, 0.3))
    for process in processes:
        process.kill()


class _Moment:
    """Watches a run from outside until the moment to interrupt it.

    Args:
      directory: folder of the checkpoints.
      log: log of all runs in it.
      begun: number of the run's first line in the log.

    Attributes:
      processes: the processes of the run.
    """

    def __init__(self, directory: Path, log: Path, begun: int):
        self._directory, self._log, self._begun = directory, log, begun
        self._left_before = self._temporary()
        self.processes: list[Any] = []

    def said(self, what: str, times: int = 1) -> bool:
        """Whether the run has written such a line to its log, so many times."""
        lines = _lines(self._log)[self._begun :]
        return sum(line[0] == what for line in lines) >= times

    @property
    def is_saving(self) -> bool:
        """Whether this run has a save under way, not one that an earlier run left."""
        return not self._temporary() <= self._left_before

    @property
    def all_alive(self) -> bool:
        """Whether no process has stopped."""
        return all(process.is_alive() for process in self.processes)

    def wait(self, seconds: float) -> None:
        """Wait until the time is up or a process has stopped."""
        self.wait_for(lambda: False, seconds)

    def wait_for(
        self, condition: Callable[[], bool], seconds: float = _PATIENCE
    ) -> float:
        """Wait until a condition holds, a process has stopped, or the time is up.

        Returns:
          How many seconds it took.
        """
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            if condition() or not self.all_alive:
                break
            time.sleep(0.001)
        return time.monotonic() - begun

    def _temporary(self) -> set[tuple[str, int]]:
        """Return the folders of unfinished saves, by name and time of last change."""
        found = set()
        for name in _names(self._directory):
            # Some are renamed while this looks at them.
            with contextlib.suppress(FileNotFoundError):
                if TEMPORARY in name:
                    changed = (self._directory / name).stat().st_ctime_ns
                    found.add((name, changed))
        return found


@contextlib.contextmanager
def _ended(processes: list[Any]) -> Iterator[None]:
    """Kill the processes at the end of the block."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _complete(directory: Path) -> list[int]:
    return [int(name) for name in _names(directory) if name.isdigit()]


def _lines(log: Path) -> list[list[str]]:
    """Return the complete lines of a log, split into words."""
    if not log.exists():
        return []
    *complete, _ = log.read_text().split("\n")
    return [line.split() for line in complete]

"""Starts processes, ends them in the midst of what they do, and reads what is left."""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from studies.reliability import trainings
from studies.reliability.worker import MOST, Place, live, uninterrupted

TEMPORARY = "orbax-checkpoint-tmp"
_PATIENCE = 900  # seconds until a process is taken for stuck
_SAVES = 4  # of a life before its end, at most, but for the last


class Found(NamedTuple):
    """What one life and its end have shown.

    Attributes:
      inside: whether it ended inside a save.
      latest: the last complete step afterwards.
      lost: steps that were reported as saved and are not there, nor a later one.
      unreadable: checkpoints that the life found and could not read.
      different: states that are not those of the uninterrupted run.
      failed: whether it ended by itself, and not well.
      ended: whether the training was over before.
    """

    inside: bool
    latest: int
    lost: int
    unreadable: int
    different: int
    failed: bool
    ended: bool


class Trials:
    """One training that is ended again and again, in a folder of its own."""

    def __init__(self, folder: Path, name: str, quick: bool):
        """Trains it once without an interruption, if that has not been done."""
        self.folder, self.name = folder, name
        self.processes = trainings.TRAININGS[name]
        self._context = multiprocessing.get_context("forkserver")
        # Imported once; nothing is computed there, so that each is as a new one.
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
        self._startup = 1.0

    def start(self, target: Callable[..., None], *args: Any) -> list[Any]:
        """Starts a function of a ``Place`` in as many processes as train it."""
        coordinator = None
        if self.processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                coordinator = f"localhost:{free.getsockname()[1]}"
        started = []
        for number in range(self.processes):
            place = Place(
                name=self.name,
                data=self._data,
                cache=self._cache,
                process=number,
                coordinator=coordinator,
                processes=self.processes,
            )
            process = self._context.Process(target=target, args=(place, *args))
            process.start()
            started.append(process)
        return started

    def life(
        self,
        directory: Path,
        log: Path,
        seed: int,
        end: Callable[[list[Any], random.Random], None],
    ) -> Found:
        """One life: begins, is ended at a moment that the seed decides, and is read.

        In turns: at any moment, start-up included; as soon as a save is under way, its
        first or a later one; at any moment after a checkpoint; inside a save again.

        Args:
          directory: of the checkpoints.
          log: of all lives in it.
          seed: of the life.
          end: ends the processes.

        Returns:
          What it has shown.
        """
        rng = random.Random(seed)
        before = _lines(log)
        processes = self.start(live, directory, log, seed, MOST)
        moment = _Moment(directory, log, len(before), processes)
        begun = time.monotonic()
        with _ended(processes):
            if seed % 4 == 0:
                moment.wait_for(None, rng.uniform(0.0, 2.0 * self._startup))
            else:
                moment.wait_for(lambda: moment.said("started"))
                self._startup = time.monotonic() - begun
                saves = rng.randint(1, _SAVES)
                moment.wait_for(lambda: moment.said("saving", saves))
                if seed % 4 == 2:
                    moment.wait_for(lambda: moment.said("saved", saves))
                    moment.wait_for(None, rng.uniform(0.0, 0.5))
                else:
                    moment.wait_for(lambda: moment.is_saving)
                    moment.wait_for(None, rng.uniform(0.0, 0.05))
            alive = all(process.is_alive() for process in processes)
            inside = moment.is_saving
            if alive:
                end(processes, rng)
        found = self.read(directory, log, len(before), over=not alive)
        return found._replace(inside=inside and alive)

    def finish(self, directory: Path, log: Path) -> Found:
        """The last life of a run, which nothing ends."""
        before = len(_lines(log))
        processes = self.start(live, directory, log, 0, 10 * trainings.STEPS)
        with _ended(processes):
            for process in processes:
                process.join(_PATIENCE)
        return self.read(directory, log, before, over=True)

    def read(self, directory: Path, log: Path, begun: int, over: bool) -> Found:
        """What a life has left, whose lines begin at a place of the log."""
        lines = _lines(log)
        latest = max(_complete(directory), default=0)
        saved = {int(line[1]) for line in lines if line[0] == "saved"}
        ended = any(line[0] == "ended" for line in lines[begun:])
        return Found(
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
    """SIGKILL for all of them, at once or for one of them before the others."""
    if rng.random() < 0.5:
        rng.choice(processes).kill()
        if len(processes) > 1:
            time.sleep(rng.uniform(0.0, 0.3))
    for process in processes:
        process.kill()


class _Moment:
    """What can be seen of a life while it lasts."""

    def __init__(self, directory: Path, log: Path, begun: int, processes: list[Any]):
        self._directory, self._log, self._begun = directory, log, begun
        self._processes = processes

    def said(self, what: str, times: int = 1) -> bool:
        lines = _lines(self._log)[self._begun :]
        return sum(line[0] == what for line in lines) >= times

    @property
    def is_saving(self) -> bool:
        return any(TEMPORARY in name for name in _names(self._directory))

    def wait_for(
        self, condition: Callable[[], bool] | None, seconds: float = _PATIENCE
    ) -> None:
        """Until a condition holds, a process has ended, or time is up."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if condition is not None and condition():
                return
            if not all(process.is_alive() for process in self._processes):
                return
            time.sleep(0.001)


@contextlib.contextmanager
def _ended(processes: list[Any]) -> Iterator[None]:
    """Lets no process outlive the block."""
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
    """The whole lines of a log, in words."""
    if not log.exists():
        return []
    *whole, _ = log.read_text().split("\n")
    return [line.split() for line in whole]

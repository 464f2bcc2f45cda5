"""Seeds that are trained at once: their steps, and what is told and kept of them."""

import contextlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import progress

from examples.cifar.config import Config
from examples.cifar.step import Run
from examples.cifar.trainer import Trainer
from examples.common.event_log import Log
from examples.common.run_folder import finished_runs


class Group:
    """Seeds that are trained at once, and what is told and kept of them.

    Attributes:
      step: how many steps they have taken.
    """

    def __init__(
        self, trainer: Trainer, config: Config, record: Any, seeds: Sequence[int]
    ):
        """Takes what they are trained by.

        Args:
          trainer: what is trained, and how.
          config: what was asked for.
          record: what decides the results, as ``config.json`` has it.
          seeds: the seeds.

        Raises:
          ValueError: if a folder of theirs holds another run.
        """
        self.trainer, self.config, self.record = trainer, config, record
        self.seeds = tuple(seeds)
        self.step = 0
        # Where along the first axis of all arrays the seeds are that have not ended.
        self._going = list(range(len(self.seeds)))
        self._logs = [
            Log(seed_folder(config.folder, seed), {**record, "seed": seed})
            for seed in self.seeds
        ]
        self._seconds: list[float] = []

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return all(self._has_ended(seed) for seed in self.seeds)

    @property
    def name(self) -> str:
        """What it is called on the screen and on disk."""
        first, last = self.seeds[0], self.seeds[-1]
        return f"seed_{first}" if first == last else f"seeds_{first}_to_{last}"

    def go(self, bar: progress.Progress, task: progress.TaskID, stop: Any) -> None:
        """Trains to the end, or until SIGTERM.

        Args:
          bar: where it shows how far it is.
          task: the task to advance there.
          stop: tells of SIGTERM.

        Raises:
          SystemExit: after SIGTERM; if there are checkpoints that do not fit.
        """
        # Takes seconds to import, when mistakes in the options have been reported.
        from sparseopt_jax.checkpoint import Checkpoints

        trainer = self.trainer
        with contextlib.ExitStack() as stack:
            folder = self.config.folder / "checkpoints" / self.name
            checkpoints = stack.enter_context(_opened(Checkpoints, folder, trainer))
            run = self._begin(checkpoints, bar)
            for log in self._logs:
                stack.enter_context(log)
                log.begin(self.step)
            self._going = [
                row for row, seed in enumerate(self.seeds) if not self._has_ended(seed)
            ]
            bar.update(task, advance=self.step)
            while self._going and self.step < trainer.total:
                started, before = time.perf_counter(), self.step
                run, self.step = trainer.advance(run, self.seeds, before)
                steps = self.step - before
                self._seconds.append((time.perf_counter() - started) / steps)
                bar.update(task, advance=steps)
                self._after(
                    run, checkpoints, bar, task, leaving=stop.reached(self.step)
                )
            checkpoints.wait()
            for row in tuple(self._going):
                self._end(row, diverged=False)
            bar.update(task, advance=trainer.total - self.step)

    def _begin(self, checkpoints: Any, bar: progress.Progress) -> Run:
        """What to go on from: the last checkpoint, or new weights."""
        run = self.trainer.start(self.seeds)
        try:
            restored = checkpoints.restore(run)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        if restored is None:
            return run
        run, data = restored
        if data["config"] != self.record:
            raise SystemExit(
                f"error: {self.config.folder / 'checkpoints' / self.name} is of a run "
                "with another configuration; delete it, or give another --output"
            )
        self.step = data["step"]
        bar.console.print(
            f"{self.name}: going on from step {self.step:,} of {self.trainer.total:,}."
        )
        return run

    def _after(
        self,
        run: Run,
        checkpoints: Any,
        bar: progress.Progress,
        task: progress.TaskID,
        *,
        leaving: bool,
    ) -> None:
        """What is due after some steps: logs, evaluations, checkpoints."""
        epoch, place = divmod(self.step, self.trainer.per_epoch)
        last = self.step == self.trainer.total
        if place == 0 or last:
            losses = self._tell_training(run)
            self._end_diverged(losses, bar)
            if self._going:
                loss = np.mean(losses[self._going])
                bar.update(task, description=f"{self.name}, {epoch}: loss {loss:.3f}")
        evaluates = last or (place == 0 and epoch % self.config.evaluate_every == 0)
        if self._going and evaluates:
            self._end_diverged(self._tell_evaluation(run), bar)
        if not self._going:
            return
        if last or leaving or (place == 0 and epoch % self.config.save_every == 0):
            data = {"step": self.step, "config": self.record}
            checkpoints.save(self.step, run, data=data)
        if leaving and not last:
            bar.console.print(
                f"Asked to stop: saved step {self.step:,} of {self.name}. The same "
                "command goes on from there."
            )
            raise SystemExit(128 + signal.SIGTERM)

    def _has_ended(self, seed: int) -> bool:
        """Whether the log says so."""
        return bool(finished_runs(seed_folder(self.config.folder, seed)))

    def _end(self, row: int, *, diverged: bool) -> None:
        """Says in the log of a seed that nothing is left to do for it."""
        numbers = {"diverged": diverged, "ms_per_step": self._ms_per_step()}
        self._logs[row].write("run", self.step, numbers)
        self._going.remove(row)

    def _end_diverged(self, losses: np.ndarray, bar: progress.Progress) -> None:
        """Ends the seeds whose loss is no longer finite; the others go on."""
        for row in tuple(self._going):
            if not np.isfinite(losses[row]):
                self._end(row, diverged=True)
                bar.console.print(
                    f"Seed {self.seeds[row]} has diverged and is left out: its loss is "
                    f"{losses[row]} at step {self.step:,}."
                )

    def _tell_training(self, run: Run) -> np.ndarray:
        """Logs the epoch so far; returns the loss of each seed."""
        trainer, step = self.trainer, self.step
        steps = (step - 1) % trainer.per_epoch + 1
        sums = jax.device_get(run.sums)
        losses = sums.loss / steps
        for row in self._going:
            numbers = {
                "epoch": step / trainer.per_epoch,
                "loss": float(losses[row]),
                "accuracy": float(sums.accuracy[row] / steps),
                "learning_rate": np.asarray(trainer.schedule(step - 1)).item(),
                "ms_per_step": self._ms_per_step(),
            }
            self._logs[row].write("train", step, numbers)
        return losses

    def _tell_evaluation(self, run: Run) -> np.ndarray:
        """Evaluates, and logs it; returns the loss of each seed."""
        numbers = self.trainer.evaluate(run.state)
        sparse = self.trainer.sparsity(run.state)
        for row in self._going:
            values = {name: float(x[row]) for name, x in {**numbers, **sparse}.items()}
            details = {name: x for name, x in values.items() if "/" in name}
            values = {name: x for name, x in values.items() if "/" not in name}
            values["epoch"] = self.step / self.trainer.per_epoch
            self._logs[row].write("evaluation", self.step, values, details)
        return numbers["loss"]

    def _ms_per_step(self) -> float | None:
        """The median: of all seeds of the group together, compiling left out."""
        return 1e3 * float(np.median(self._seconds)) if self._seconds else None


def seed_folder(output: Path, seed: int) -> Path:
    """Where the log of a seed is."""
    return output / f"seed_{seed}"


def _opened(checkpoints: Any, folder: Path, trainer: Trainer) -> Any:
    try:
        return checkpoints(folder, topology=trainer.topology)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None

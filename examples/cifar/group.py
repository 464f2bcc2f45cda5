"""Seeds that are trained together: their steps, logs and checkpoints."""

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
    """Train several seeds at once, with their logs and checkpoints.

    Attributes:
      step: number of steps taken.
    """

    def __init__(
        self, trainer: Trainer, config: Config, record: Any, seeds: Sequence[int]
    ):
        """Open the logs of the seeds.

        Args:
          trainer: the compiled training.
          config: the options.
          record: everything that decides the results, as in ``config.json``.
          seeds: the seeds.

        Raises:
          ValueError: if the folder of a seed holds another run.
        """
        self.trainer, self.config, self.record = trainer, config, record
        self.seeds = tuple(seeds)
        self.step = 0
        # Indices of unfinished seeds along the first axis of all arrays.
        self._going = list(range(len(self.seeds)))
        self._logs = [
            Log(seed_folder(config.folder, seed), {**record, "seed": seed})
            for seed in self.seeds
        ]
        self._seconds: list[float] = []

    @property
    def is_finished(self) -> bool:
        """Tell whether all seeds have finished."""
        return all(self._has_ended(seed) for seed in self.seeds)

    @property
    def name(self) -> str:
        """Return the group's name on the screen and on disk."""
        first, last = self.seeds[0], self.seeds[-1]
        return f"seed_{first}" if first == last else f"seeds_{first}_to_{last}"

    def go(self, bar: progress.Progress, task: progress.TaskID, stop: Any) -> None:
        """Train to the end, or until SIGTERM.

        Args:
          bar: the progress bar.
          task: the task to advance in it.
          stop: tells whether SIGTERM has arrived.

        Raises:
          SystemExit: after SIGTERM; if there are checkpoints that do not match.
        """
        # Imported late: it takes seconds, and mistakes in the options are reported
        # first.
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
        """Return the last checkpoint, or new weights."""
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
                f"error: {self.config.folder / 'checkpoints' / self.name} belongs to a "
                "run with another configuration; delete it, or pass another --output"
            )
        self.step = data["step"]
        bar.console.print(
            f"{self.name}: resuming from step {self.step:,} of {self.trainer.total:,}."
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
        """Write logs, evaluations and checkpoints that are due."""
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
                f"Received SIGTERM: saved step {self.step:,} of {self.name}. Run the "
                "same command again to resume."
            )
            raise SystemExit(128 + signal.SIGTERM)

    def _has_ended(self, seed: int) -> bool:
        """Tell whether the log records the seed's end."""
        return bool(finished_runs(seed_folder(self.config.folder, seed)))

    def _end(self, row: int, *, diverged: bool) -> None:
        """Record in a seed's log that it has finished."""
        numbers = {"diverged": diverged, "ms_per_step": self._ms_per_step()}
        self._logs[row].write("run", self.step, numbers)
        self._going.remove(row)

    def _end_diverged(self, losses: np.ndarray, bar: progress.Progress) -> None:
        """End the seeds whose loss is non-finite; the others continue."""
        for row in tuple(self._going):
            if not np.isfinite(losses[row]):
                self._end(row, diverged=True)
                bar.console.print(
                    f"Seed {self.seeds[row]} has diverged and is left out: its loss is "
                    f"{losses[row]} at step {self.step:,}."
                )

    def _tell_training(self, run: Run) -> np.ndarray:
        """Log the epoch so far; return the loss of each seed."""
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
        """Evaluate and log the result; return the loss of each seed."""
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
        """Return the median for all seeds of the group together, without compiling."""
        return 1e3 * float(np.median(self._seconds)) if self._seconds else None


def seed_folder(output: Path, seed: int) -> Path:
    """Return the folder of a seed's log."""
    return output / f"seed_{seed}"


def _opened(checkpoints: Any, folder: Path, trainer: Trainer) -> Any:
    try:
        return checkpoints(folder, topology=trainer.topology)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None

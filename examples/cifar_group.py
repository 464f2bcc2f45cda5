"""Seeds that are trained at once: their steps, and what is told and kept of them."""

import contextlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cifar_config import Config
from cifar_step import Run
from cifar_trainer import Trainer
from common.event_log import Log
from common.run_folder import read_log
from rich import progress


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
        self._logs = [
            Log(seed_folder(config.output, seed), {**record, "seed": seed})
            for seed in self.seeds
        ]
        self._seconds: list[float] = []

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        logs = (read_log(seed_folder(self.config.output, seed)) for seed in self.seeds)
        return all(any(row.get("event") == "run" for row in rows) for rows in logs)

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
          SystemExit: after SIGTERM; if there are checkpoints that do not fit; if no
            loss is a number any more.
        """
        # Takes seconds to import, when mistakes in the options have been reported.
        from sparseopt_jax.checkpoint import Checkpoints

        trainer = self.trainer
        with contextlib.ExitStack() as stack:
            folder = self.config.output / "checkpoints" / self.name
            checkpoints = stack.enter_context(_opened(Checkpoints, folder, trainer))
            run = self._begin(checkpoints, bar)
            for log in self._logs:
                stack.enter_context(log)
                log.begin(self.step)
            bar.update(task, advance=self.step)
            while self.step < trainer.total:
                started, before = time.perf_counter(), self.step
                run, self.step = trainer.advance(run, self.seeds, before)
                steps = self.step - before
                self._seconds.append((time.perf_counter() - started) / steps)
                bar.update(task, advance=steps)
                self._after(
                    run, checkpoints, bar, task, leaving=stop.reached(self.step)
                )
            checkpoints.wait()
            for log in self._logs:
                log.write("run", self.step, {"ms_per_step": self._ms_per_step()})

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
                f"error: {self.config.output / 'checkpoints' / self.name} is of a run "
                "with another configuration; give another --output"
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
            loss = self._tell_training(run)
            bar.update(task, description=f"{self.name}, {epoch}: loss {loss:.3f}")
        if last or (place == 0 and epoch % self.config.evaluate_every == 0):
            self._tell_evaluation(run)
        if last or leaving or (place == 0 and epoch % self.config.save_every == 0):
            data = {"step": self.step, "config": self.record}
            checkpoints.save(self.step, run, data=data)
        if leaving and not last:
            bar.console.print(
                f"Asked to stop: saved step {self.step:,} of {self.name}. The same "
                "command goes on from there."
            )
            raise SystemExit(128 + signal.SIGTERM)

    def _tell_training(self, run: Run) -> float:
        """Logs the epoch so far; returns the mean loss over the seeds."""
        trainer, step = self.trainer, self.step
        steps = (step - 1) % trainer.per_epoch + 1
        sums = jax.device_get(run.sums)
        losses = sums.loss / steps
        for row, log in enumerate(self._logs):
            numbers = {
                "epoch": step / trainer.per_epoch,
                "loss": float(losses[row]),
                "accuracy": float(sums.accuracy[row] / steps),
                "learning_rate": np.asarray(trainer.schedule(step - 1)).item(),
                "ms_per_step": self._ms_per_step(),
            }
            log.write("train", step, numbers)
        if not np.isfinite(losses).any():
            raise SystemExit(
                f"error: the loss is {losses[0]} at step {step}; what was saved before "
                "is kept. A lower --learning-rate may help"
            )
        return float(np.nanmean(losses))

    def _tell_evaluation(self, run: Run) -> None:
        numbers = self.trainer.evaluate(run.state)
        sparse = self.trainer.sparsity(run.state)
        for row, log in enumerate(self._logs):
            own = {name: float(x[row]) for name, x in {**numbers, **sparse}.items()}
            details = {name: x for name, x in own.items() if "/" in name}
            own = {name: x for name, x in own.items() if "/" not in name}
            own["epoch"] = self.step / self.trainer.per_epoch
            log.write("evaluation", self.step, own, details)

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

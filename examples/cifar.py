"""Trains a ResNet-20 or a WRN-22-2 on CIFAR, dense or sparse, with several seeds.

    python examples/cifar.py --recipe rigl_cifar100_r20 --seeds 5
    python examples/cifar.py --recipe sparseopt_cifar100_r20 --sparsity 0.95
    python examples/cifar.py --recipe rigl_erk_wrn22_2 --dtype bfloat16
    python examples/cifar.py --dataset glyphs16 --width 8 --epochs 10

A recipe says how the network is trained and why so: ``cifar_recipes.py`` has them, with
their sources; every option that a recipe has can be given another value. CIFAR is
downloaded by tensorflow-datasets. ``--dataset glyphs`` needs no download: its images
are synthetic, and numbers on them say nothing about CIFAR.

All images stay on the device, where they are cropped and mirrored. On accelerators all
steps from one change of the topology to the next run in one compiled loop, and all
seeds in one program; on CPU, where convolutions in loops are slow, step by step and one
seed after another. ``--loop`` and ``--together`` choose otherwise.

The folder ``--output`` receives ``config.json``, ``results.json`` and ``figure.png``,
for each seed a folder with ``log.jsonl`` and ``events`` for TensorBoard, and
``checkpoints``. Started again with the same options, a run goes on where its last
checkpoint was taken, to the last bit as if it had never stopped, where the device
computes the same twice (on GPUs: XLA_FLAGS=--xla_gpu_deterministic_ops=true); SIGTERM
makes it take one and leave.

Sparsity is theoretical: zeros are simulated by masks on dense arrays, so that no method
is faster than the dense one here.
"""

import contextlib
import platform
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax
import tyro
from cifar_config import Config
from cifar_trainer import Run, Trainer
from common.cifar_data import SYNTHETIC, Dataset, load
from common.event_log import Log
from common.progress_bar import progress_bar
from common.run_folder import FILES, RunFolder, read_log
from rich import progress
from rich.console import Console

import sparseopt_jax as so

NOTE = (
    "Sparsity is theoretical: zeros are simulated by masks on dense arrays, which save "
    "neither time nor memory."
)


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
        return all(any(row["event"] == "run" for row in rows) for rows in logs)

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


def main(args: Sequence[str] | None = None) -> None:
    """The program; ``args`` are those of the command line, if not given."""
    config = tyro.cli(Config, args=args)
    console = Console()
    try:
        dataset, trainer, folder, groups = prepare(config)
        console.print(describe(trainer, dataset))
        to_do = [group for group in groups if not group.is_finished]
        if len(to_do) < len(groups):
            console.print(f"{len(groups) - len(to_do)} of {len(groups)} are finished.")
        train(to_do, trainer.total, console)
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from the last checkpoint.")
        raise SystemExit(130) from None
    report(config, trainer, dataset, folder, console)


def prepare(config: Config) -> tuple[Dataset, Trainer, RunFolder, list[Group]]:
    """What there is to do, where it can be done; a mistake ends the program here."""
    record, at_once = config.record(), config.at_once
    try:
        dataset = load(
            config.chosen.dataset,
            config.data_dir,
            train=config.train_images,
            test=config.test_images,
        )
        trainer = Trainer(config, dataset, together=at_once, loop=config.loop)
        folder = open_folder(config, record)
        groups = [
            Group(trainer, config, record, range(first, first + at_once))
            for first in range(0, config.seeds, at_once)
        ]
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    return dataset, trainer, folder, groups


def train(groups: Sequence[Group], steps: int, console: Console) -> None:
    """Trains one group after another, each for so many steps."""
    # Takes seconds to import, when mistakes in the options have been reported.
    from sparseopt_jax.checkpoint import stop_on_sigterm

    stop = stop_on_sigterm()  # one for all: none is deaf between two groups
    with progress_bar(console) as bar:
        task = bar.add_task("compiling", total=len(groups) * steps)
        for group in groups:
            group.go(bar, task, stop)


def open_folder(config: Config, record: Any) -> RunFolder:
    """The folder of the run, and no other run in it.

    The same run, stopped and started again, is never removed.

    Raises:
      ValueError: if it holds another run, unless that is to be replaced.
    """
    output = config.output
    try:
        return RunFolder(output, record)
    except ValueError:
        if not config.overwrite or not output.is_dir():
            raise
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    for folder in output.glob("seed_*"):
        shutil.rmtree(folder / "events", ignore_errors=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of somebody else's is in it
            folder.rmdir()
    return RunFolder(output, record, overwrite=True)


def seed_folder(output: Path, seed: int) -> Path:
    """Where the log of a seed is."""
    return output / f"seed_{seed}"


def describe(trainer: Trainer, dataset: Dataset) -> str:
    """What is about to be trained, in words."""
    recipe = trainer.recipe
    lines = [
        f"{recipe.network} of width {recipe.width}, {recipe.method}, on "
        f"{dataset.name}: {trainer.weights:,} parameters, {trainer.total:,} steps of "
        f"{recipe.batch_size} images, {recipe.epochs:g} epochs."
    ]
    if trainer.plan:
        lines.append(
            f"{trainer.plan.active:,} of {trainer.plan.size:,} weights are active in "
            f"sparse layers. {NOTE}"
        )
    return "\n".join([*lines, *[SYNTHETIC] * dataset.is_synthetic])


def report(
    config: Config,
    trainer: Trainer,
    dataset: Dataset,
    folder: RunFolder,
    console: Console,
) -> None:
    """Writes and tells what all seeds ended with."""
    # Takes a second to import, and nothing before needs it.
    import cifar_report

    logs = [read_log(seed_folder(config.output, seed)) for seed in range(config.seeds)]
    results = cifar_report.summarize(logs)
    note = " ".join([NOTE, *[SYNTHETIC] * dataset.is_synthetic])
    plan = trainer.plan
    folder.write_json(
        "results.json",
        {
            "note": note,
            "recipe": config.recipe,
            "parameters": trainer.weights,
            "sparse_weights": plan.size if plan else None,
            "active_weights": plan.active if plan else None,
            "versions": versions(),
            **results,
        },
    )
    recipe = trainer.recipe
    parts = [dataset.name + " (synthetic)" * dataset.is_synthetic, recipe.network]
    parts += [recipe.method, f"correction: {recipe.correction}"]
    if plan:
        parts.append(f"sparsity {1 - plan.active / plan.size:.3g}")
    told = cifar_report.told(results)
    with folder.writing("figure.png") as path:
        cifar_report.draw(results, f"{', '.join(parts)}. {told}", path)
    console.print(f"{told}. {note}")
    console.print(f"Written to {folder.path}: results.json, figure.png.")


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    modules = {"jax": jax, "flax": flax, "optax": optax, "sparseopt_jax": so}
    return {
        **{name: module.__version__ for name, module in modules.items()},
        "python": platform.python_version(),
        "backend": jax.default_backend(),
    }


def _opened(checkpoints: Any, folder: Path, trainer: Trainer) -> Any:
    try:
        return checkpoints(folder, topology=trainer.topology)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

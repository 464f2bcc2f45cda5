"""Train a ResNet-50 on ImageNet, dense or sparse, on one device or a whole pod.

    python -m examples.imagenet --recipe rigl_erk --data-dir ~/data
    python -m examples.imagenet --recipe sparseopt_90 --sparsity 0.95 --mesh fsdp=2
    srun python -m examples.imagenet --distributed --output /shared/run

A recipe says how the network is trained, and why: ``recipes.py`` lists them with their
sources. The other options override a recipe, or say where and how it runs. Started
again with the same options, an interrupted run resumes from its last checkpoint, even
on other devices. SIGTERM makes it save a checkpoint and exit.

The folder ``--output`` receives ``config.json``, ``log.jsonl``, ``events`` for
TensorBoard, ``checkpoints``, and from every process ``fingerprints.<process>.jsonl``.

Several processes must share this folder. ``docs/scaling.md`` shows how to start them.

Sparsity is theoretical: zeros are simulated by masks on dense arrays, so no method is
faster than the dense one here.
"""

import contextlib
import json
import math
import signal
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tyro
from rich import progress
from rich.console import Console

import sparseopt_jax as so
from examples.common.event_log import Log
from examples.common.progress_bar import progress_bar
from examples.imagenet.config import Config
from examples.imagenet.data import class_count, open_split
from examples.imagenet.mesh import digest, same_everywhere, together
from examples.imagenet.recipes import learning_rate
from examples.imagenet.trainer import Trainer


class Run:
    """A run in progress: its steps, logs and checkpoints.

    Attributes:
      step: optimizer steps so far.
    """

    def __init__(self, trainer: Trainer, sources: Sequence[Any], log: Log | None):
        """Take the parts of a run.

        Args:
          trainer: the compiled training.
          sources: the training images and the evaluation images.
          log: the log; None in all processes but the first.
        """
        self.trainer, self.config, self.log = trainer, trainer.config, log
        self.images, self.validation = sources
        self.step = 0
        self._schedule = learning_rate(trainer.recipe, trainer.per_epoch)
        self._metrics: list[dict[str, jax.Array]] = []
        self._timed_from = (0.0, 0)

    def go(self, bar: progress.Progress) -> None:
        """Train to the end, or until SIGTERM.

        Args:
          bar: the progress bar.

        Raises:
          SystemExit: after SIGTERM; if the folder holds checkpoints that do not match;
            if the loss becomes non-finite.
        """
        # Imported late: it takes seconds, and mistakes in the options are reported
        # first.
        from sparseopt_jax.checkpoint import Checkpoints, stop_on_sigterm

        trainer, config = self.trainer, self.config
        task = bar.add_task("starting", total=trainer.total)
        stop = stop_on_sigterm()
        with contextlib.ExitStack() as stack:
            checkpoints = stack.enter_context(
                Checkpoints(config.folder / "checkpoints", topology=trainer.topology)
            )
            state = self._begin(checkpoints, bar)
            if self.log:
                self.log.begin(self.step)
            bar.update(task, completed=self.step, description="compiling")
            self._timed_from = (time.perf_counter(), self.step)
            batches = stack.enter_context(
                contextlib.closing(trainer.batches(self.images, self.step))
            )
            while self.step < trainer.total:
                for _ in range(config.accumulate):
                    state, metrics = trainer.step(state, next(batches))
                    self._metrics.append(metrics)
                    self._keep_up()
                self.step += 1
                leaving = stop.reached(self.step)
                last = self.step == trainer.total
                saves = leaving or last or self.step % config.save_every == 0
                if saves or self.step % config.log_every == 0:
                    bar.update(task, description=self._tell_training())
                bar.update(task, completed=self.step)
                ends = self.step % (config.evaluate_every * trainer.per_epoch) == 0
                # After SIGTERM there may be no time for an evaluation.
                if last or (ends and not leaving):
                    bar.console.print(self._tell_evaluation(state))
                if saves:
                    self._save(checkpoints, state)
                if leaving:
                    bar.console.print(
                        f"Received SIGTERM: saved step {self.step:,}. Run the same "
                        "command again to resume."
                    )
                    raise SystemExit(128 + signal.SIGTERM)

    def _begin(self, checkpoints: Any, bar: progress.Progress) -> so.linen.TrainState:
        """Return the state of the last checkpoint, or a new one."""
        state = self.trainer.init()
        try:
            restored = checkpoints.restore(state)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        if restored:
            state, position = restored
            self.step = self.trainer.per_epoch * position["epoch"] + position["batch"]
            bar.console.print(
                f"Resuming from step {self.step:,} of {self.trainer.total:,}."
            )
        return state

    def _keep_up(self) -> None:
        """Wait for the device, or the host would queue steps and batches without limit.

        On CPU, the collective operations of several queued steps can wait for each
        other's threads, so no step may be queued there.
        """
        behind = 1 if jax.default_backend() == "cpu" else 3
        if len(self._metrics) >= behind:
            jax.block_until_ready(self._metrics[-behind])

    def _tell_training(self) -> str:
        """Log the steps since the last call, and return a short summary."""
        trainer, step = self.trainer, self.step
        metrics = jax.device_get(self._metrics)
        means = {
            name: float(np.mean([row[name] for row in metrics])) for name in metrics[0]
        }
        self._metrics = []
        if not math.isfinite(means["loss"]):
            raise SystemExit(
                f"error: the loss is {means['loss']} at step {step}; earlier "
                "checkpoints are kept. Try a lower --learning-rate"
            )
        since, first = self._timed_from
        images = (step - first) * trainer.recipe.batch_size
        numbers = {
            **means,
            "epoch": step / trainer.per_epoch,
            "learning_rate": np.asarray(self._schedule(step - 1)).item(),
            "images_per_second": images / (time.perf_counter() - since),
        }
        if self.log:
            self.log.write("train", step, numbers)
        self._timed_from = (time.perf_counter(), step)
        return f"loss {means['loss']:.3f}, {numbers['images_per_second']:,.0f} images/s"

    def _tell_evaluation(self, state: so.linen.TrainState) -> str:
        """Evaluate, log the result, and return a short summary."""
        numbers = self.trainer.evaluate(state, self.validation)
        details = {}
        if self.trainer.topology:
            sparse = self.trainer.sparsity(state.params, state.opt_state)
            details = {name: float(value) for name, value in sparse.items()}
            names = [name for name in details if "/" not in name]
            numbers |= {name: details.pop(name) for name in names}
        numbers["epoch"] = self.step / self.trainer.per_epoch
        if self.log:
            self.log.write("evaluation", self.step, numbers, details)
        self._timed_from = (time.perf_counter(), self.step)
        return (
            f"epoch {numbers['epoch']:.1f}: accuracy {numbers['accuracy']:.2%}, loss "
            f"{numbers['loss']:.3f} on {numbers['images']:,} images"
        )

    def _save(self, checkpoints: Any, state: so.linen.TrainState) -> None:
        """Save a checkpoint, after checking that all processes hold the same values."""
        epoch, batch = divmod(self.step, self.trainer.per_epoch)
        prints = {"params": digest(state.params, self.trainer.mesh)}
        if self.trainer.topology:
            prints["masks"] = digest(so.get_masks(state), self.trainer.mesh)
        fingerprints = self.config.folder / f"fingerprints.{jax.process_index()}.jsonl"
        with fingerprints.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **prints}) + "\n")
        for what, print_ in prints.items():
            if not same_everywhere(print_):
                raise SystemExit(
                    f"error: at step {self.step} the processes hold different {what}; "
                    f"{self.config.folder}/fingerprints.*.jsonl show since when"
                )
        checkpoints.save(self.step, state, data={"epoch": epoch, "batch": batch})
        self._timed_from = (time.perf_counter(), self.step)


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with ``args``, or with the arguments of the command line."""
    config = tyro.cli(Config, prog="python -m examples.imagenet", args=args)
    config.group.start()
    console = Console(quiet=jax.process_index() > 0)
    try:
        run = together(lambda: prepare(config))
        console.print(describe(run.trainer))
        with run.log or contextlib.nullcontext(), progress_bar(console) as bar:
            run.go(bar)
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command again to resume.")
        raise SystemExit(130) from None
    console.print(f"Finished. {config.folder / 'log.jsonl'} has the results.")


def prepare(config: Config) -> Run:
    """Open the data and prepare the run.

    Raises:
      ValueError: if the options, the data or the folder do not fit.
    """
    sources = [
        open_split(config.dataset, config.data_dir, split)
        for split in ("train", "validation")
    ]
    trainer = Trainer(config, len(sources[0]), class_count(sources[0]))
    log = None
    if jax.process_index() == 0:
        log = Log(config.folder, config.record(), config.overwrite)
    return Run(trainer, sources, log)


def describe(trainer: Trainer) -> str:
    """Describe in words what is about to be trained."""
    recipe, shape = trainer.recipe, trainer.mesh.shape
    lines = [
        f"{recipe.method}: {trainer.weights:,} parameters",
        f"{trainer.total:,} steps of {recipe.batch_size:,} images, {recipe.epochs:g} "
        f"epochs, on {trainer.mesh.size} devices (data={shape['data']}, "
        f"fsdp={shape['fsdp']}), processes: {jax.process_count()}.",
    ]
    if trainer.plan:
        lines[0] += (
            f", {trainer.plan.active:,} of {trainer.plan.size:,} weights active in "
            f"sparse layers. Zeros are simulated by masks on dense arrays"
        )
    return ".\n".join(lines)


if __name__ == "__main__":
    main()

"""Part c: ResNet-20 with RigL at 95 and 97 % zeros, all corrections, 5 seeds.

Runs of the same sparsity are one program: each has the weights, masks and images of its
seed, and corrects by fan-ins, by batch variances or not at all. The data are
Fashion-MNIST if its files exist, else glyphs, which are synthetic. A few steps are
timed first, and the number of steps is chosen to fit the time; learning rate and drop
fraction follow a cosine over all of them. Nothing is tuned. Batches are drawn with
replacement, and epochs are counted by their images.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sparseopt_jax as so
from benchmarks.gpu.arms import Arm, build
from benchmarks.gpu.part import Budget, Report
from benchmarks.gpu.seed_program import (
    CORRECTIONS,
    EVALUATED,
    UPDATED,
    Program,
    Run,
)
from examples.cifar.data import FASHION_MNIST, Dataset, load
from examples.common import fashion_mnist
from reporting.statistics import difference

SPARSITIES, MOST_EPOCHS = (0.95, 0.97), 100
SHARES = (1 / 9, 1 / 3, 2 / 3, 1.0)  # fractions of the training, for evaluation


class Compiled:
    """The programs of all runs of one sparsity."""

    def __init__(self, program: Program, dataset: Dataset, seeds: int):
        """Map them over the runs; compile nothing yet."""
        count = len(CORRECTIONS)
        self.seeds = jnp.tile(jnp.arange(seeds), count)
        self.corrections = jnp.repeat(jnp.arange(count, dtype=jnp.int32), seeds)
        self.train = jax.device_put((dataset.train_images, dataset.train_labels))
        self.test = jax.device_put((dataset.test_images, dataset.test_labels))
        self.program = program
        self.arms: dict[str, Arm] = {}

    def makers(self) -> list[tuple[str, Any]]:
        """Return functions that build each program, with names for error messages."""
        number = jax.ShapeDtypeStruct((), jnp.int32)
        program, train = self.program, self.train
        begin = jax.vmap(program.begin)
        runs = jax.eval_shape(begin, self.seeds, self.corrections)

        def mapped(function: Any, shared: int) -> Any:
            return jax.vmap(function, in_axes=(0, *[None] * shared))

        def numbers(run: Run) -> Any:
            return so.metrics(run.state.params, run.state.opt_state)

        right = mapped(program.right, 1)
        many = mapped(program.many, 3), runs, (train, number, number)
        steps = {
            "many": (*many, True),
            "update": (mapped(program.update, 2), runs, (train, number), True),
            "begin": (begin, self.seeds, (self.corrections,), False),
            "right": (right, runs, (self.test,), False),
            "numbers": (mapped(numbers, 0), runs, (), False),
        }
        about = {"sparsity": program.sparsity}
        return [
            (
                f"{name}, {program.sparsity:.0%} zeros",
                functools.partial(Arm, name, *built, about=about),
            )
            for name, built in steps.items()
        ]

    def begin(self) -> Run:
        """Return all runs before their first step."""
        return self.arms["begin"].program(self.seeds, self.corrections)

    def step_seconds(self, steps: int) -> float:
        """Return the seconds of a step of all runs, timed over ``steps`` steps."""
        program, total = self.arms["many"].program, np.int32(10 * steps)
        runs = program(self.begin(), self.train, np.int32(steps), total)
        jax.block_until_ready(runs)
        begin = time.perf_counter()
        jax.block_until_ready(program(runs, self.train, np.int32(steps), total))
        return (time.perf_counter() - begin) / steps

    def trained(self, total: int, every: int) -> tuple[Run, list[np.ndarray]]:
        """Return the runs after all their steps, and their accuracies on the way."""
        runs, step, accuracies = self.begin(), 0, []
        evaluated = [max(1, round(share * total)) for share in SHARES]
        updates = range(every, int(UPDATED * total), every)
        for until in sorted({*evaluated, *updates}):
            runs = self.arms["many"].program(
                runs, self.train, np.int32(until - step), np.int32(total)
            )
            step = until
            if step in updates:
                runs = self.arms["update"].program(runs, self.train, np.int32(total))
            if step in evaluated:
                right = self.arms["right"].program(runs, self.test)
                images = len(self.test[1])
                images -= images % min(EVALUATED, images)
                accuracies.append(np.asarray(right) / images)
        return runs, accuracies


def measure(report: Report, budget: Budget) -> None:
    """Measure the part."""
    quick = report.options.quick
    dataset = _dataset(report)
    shape = {"width": 4, "blocks": 1} if quick else {"width": 16, "blocks": 3}
    batch, seeds, timed, every = (4, 2, 1, 2) if quick else (128, 5, 20, 100)
    sparsities = SPARSITIES[:1] if quick else SPARSITIES
    programs = {
        sparsity: Compiled(
            Program(dataset, sparsity, batch=batch, **shape), dataset, seeds
        )
        for sparsity in sparsities
    }
    makers = [maker for compiled in programs.values() for maker in compiled.makers()]
    arms = build(report, makers, Budget(0.6 * budget.left))
    for arm in arms:
        programs[arm.about["sparsity"]].arms[arm.name] = arm
    programs = {
        s: c
        for s, c in programs.items()
        if len(c.arms) == len(makers) // len(sparsities)
    }
    if not programs:
        return
    seconds = sum(compiled.step_seconds(timed) for compiled in programs.values())
    images = len(dataset.train_labels)
    steps = min(0.85 * budget.left / seconds, MOST_EPOCHS * images / batch)
    total = 6 if quick else int(steps)
    report.record["step_ms"] = 1e3 * seconds / len(programs)
    if total < 2 * every:
        report.error("training", f"there was time for {total} steps only")
        return
    for sparsity, compiled in programs.items():
        runs, accuracies = compiled.trained(total, every)
        numbers = jax.device_get(compiled.arms["numbers"].program(runs))
        key = {
            "dataset": dataset.name,
            "sparsity": sparsity,
            "steps": total,
            "epochs": total * batch / images,
            "seeds": seeds,
        }
        title = (
            f"ResNet-20 on {dataset.name}, RigL at {sparsity:.0%} zeros, {total:,} "
            f"steps of {batch} images, {key['epochs']:.1f} epochs, {seeds} seeds"
        )
        rows = summarize(accuracies, numbers["dead_fraction"], seeds)
        report.listing(title, rows, kind="accuracy", **key)


def summarize(
    accuracies: Sequence[np.ndarray], dead: np.ndarray, seeds: int
) -> list[dict[str, Any]]:
    """Return a row for each correction.

    Args:
      accuracies: at each of ``SHARES``, (runs,), by correction and then by seed.
      dead: fraction of neurons without inputs, (runs,).
      seeds: number of seeds.
    """
    by_arm = np.stack(accuracies).reshape(len(accuracies), len(CORRECTIONS), seeds)
    rows = []
    for arm, name in enumerate(CORRECTIONS):
        last = by_arm[-1, arm]
        row = {
            "correction": name,
            "accuracy": float(last.mean()),
            "sd": float(last.std(ddof=1)),
            "early": by_arm[:-1, arm].mean(axis=-1).tolist(),
            "dead": float(dead.reshape(-1, seeds)[arm].mean()),
            "gain": difference(last, by_arm[-1, 0]) if arm else None,
        }
        rows.append(row)
    return rows


def _dataset(report: Report) -> Dataset:
    """Load Fashion-MNIST if it exists, else glyphs; if quick, a few images of noise."""
    options: Any = report.options
    files = fashion_mnist.find(options.data_dir)
    counts = {"train": 32, "test": 20} if options.quick else {}
    if files is not None:
        return load(FASHION_MNIST, files, **counts)
    if options.quick:
        draw = np.random.default_rng(0)
        images = draw.integers(256, size=(32, 8, 8, 3), dtype=np.uint8)
        labels = draw.integers(10, size=32, dtype=np.int32)
        return Dataset("noise", images, labels, images[:20], labels[:20], 10)
    return load("glyphs", options.cache)

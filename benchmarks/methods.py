"""Every method in the structures it can have: what it learns, and what it costs.

    python benchmarks/methods.py

First a small ResNet and a small transformer are trained on scanned digits by every
method: test accuracy, density, and the times of a step and of a change of the masks.
Then a training step by straight-through estimators, whose masks follow every step,
against the dense one. Last one change of the masks of ten million weights, against the
same change made by sorting; both must give the same masks.

The sparsity is 0.9; N of M fixes its own, blocks have 0.8 and channels 0.5. Where a
structure does not fit the first or the last layer, that is unstructured at the same
sparsity. All methods share the optimizer, the learning rate and the steps at which
masks change; no setting was tuned for one of them.
"""

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from method_arms import ANY, ARMS, TWO_OF_FOUR, Arm, When
from method_changes import begin, change, change_by_sorting, masks_of
from method_models import Task, Trainer, load_digits, tasks

SEEDS, EPOCHS, STEPS = 2, 20, 10
KERNEL = (3200, 3136)
LIBRARY, SORTING = "topology.update", "argsort"
SLOWER_BY_SORTING = 10.0
STRAIGHT_THROUGH = 1.20
BASELINE = "dense"
STE = (f"STE, {ANY}", f"STE, {TWO_OF_FOUR}")
STATIC = (f"static, {ANY}", f"static, {TWO_OF_FOUR}")
CHANGE = f"RigL, {ANY}"
# One of each kind, to see that they run.
QUICK = (BASELINE, *STATIC, CHANGE, *STE, "STR")


def train(
    report: harness.Report, task: Task, data: Any, labels: Sequence[str]
) -> dict[str, Trainer]:
    """Trains one network by all methods, and times their steps and changes.

    Returns:
      What they were trained by.
    """
    quick = report.options.quick
    seeds, epochs, steps = (1, 2, 2) if quick else (SEEDS, EPOCHS, STEPS)
    trainers = {label: Trainer(task, ARMS[label], epochs, data) for label in labels}
    rows = []
    for label, trainer in trainers.items():
        arm = ARMS[label]
        outcomes = [trainer.run(seed) for seed in range(seeds)]
        accuracies = [own.accuracy for own in outcomes]
        rows.append(
            {
                "method": arm.method,
                "structure": arm.structure,
                "sparsity": arm.sparsity,
                "accuracy_mean": statistics.mean(accuracies),
                "accuracy_sd": statistics.stdev(accuracies) if seeds > 1 else None,
                "density": round(statistics.mean(own.density for own in outcomes), 4),
                "state_bytes": outcomes[-1].state_bytes,
            }
        )
        print(f"  {task.name}, {label}: {rows[-1]['accuracy_mean']:.1%}", flush=True)
    report.listing(f"{task.name}: trained, {seeds} seeds, {epochs} epochs", rows)
    timings = harness.measure(
        [own.steps_from_last(label, steps) for label, own in trainers.items()],
        report.options.rounds_or(20),
    )
    report.table(f"{task.name}: a step", timings, BASELINE)
    timings = harness.measure(
        [own.change_of_first() for own in trainers.values() if own.arm.moves],
        report.options.rounds_or(20),
    )
    report.table(f"{task.name}: a change", timings, CHANGE)
    return trainers


def time_straight_through(
    report: harness.Report, task: Task, trainers: dict[str, Trainer]
) -> None:
    """Training steps whose masks are chosen anew each time, against the dense one."""
    steps = 2 if report.options.quick else STEPS
    again = f"{BASELINE} again"  # what it differs from 1 by, any other may, too
    candidates = [
        trainers[label].steps_from_last(label, steps)
        for label in (BASELINE, *STATIC, *STE)
    ]
    candidates.append(trainers[BASELINE].steps_from_last(again, steps))
    timings = harness.measure(candidates, report.options.rounds_or(60))
    report.table(f"{task.name}: a step by STE", timings, BASELINE)
    for label, static in zip(STE, STATIC, strict=True):
        name = f"{task.name}: {label}"
        ratio = timings[label].ratio(timings[BASELINE]).median
        report.claim(f"{name} / dense", ratio, at_most=STRAIGHT_THROUGH)
        ratio = timings[label].ratio(timings[static]).median
        report.claim(f"{name} / static masks", ratio)


def kernels(shape: tuple[int, int], parts: int, seed: int) -> dict[str, jax.Array]:
    """Normal numbers as kernels (inputs, neurons) that have so many weights in all."""
    draw = np.random.default_rng(seed).standard_normal
    inputs, neurons = shape
    return {
        f"kernel_{part}": jnp.asarray(draw((inputs // parts, neurons), np.float32))
        for part in range(parts)
    }


def time_change(
    report: harness.Report, arm: Arm, shape: tuple[int, int], rounds: int
) -> None:
    """A change of large masks, by the library and by sorting.

    Methods that compare layers with each other have the weights in two of them.
    """
    when = When(every=100, stop=1000)
    method: Any = arm.build(when, misfits=False)
    compares = getattr(method, "scope", "layer") == "global" or getattr(
        method, "redistributes", False
    )
    params, grads = (kernels(shape, 2 if compares else 1, seed) for seed in (0, 1))
    count = arm.change_at(when)
    state, params = begin(method, params, grads, count)
    ours = jax.jit(functools.partial(change, method), donate_argnums=0)
    theirs = jax.jit(functools.partial(change_by_sorting, method, count))
    candidates = [
        # A state of its own each time, as it is written over.
        harness.Candidate(
            LIBRARY, lambda: ours(jax.tree.map(jnp.copy, state), params, grads)
        ),
        harness.Candidate(SORTING, lambda: theirs(state, params, grads), every=2),
    ]

    def check(results):
        found, expected = masks_of(results[LIBRARY]), results[SORTING]
        check_same(arm, found, expected)

    timings = harness.measure(candidates, rounds, check)
    size = sum(kernel.size for kernel in params.values())
    report.table(f"{arm.label}: a change of {size:,} weights", timings, LIBRARY)
    # There are so few channels that sorting them costs nothing.
    limit = None if arm.structure == "channels" else SLOWER_BY_SORTING
    ratio = timings[SORTING].ratio(timings[LIBRARY]).median
    report.claim(f"{arm.label}: {SORTING} / {LIBRARY}", ratio, at_least=limit)


def check_same(arm: Arm, found: Any, expected: Any) -> None:
    """Raises unless both ways have made the same masks.

    Sums over blocks and channels may be rounded otherwise in another program, and so
    may exchange two of them.
    """
    for own, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        differing = int((own != other).sum())
        allowed = {"blocks of 1x4": 2 * 4, "channels": 2 * own.shape[0]}
        if differing > allowed.get(arm.structure, 0):
            raise AssertionError(
                f"{arm.label}: {LIBRARY} and {SORTING} differ in {differing} weights"
            )


def main(options: harness.Options) -> None:
    """Runs the benchmark."""
    report = harness.Report("methods", options)
    labels = QUICK if options.quick else tuple(ARMS)
    networks, data = tasks(options.quick), load_digits(options.quick)
    for task in networks:
        trainers = train(report, task, data, labels)
        time_straight_through(report, task, trainers)
    shape = (32, 16) if options.quick else KERNEL
    for label in labels:
        if ARMS[label].moves:
            time_change(report, ARMS[label], shape, options.rounds_or(4))
    report.store()


if __name__ == "__main__":
    main(tyro.cli(harness.Options, description=__doc__))

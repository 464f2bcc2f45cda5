"""Every method with the structures it supports: accuracy and cost.

    python -m benchmarks.methods

Every method trains a small ResNet and a small transformer on scanned digits: test
accuracy, density, and the times of a step and of an update of the masks. Then training
steps with straight-through estimators, whose masks follow every step, are compared with
the dense one.

The sparsity is 0.9; N of M fixes its own, blocks have 0.8 and channels 0.5. If a
structure does not fit the first or the last layer, that layer is unstructured at the
same sparsity. All methods share the optimizer, the learning rate and the steps at which
masks are updated; no setting was tuned for one of them.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.method_arms import ARMS, BASELINE, CHANGE, QUICK, STATIC, STE
from benchmarks.method_models import Task, Trainer, tasks
from reporting import harness
from reporting.training import load_digits

SEEDS, EPOCHS, STEPS = 2, 10, 10
STRAIGHT_THROUGH = 1.20


def train(
    report: harness.Report, task: Task, data: Any, labels: Sequence[str]
) -> dict[str, Trainer]:
    """Train one network with all methods, and return the trainers."""
    seeds, epochs = (1, 2) if report.options.quick else (SEEDS, EPOCHS)
    trainers = {label: Trainer(task, ARMS[label], epochs, data) for label in labels}
    rows = []
    for label, trainer in trainers.items():
        arm = ARMS[label]
        outcomes = [trainer.run(seed) for seed in range(seeds)]
        accuracies = [outcome.accuracy for outcome in outcomes]
        rows.append(
            {
                "method": arm.method,
                "structure": arm.structure,
                "sparsity": arm.sparsity,
                "accuracy_mean": statistics.mean(accuracies),
                "accuracy_sd": statistics.stdev(accuracies) if seeds > 1 else None,
                "density": round(
                    statistics.mean(outcome.density for outcome in outcomes), 4
                ),
                "state_bytes": outcomes[-1].state_bytes,
            }
        )
        print(f"  {task.name}, {label}: {rows[-1]['accuracy_mean']:.1%}", flush=True)
    title = f"{task.name}: trained, {seeds} seeds, {epochs} epochs"
    report.listing(title, rows, network=task.name, kind="training")
    return trainers


def time_steps(
    report: harness.Report, task: Task, trainers: dict[str, Trainer]
) -> None:
    """Time the steps of all methods, and the updates of those whose masks move."""
    steps = 2 if report.options.quick else STEPS
    timings = harness.measure(
        [trainer.steps_from_last(label, steps) for label, trainer in trainers.items()],
        report.options.rounds_or(20),
    )
    network = task.name
    title = f"{network}: a step"
    report.table(title, timings, BASELINE, network=network, kind="step")
    timings = harness.measure(
        [
            trainer.change_of_first()
            for trainer in trainers.values()
            if trainer.arm.moves
        ],
        report.options.rounds_or(20),
    )
    title = f"{network}: a change"
    report.table(title, timings, CHANGE, network=network, kind="change")


def time_straight_through(
    report: harness.Report, task: Task, trainers: dict[str, Trainer]
) -> None:
    """Time training steps that choose new masks every time, against the dense one."""
    steps = 2 if report.options.quick else STEPS
    again = f"{BASELINE} again"  # its deviation from 1 is the noise of any ratio
    candidates = [
        trainers[label].steps_from_last(label, steps)
        for label in (BASELINE, *STATIC, *STE)
    ]
    candidates.append(trainers[BASELINE].steps_from_last(again, steps))
    timings = harness.measure(candidates, report.options.rounds_or(60))
    title = f"{task.name}: a step by STE"
    report.table(title, timings, BASELINE, network=task.name, kind="ste")
    for label, static in zip(STE, STATIC, strict=True):
        name = f"{task.name}: {label}"
        ratio = timings[label].ratio(timings[BASELINE]).median
        report.claim(f"{name} / dense", ratio, at_most=STRAIGHT_THROUGH)
        ratio = timings[label].ratio(timings[static]).median
        report.claim(f"{name} / static masks", ratio)


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.methods", options)
    labels = QUICK if options.quick else tuple(ARMS)
    networks, data = tasks(options.quick), load_digits(options.quick)
    trained = [train(report, task, data, labels) for task in networks]
    print("\nTiming starts here.", flush=True)
    for task, trainers in zip(networks, trained, strict=True):
        time_steps(report, task, trainers)
        time_straight_through(report, task, trainers)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)

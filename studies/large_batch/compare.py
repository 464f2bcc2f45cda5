"""Optimizers at growing batches: plans, training to a loss, the rule and its test."""

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

import sparseopt_jax as so
from reporting import harness

LARGEST_WARM_UP = 1 / 5  # fraction of the training, at the largest batch
SPARSITY, CHANGES = 0.9, 10  # updates in the whole training, none in its last quarter
# The seed for tuning learning rates; no other run uses it.
TUNING = 1_000
# An optimizer reaches as far as the batches take at most this multiple of the epochs.
HOLDS = 2.0
# How much further LARS and LAMB have to reach for their rule to count as better.
FURTHER = 2.0


class Optimizer(NamedTuple):
    """One of the four optimizers.

    Attributes:
      make: builds it from a learning rate, a topology and a key.
      rates: learning rates to try on digits at the smallest batch, ascending.
    """

    make: Callable[..., optax.GradientTransformation]
    rates: tuple[float, ...]


def _sparse(alias: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return functools.partial(alias, sparseopt=False, **options)


OPTIMIZERS = {
    "SGD": Optimizer(
        _sparse(so.sparse_sgd, momentum=0.9, weight_decay=5e-4),
        (0.025, 0.05, 0.1, 0.2, 0.4),
    ),
    "LARS": Optimizer(
        _sparse(
            so.sparse_lars, momentum=0.9, weight_decay=5e-4, trust_coefficient=0.02
        ),
        (0.025, 0.05, 0.1, 0.2, 0.4),
    ),
    "Adam": Optimizer(
        _sparse(so.sparse_adamw, weight_decay=1e-2),
        (0.002, 0.004, 0.008, 0.016, 0.032),
    ),
    "LAMB": Optimizer(
        _sparse(so.sparse_lamb, weight_decay=1e-2),
        (0.00125, 0.0025, 0.005, 0.01, 0.02),
    ),
}
# Pairs: the optimizer whose rule should reach further, and the other one.
PAIRS = (("LARS", "SGD"), ("LAMB", "Adam"))


class Plan(NamedTuple):
    """The steps of a run at one batch size.

    Attributes:
      images: number of training images, or of windows of a text, each seen once.
      batch: images per step.
      epochs: passes over the images.
      warm_up_share: fraction of the training, at this batch.
    """

    images: int
    batch: int
    epochs: int
    warm_up_share: float

    @property
    def steps(self) -> int:
        """Count all steps: batches are cut from consecutive epochs without a gap."""
        return self.epochs * self.images // self.batch

    @property
    def warm_up(self) -> int:
        """Count the steps of the warm-up."""
        return max(1, round(self.warm_up_share * self.steps))

    def rates(self, peak: float) -> np.ndarray:
        """Return the learning rate of each step."""
        step, warm_up = np.arange(self.steps), self.warm_up
        rising = (step + 1) / warm_up
        falling = (self.steps - step) / (self.steps - warm_up + 1)
        return np.float32(peak) * np.minimum(rising, falling).astype(np.float32)

    def epochs_of(self, steps: float) -> float:
        """Return the number of passes over the images in some steps."""
        return steps * self.batch / self.images

    def topology(self, density: str) -> so.Topology:
        """Return RigL with equally many updates at every batch, or a dense topology."""
        if density == "dense":
            return so.static(0.0)
        every = max(2, self.steps // CHANGES)
        stop = max(every + 1, 3 * self.steps // 4)
        return so.rigl(SPARSITY, every=every, start=every, stop=stop)


class Trained(Protocol):
    """A network with its data."""

    gradient: Callable[[Any, Any], Any]

    def start(self, seed: int) -> Any:
        """Return the weights before the first step."""
        ...

    def loss(self, params: Any) -> float:
        """Return the loss that has to reach the target."""
        ...

    def batches(self, plan: Plan, seed: int) -> Iterator[Any]:
        """Yield one batch per step of the plan."""
        ...


class Task(NamedTuple):
    """A network, its batches, and the length of its training.

    Attributes:
      network: the network.
      images: number of images in an epoch.
      epochs: passes over the images.
      batches: batch sizes, ascending.
      target: the loss to reach.
      rates: learning rates of each optimizer to try at the smallest batch, ascending.
      seeds: number of runs at each batch.
    """

    network: Trained
    images: int
    epochs: int
    batches: tuple[int, ...]
    target: float
    rates: Mapping[str, tuple[float, ...]]
    seeds: int

    def plans(self) -> list[Plan]:
        """Return the plan of each batch; all have equally many warm-up steps."""
        largest = self.batches[-1]
        return [
            Plan(self.images, batch, self.epochs, LARGEST_WARM_UP * batch / largest)
            for batch in self.batches
        ]


class Outcome(NamedTuple):
    """The outcome of one run.

    Attributes:
      steps: steps until the loss was reached, fractional; None if it was not.
      loss: the last loss.
    """

    steps: float | None
    loss: float

    def order(self) -> tuple[float, float]:
        """Return a sort key; less is better."""
        loss = self.loss if math.isfinite(self.loss) else math.inf
        return (math.inf if self.steps is None else self.steps, loss)


@functools.cache
def update_of(name: str, topology: so.Topology) -> Callable[..., Any]:
    """Return the optimizer's step, compiled once for all batches, rates and seeds."""

    def update(grads, opt_state, params, rate):
        tx = OPTIMIZERS[name].make(rate, topology)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(update, donate_argnums=(1, 2))


class Trainer:
    """An optimizer at one batch."""

    def __init__(self, task: Task, name: str, density: str, plan: Plan):
        """Prepare; compile nothing yet. ``density`` is ``"dense"`` or ``"sparse"``."""
        self.network, self.target = task.network, task.target
        self.name, self.plan = name, plan
        self._topology = plan.topology(density)
        self._make = OPTIMIZERS[name].make
        self._update = update_of(name, self._topology)

    def run(self, peak: float, seed: int) -> Outcome:
        """Train until the loss is reached, or to the end."""
        params = self.network.start(seed)
        tx = self._make(peak, self._topology, key=seed)
        opt_state = tx.init(params)
        params = so.apply_masks(params, opt_state)
        rates = self.plan.rates(peak)
        batches = self.network.batches(self.plan, seed)
        at, loss, epoch = 0, self.network.loss(params), 1
        for step, (rate, batch) in enumerate(zip(rates, batches, strict=True), 1):
            grads = self.network.gradient(params, batch)
            params, opt_state = self._update(grads, opt_state, params, rate)
            if self.plan.epochs_of(step) < epoch and step < self.plan.steps:
                continue
            epoch = math.floor(self.plan.epochs_of(step)) + 1
            before, loss = loss, self.network.loss(params)
            if loss <= self.target:
                reached = crossing((at, before), (step, loss), self.target)
                return Outcome(reached, loss)
            if not math.isfinite(loss):
                break
            at = step
        return Outcome(None, loss)


def crossing(
    before: tuple[float, float], after: tuple[float, float], target: float
) -> float:
    """Interpolate linearly, in logarithms, where the loss crosses the target.

    >>> crossing((10, 1.0), (20, 0.01), 0.1)
    15.0
    """
    (start, high), (end, low) = before, after
    part = math.log(high / target) / math.log(high / low)
    return start + part * (end - start)


def scaled(rate: float, batch: int, smallest: int) -> float:
    """Scale a learning rate by the square-root rule."""
    return rate * math.sqrt(batch / smallest)


def row_of(
    trainer: Trainer, rate: float, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Summarise the runs with one learning rate.

    Epochs and steps are means, and None if one of the runs did not reach the loss.
    """
    plan = trainer.plan
    steps = [outcome.steps for outcome in outcomes if outcome.steps is not None]
    mean = statistics.mean(steps) if len(steps) == len(outcomes) else None
    loss = statistics.mean(outcome.loss for outcome in outcomes)
    return {
        "optimizer": trainer.name,
        "batch": plan.batch,
        "rate": float(f"{rate:.4g}"),
        "warm_up": plan.warm_up,
        "of_steps": plan.steps,
        "of_epochs": plan.epochs,
        "reached": f"{len(steps)} of {len(outcomes)}",
        "epochs": None if mean is None else round(plan.epochs_of(mean), 2),
        "steps": None if mean is None else round(mean, 1),
        "last_loss": float(f"{loss:.4g}") if math.isfinite(loss) else None,
    }


def tune(
    trainer: Trainer, rates: Sequence[float]
) -> tuple[float, list[dict[str, Any]]]:
    """Return the learning rate that takes the fewest steps, and a row for each.

    If none reaches the loss, return the rate that comes closest.
    """
    outcomes = {rate: trainer.run(rate, TUNING) for rate in rates}
    best = min(outcomes, key=lambda rate: outcomes[rate].order())
    rows = [row_of(trainer, rate, [outcome]) for rate, outcome in outcomes.items()]
    return best, [
        row | {"best": rate == best} for row, rate in zip(rows, rates, strict=True)
    ]


def compare(report: harness.Report, task: Task, density: str) -> None:
    """Train with all optimizers at all batches, and report how far each reaches."""
    smallest, largest, seeds = task.batches[0], task.batches[-1], task.seeds
    tuning, rows, control, reach = [], [], [], {}
    for name, rates in task.rates.items():
        trainers = [Trainer(task, name, density, plan) for plan in task.plans()]
        best, tried = tune(trainers[0], rates)
        tuning += tried
        by_batch = []
        for trainer in trainers:
            rate = scaled(best, trainer.plan.batch, smallest)
            outcomes = [trainer.run(rate, seed) for seed in range(seeds)]
            by_batch.append(row_of(trainer, rate, outcomes))
            took = by_batch[-1]["epochs"] or f"more than {task.epochs}"
            print(f"  {density}, {name}, {trainer.plan.batch}: {took}", flush=True)
        rows += by_batch
        reach[name] = reached(by_batch)
        rates = [scaled(rate, largest, smallest) for rate in rates]
        control += tune(trainers[-1], rates)[1]
    what = f"{density}, to a loss of {task.target}"
    key = {"density": density, "target": task.target}
    title = f"{what}: rates tried at a batch of {smallest}"
    report.listing(title, tuning, **key, kind="rates", batch=smallest)
    title = f"{what}: the rule, {seeds} seeds"
    report.listing(title, rows, **key, kind="rule", seeds=seeds)
    title = f"{what}: rates tried at a batch of {largest}"
    report.listing(title, control, **key, kind="rates", batch=largest)
    for name, batch in reach.items():
        what = f"{density}: the largest batch that {name} reaches"
        report.claim(what, batch, density=density, optimizer=name)
    for name, other in PAIRS:
        ratio = reach[name] / max(reach[other], 1)
        what = f"{density}: the largest batch of {name} / of {other}"
        report.claim(
            what, ratio, at_least=FURTHER, density=density, of=name, over=other
        )


def reached(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the largest batch whose epochs stay below ``HOLDS`` times the first's.

    Args:
      rows: rows of one optimizer, the batches ascending.

    Returns:
      The batch; 0 if even the first does not reach the loss.
    """
    largest, first = 0, rows[0]["epochs"]
    for row in rows:
        if row["epochs"] is None or row["epochs"] > HOLDS * first:
            break
        largest = row["batch"]
    return largest


def quicker(task: Task) -> Task:
    """Shorten a task to check that it runs: two batches, rates and epochs, one seed."""
    rates = {name: tried[:2] for name, tried in task.rates.items()}
    batches = task.batches[:2]
    return task._replace(epochs=2, batches=batches, rates=rates, seeds=1)

"""Does correcting gradients help, and when: no correction against two, paired by seed.

    python benchmarks/convergence.py

A small ResNet learns scanned digits, sparse, in a number of conditions: one that is the
rule, and others that differ from it in one thing, where the sources say, or our earlier
trials, that it matters. In each the gradient is left alone, corrected by fan-in (the
paper's rule) or by the variances that Batch Normalization measures (ours).

How it is made fair, and repeatable:

- What decides was fixed before anything was measured: the accuracy after the last
  epoch, and the epochs until a test accuracy of 95 % is reached.
- Every arm of every condition has the same tuning budget: four learning rates, a factor
  of 2 apart, two seeds each, which no other run has. They are judged by 200 training
  images that are left out for it, never by the test images.
- Then each arm trains with the same seeds. A seed decides the weights, the masks and
  the order of the images, the same for all arms, and differences are taken by seed.
- Given are the mean difference, the interval that covers it in 95 of 100 such
  experiments, and the p-value of the paired t-test. Several conditions are tested: one
  p-value in twenty falls below 0.05 with no difference at all.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import devices
import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from convergence_masks import spread_masks
from method_models import (
    BATCH,
    IMAGE,
    Split,
    accuracy_of,
    batches,
    is_kernel,
    learning_rate,
    load_digits,
    tasks,
)
from scipy import stats

import sparseopt_jax as so

ARMS = ("none", "fan_in", "batch_variance")
RATES = (0.05, 0.1, 0.2, 0.4)
SEEDS, TUNING_SEEDS = 8, (1_000, 1_001)
HELD_OUT = 200
TARGET = 0.95
CONFIDENCE = 0.95


class Condition(NamedTuple):
    """How the network is made sparse and trained.

    Attributes:
      name: what tables call it.
      method: "rigl", "set" or "static"; "spread" is static with fan-ins that differ
        from neuron to neuron by a log-normal law, the gradient's skew at its largest.
      sparsity: fraction of zeros.
      distribution: how active weights are shared between layers.
      sparse_init: whether weights are drawn by the fan-in of their neuron.
      epochs: passes over the training images.
    """

    name: str
    method: str = "rigl"
    sparsity: float = 0.95
    distribution: str = "erdos_renyi_kernel"
    sparse_init: bool = False
    epochs: int = 20

    def topology(self, steps: int, params: Any, seed: int) -> so.Topology:
        """Which weights are active."""
        shared: dict[str, Any] = {"distribution": self.distribution}
        if self.method == "static":
            return so.static(self.sparsity, **shared)
        if self.method == "spread":
            topology = so.static(self.sparsity, **shared)
            masks = spread_masks(topology, params, np.random.default_rng(seed))
            return so.static(masks=masks)
        stop = max(2, 3 * steps // 4)
        method = {"rigl": so.rigl, "set": so.set_}[self.method]
        return method(self.sparsity, every=max(1, stop // 20), stop=stop, **shared)


CONDITIONS = (
    Condition("RigL, 95 %"),
    Condition("RigL, 90 %", sparsity=0.9),
    Condition("RigL, 97 %", sparsity=0.97),
    Condition("SET, 95 %", method="set"),
    Condition("static, 95 %", method="static"),
    Condition("static, 95 %, fan-ins spread", method="spread"),
    Condition("RigL, 95 %, uniform", distribution="uniform"),
    Condition("RigL, 95 %, sparse-aware start", sparse_init=True),
    Condition("RigL, 95 %, three times as long", epochs=60),
)


class Outcome(NamedTuple):
    """What one run has come to.

    Attributes:
      accuracy: after the last epoch.
      epochs: until the target was reached; None if it never was.
      early_loss: mean training loss over the first fifth of the steps.
      fan_in_spread: standard deviation over mean of the fan-ins at the end, mean over
        the layers.
    """

    accuracy: float
    epochs: int | None
    early_loss: float
    fan_in_spread: float


class Trainer:
    """One arm of one condition, compiled once for all rates and seeds."""

    def __init__(self, model: nn.Module, condition: Condition, arm: str, images: int):
        """Compiles nothing yet.

        Args:
          model: called with images and ``train``.
          condition: how it is trained.
          arm: one of ``ARMS``.
          images: how many there are to train with.
        """
        self.model, self.condition, self.arm = model, condition, arm
        self.steps = condition.epochs * (images // BATCH)
        self.init = jax.jit(functools.partial(model.init, train=False))
        loss_fn = devices.loss_of(model)
        self._links = None
        if arm == "batch_variance":
            variables = jax.eval_shape(self.init, jax.random.key(0), IMAGE)
            self._links = so.infer_norm_links(
                model.apply, variables, IMAGE, train=False
            )

        def step(params, batch_stats, opt_state, rate, batch):
            gradient = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, (_, batch_stats)), grads = gradient(params, batch_stats, batch)
            tx = self._optimizer(rate, self._topology)
            extra = {"batch_stats": batch_stats} if self._links else {}
            updates, opt_state = tx.update(grads, opt_state, params, **extra)
            return optax.apply_updates(params, updates), batch_stats, opt_state, loss

        self.step = jax.jit(step, donate_argnums=(0, 1, 2))
        params = jax.eval_shape(self.init, jax.random.key(0), IMAGE)["params"]
        self._topology = condition.topology(self.steps, params, 0)

    def run(self, peak: float, seed: int, train: Split, test: Split) -> Outcome:
        """Trains with one learning rate and one seed.

        Args:
          peak: the learning rate after the warm-up.
          seed: of the weights, the masks and the order of the images.
          train: what is trained with.
          test: what is judged by.

        Returns:
          What it has come to.
        """
        key = jax.random.key(seed, impl="rbg")
        params_key, topology_key, init_key = jax.random.split(key, 3)
        variables = self.init(params_key, IMAGE)
        params, batch_stats = variables["params"], variables["batch_stats"]
        topology = self.condition.topology(self.steps, params, seed)
        opt_state: Any = self._optimizer(peak, topology, topology_key).init(params)
        if self.condition.sparse_init:
            params = so.sparse_init(params, opt_state, init_key)
        params = so.apply_masks(params, opt_state)
        schedule = learning_rate(peak, self.steps)
        rates = np.asarray(jax.vmap(schedule)(jnp.arange(self.steps)))
        losses, reached, accuracy = [], None, 0.0
        per_epoch = self.steps // self.condition.epochs
        seen = batches(train, self.condition.epochs, np.random.default_rng(seed))
        for step, batch in enumerate(seen):
            params, batch_stats, opt_state, loss = self.step(
                params, batch_stats, opt_state, rates[step], batch
            )
            losses.append(loss)
            if (step + 1) % per_epoch == 0:
                variables = {"params": params, "batch_stats": batch_stats}
                accuracy = float(accuracy_of(self.model, variables, *test))
                if reached is None and accuracy >= TARGET:
                    reached = (step + 1) // per_epoch
        early = np.asarray(jax.device_get(losses[: max(1, self.steps // 5)]))
        spreads = [
            np.std(fan_ins) / np.mean(fan_ins)
            for fan_ins in jax.tree.leaves(opt_state.topology_state.fan_ins)
        ]
        early_loss, spread = float(np.mean(early)), float(np.mean(spreads))
        return Outcome(accuracy, reached, early_loss, spread)

    def _optimizer(
        self, rate: Any, topology: so.Topology, key: Any = 0
    ) -> optax.GradientTransformation:
        correction = {
            "none": optax.identity,
            "fan_in": so.scale_by_sparseopt,
            "batch_variance": lambda: so.scale_by_batch_variance(self._links or {}),
        }[self.arm]()
        inner = optax.chain(
            correction,
            optax.add_decayed_weights(5e-4, mask=is_kernel),
            optax.sgd(rate, momentum=0.9),
        )
        return so.sparsify(inner, topology, key=key)


def held_out(train: Split, count: int) -> tuple[Split, Split]:
    """The training images without some, and those."""
    order = np.random.default_rng(0).permutation(len(train.labels))
    left, taken = (
        Split(train.images[own], train.labels[own])
        for own in (order[count:], order[:count])
    )
    return left, taken


def difference(own: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """What one arm has beyond another, seed by seed.

    Args:
      own: a number for each seed.
      other: those of the arm that it is compared with, in the same order.

    Returns:
      The mean difference, its interval, and the p-value of the paired t-test, 1 where
      all differences are equal to 0.

    >>> found = difference([1.0, 2.0, 3.0, 5.0], [0.0, 2.0, 2.0, 3.0])
    >>> {name: round(value, 4) for name, value in found.items()}
    {'mean': 1.0, 'low': -0.2992, 'high': 2.2992, 'p': 0.092}
    """
    gaps = np.asarray(own, float) - np.asarray(other, float)
    mean, deviation = float(gaps.mean()), float(gaps.std(ddof=1))
    if deviation == 0.0:
        return {"mean": mean, "low": mean, "high": mean, "p": float(mean == 0.0)}
    error = deviation / math.sqrt(len(gaps))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(gaps) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(gaps) - 1))
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "p": p}


def tuned(
    run: Callable[[float, int], Outcome], rates: Sequence[float], seeds: Sequence[int]
) -> tuple[float, list[dict[str, Any]]]:
    """The rate of the highest mean accuracy, the lower of equals, and all tried.

    Args:
      run: trains with a rate and a seed.
      rates: those to try.
      seeds: each rate's.

    Returns:
      The rate, and a row for each.
    """
    rows = [
        {
            "rate": rate,
            "accuracy": float(np.mean([run(rate, seed).accuracy for seed in seeds])),
        }
        for rate in rates
    ]
    best = max(rows, key=lambda row: (row["accuracy"], -row["rate"]))["rate"]
    return best, [row | {"best": row["rate"] == best} for row in rows]


def summary(rate: float, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A row for one arm."""
    accuracies = [outcome.accuracy for outcome in outcomes]
    epochs = [outcome.epochs for outcome in outcomes if outcome.epochs is not None]
    deviation = float(np.std(accuracies, ddof=1)) if len(outcomes) > 1 else 0.0
    return {
        "rate": rate,
        "accuracy": float(np.mean(accuracies)),
        "sd": deviation,
        "early_loss": float(np.mean([outcome.early_loss for outcome in outcomes])),
        "epochs_to_target": float(np.mean(epochs)) if epochs else None,
        "reached": f"{len(epochs)} of {len(outcomes)}",
        "fan_in_spread": float(np.mean([own.fan_in_spread for own in outcomes])),
    }


def compare(
    report: harness.Report,
    model: nn.Module,
    condition: Condition,
    data: tuple[Split, Split],
) -> Mapping[str, Any]:
    """Trains all arms of a condition; adds what was tried and what came out."""
    quick = report.options.quick
    rates, seeds = (RATES[:2], range(2)) if quick else (RATES, range(SEEDS))
    tuning_seeds = TUNING_SEEDS[:1] if quick else TUNING_SEEDS
    train, test = data
    parts = held_out(train, BATCH // 2 if quick else HELD_OUT)
    tried, rows, outcomes = [], [], {}
    for arm in ARMS:
        tuner = Trainer(model, condition, arm, len(parts[0].labels))
        best, own = tuned(
            lambda rate, seed, own=tuner: own.run(rate, seed, *parts),
            *(rates, tuning_seeds),
        )
        tried += [{"arm": arm, **row} for row in own]
        trainer = Trainer(model, condition, arm, len(train.labels))
        outcomes[arm] = [trainer.run(best, seed, train, test) for seed in seeds]
        gaps = difference(*([o.accuracy for o in outcomes[a]] for a in (arm, ARMS[0])))
        rows.append({"arm": arm, **summary(best, outcomes[arm]), **gaps})
        print(f"  {condition.name}, {arm}: {rows[-1]['accuracy']:.4f}", flush=True)
    report.listing(f"{condition.name}: learning rates tried", tried)
    report.listing(f"{condition.name}: {len(seeds)} seeds", rows)
    for row in rows[1:]:
        what = f"{condition.name}: accuracy with {row['arm']} minus without"
        report.claim(what, row["mean"])
    return outcomes


def main(options: harness.Options) -> None:
    """Runs the benchmark."""
    report = harness.Report("convergence", options)
    data = load_digits(options.quick)
    model = tasks(options.quick)[0].model
    for condition in CONDITIONS[:1] if options.quick else CONDITIONS:
        if options.quick:
            condition = condition._replace(epochs=2)
        compare(report, model, condition, data)
    report.store()


if __name__ == "__main__":
    main(tyro.cli(harness.Options, description=__doc__))

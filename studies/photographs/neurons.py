"""Find out why neurons lose all their inputs, and what prevents it.

    python -m studies.photographs.neurons

With RigL, corrected by fan-in, many neurons of a very sparse network end without any
active weight. Each update of the masks is watched here:

- of the weights that were active for longer than one interval, how many the update
  drops, by the fan-in that their neuron has relative to its layer's mean;
- of the weights that the update before has grown, how many it keeps, likewise;
- how many neurons lose their last weight, how many get a first one again, and of those
  without any, how many have a Batch Normalization whose bias is not above 0. The output
  of such a neuron is constant, and a ReLU that directly follows passes no gradient to
  it, so that RigL cannot grow its weights.

What might prevent it is tried: a least fan-in, a floor under the factors, dropping by
the size of a weight relative to its neuron's, and no weight decay. The same learning
rate is used throughout, so that nothing else differs. Exponents of fan-in are measured
as in ``studies.neuron_scales``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import sparseopt_jax as so
from examples.digits.training import evaluate
from reporting import harness
from sparseopt_jax.topologies import scores
from studies import neuron_scales
from studies.convergence.conditions import Condition
from studies.convergence.runs import Network, Trainer
from studies.photographs.conditions import LEAST_FAN_IN
from studies.photographs.networks import networks
from studies.photographs.training import DataOptions

SEEDS = 3
RATES = {"mlp": 0.1, "resnet": 0.2}
# Neurons by their fan-in over the layer's mean: below, between and above these.
BOUNDS = (0.5, 1.5)
CLASSES = ("few", "usual", "many")


class RelativeMagnitude(scores.DeclaredScore):
    """A weight's absolute value over the root mean square of its neuron's weights.

    For kernels that have their neurons along the last axis.
    """

    needs_gradient: ClassVar[bool] = False

    def __call__(self, key: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        """Return the scores: float32 of the parameter's shape."""
        del key, grad
        size = jnp.abs(param).astype(jnp.float32)
        inputs = tuple(range(param.ndim - 1))
        active = jnp.maximum(jnp.sum(size > 0.0, axis=inputs), 1)
        mean = jnp.sqrt(jnp.sum(size**2, axis=inputs) / active)
        return size / jnp.maximum(mean, 1e-12)


class RelativeDrop(Condition):
    """Weights are dropped by their size relative to their neuron's."""

    __slots__ = ()

    def topology(self, steps: int, params: Any, seed: int) -> so.Topology:
        """Return the topology."""
        plain: Any = super().topology(steps, params, seed)
        return dataclasses.replace(plain, drop=RelativeMagnitude())


class Trial(NamedTuple):
    """One row of the table.

    Attributes:
      condition: how the network is made sparse and trained; its name is the network's.
      arm: the correction.
      rule: what is to keep neurons alive, in words.
    """

    condition: Condition
    arm: str
    rule: str = "none"


def trials() -> list[Trial]:
    """Return what is tried."""
    mlp = Condition("perceptron, 98 %", network="mlp", sparsity=0.98)
    resnet = Condition("ResNet, 98 %", network="resnet", sparsity=0.98)
    milder = resnet._replace(name="ResNet, 95 %", sparsity=0.95)
    least = {"min_fan_in": LEAST_FAN_IN}
    return [
        Trial(mlp, "none"),
        Trial(mlp, "fan_in"),
        Trial(mlp, "batch_variance"),
        Trial(mlp._replace(**least), "none", "least fan-in of 2"),
        Trial(mlp._replace(**least), "fan_in", "least fan-in of 2"),
        Trial(mlp, "fan_in_floored", "factors of at least 0.5"),
        Trial(RelativeDrop(*mlp), "fan_in", "relative magnitude"),
        Trial(mlp._replace(weight_decay=0.0), "fan_in", "no weight decay"),
        Trial(resnet, "none"),
        Trial(resnet, "fan_in"),
        Trial(resnet._replace(**least), "none", "least fan-in of 2"),
        Trial(resnet._replace(**least), "fan_in", "least fan-in of 2"),
        Trial(milder, "none"),
        Trial(milder, "fan_in"),
    ]


@dataclasses.dataclass
class Tally:
    """What updates of the masks did to the neurons of hidden layers.

    Attributes:
      standing: weights that were active before the last update, by class of neuron.
      dropped: those of them that this update dropped.
      young: weights that the last update grew and that were not dropped by it.
      kept: those of them that this update kept.
      died: neurons that lost their last weight.
      fan_ins: of each of them, before.
      revived: neurons that got a weight again.
      without: neurons without a weight, counted at every update.
      closed: those of them whose normalisation has no bias above 0.
      revived_closed: those of them that got a weight again.
    """

    standing: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
    dropped: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
    young: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
    kept: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
    died: int = 0
    fan_ins: list[float] = dataclasses.field(default_factory=list)
    revived: int = 0
    without: int = 0
    closed: int = 0
    revived_closed: int = 0

    def add(
        self,
        before: np.ndarray,
        after: np.ndarray,
        grown: np.ndarray | None,
        bias: np.ndarray,
    ) -> np.ndarray:
        """Count one layer's update.

        Args:
          before: the mask before it, bool (inputs, neurons).
          after: the mask after it.
          grown: what the last update grew; None at the first.
          bias: of the normalisation that follows, (neurons,).

        Returns:
          What this update grew, bool (inputs, neurons).
        """
        fan_ins, left = before.sum(axis=0), after.sum(axis=0)
        if grown is not None:
            classes = np.digitize(fan_ins / fan_ins.mean(), BOUNDS)
            weights = (
                (self.standing, before & ~grown),
                (self.dropped, before & ~grown & ~after),
                (self.young, before & grown),
                (self.kept, before & grown & after),
            )
            for counts, chosen in weights:
                for index in range(len(CLASSES)):
                    counts[index] += chosen[:, classes == index].sum()
        died, without = (fan_ins > 0) & (left == 0), fan_ins == 0
        closed, revived = without & (bias <= 0.0), without & (left > 0)
        self.died += int(died.sum())
        self.fan_ins += fan_ins[died].tolist()
        self.revived += int(revived.sum())
        self.without += int(without.sum())
        self.closed += int(closed.sum())
        self.revived_closed += int((closed & revived).sum())
        return after & ~before


def watch(trainer: Trainer, rate: float, seed: int) -> tuple[Tally, float, float]:
    """Train, and count what each update does.

    Args:
      trainer: of the arm.
      rate: peak of the learning rate.
      seed: decides weights, masks and the order of images.

    Returns:
      The counts, the share of hidden neurons without a weight at the end, and the test
      accuracy.
    """
    tally, grown = Tally(), {}
    every = trainer.condition.every(trainer.steps)
    params, batch_stats, opt_state = trainer.start(rate, seed)
    for step, (now, seen) in enumerate(trainer.schedule(rate, seed)):
        updates = step % every == 0
        # The step takes its arguments' memory.
        before = _hidden_masks(trainer, opt_state) if updates else {}
        biases = _biases(trainer, params) if updates else {}
        params, batch_stats, opt_state, _ = trainer.step(
            params, batch_stats, opt_state, now, seen
        )
        after = _hidden_masks(trainer, opt_state) if updates else {}
        for path, mask in after.items():
            if (mask != before[path]).any():
                last = grown.get(path)
                grown[path] = tally.add(before[path], mask, last, biases[path])
    masks = _hidden_masks(trainer, opt_state).values()
    dead = np.concatenate([mask.sum(axis=0) == 0 for mask in masks]).mean()
    variables = {"params": params, "batch_stats": batch_stats}
    accuracy, _ = evaluate(trainer.model, variables, *trainer.network.data.test)
    return tally, float(dead), float(accuracy)


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def _hidden_masks(trainer: Trainer, opt_state: Any) -> dict[str, np.ndarray]:
    """Return the masks (inputs, neurons) of layers that a normalisation follows."""
    masks = _flat(so.get_masks(opt_state))
    return {
        path: np.array(masks[path]).reshape(-1, masks[path].shape[-1])
        for path in trainer.links
        if isinstance(masks[path], jax.Array)
    }


def _biases(trainer: Trainer, params: Any) -> dict[str, np.ndarray]:
    """Return the biases of the normalisations, by the kernels that they follow."""
    flat = _flat(params)
    # A copy: the next step takes the memory of the parameters.
    return {
        path: np.array(flat[f"{norm}/bias"]) for path, norm in trainer.links.items()
    }


def row_of(trial: Trial, found: Sequence[tuple[Tally, float, float]]) -> dict[str, Any]:
    """Return the row of a trial, from its seeds."""
    tallies = [tally for tally, _, _ in found]

    def total(name: str) -> Any:
        return sum(getattr(tally, name) for tally in tallies)

    def shares(part: str, whole: str) -> dict[str, float | None]:
        return {
            f"{part}_{name}": float(some / of) if of else None
            for name, some, of in zip(CLASSES, total(part), total(whole), strict=True)
        }

    fan_ins = [fan_in for tally in tallies for fan_in in tally.fan_ins]
    accuracies = [accuracy for *_, accuracy in found]
    return {
        "network": trial.condition.name,
        "arm": trial.arm,
        "rule": trial.rule,
        **shares("dropped", "standing"),
        **shares("kept", "young"),
        "died": total("died") / len(found),
        "fan_in_before": float(np.mean(fan_ins)) if fan_ins else None,
        "revived": total("revived") / len(found),
        "closed": total("closed") / total("without") if total("without") else None,
        "revived_closed": total("revived_closed") / len(found),
        "dead": float(np.mean([dead for _, dead, _ in found])),
        "accuracy": float(np.mean(accuracies)),
        "sd": float(np.std(accuracies, ddof=1)),
    }


def measure_exponents(
    available: Mapping[str, Network], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the exponents of fan-in in uncorrected runs, as ``neuron_scales`` does."""
    chosen = [trial.condition for trial in trials() if trial[1:] == ("none", "none")]
    courses = {}
    for condition in chosen:
        trainer = Trainer(available[condition.network], condition, "none")
        rate = RATES[condition.network]
        courses[condition.name] = [
            neuron_scales.follow(trainer, rate, seed) for seed in seeds
        ]
    return neuron_scales.table_of_exponents(courses)


def main(options: DataOptions) -> None:
    """Run the study."""
    report = harness.Report("studies.photographs.neurons", options)
    available = networks(options.data_dir, options.quick)
    seeds = range(2 if options.quick else SEEDS)
    rows = []
    for trial in trials()[:2] if options.quick else trials():
        trainer = Trainer(
            available[trial.condition.network], trial.condition, trial.arm
        )
        rate = RATES[trial.condition.network]
        rows.append(row_of(trial, [watch(trainer, rate, seed) for seed in seeds]))
        print(f"  {rows[-1]}", flush=True)
    report.listing("Updates of the masks by fan-in", rows, kind="neurons")
    exponents = measure_exponents(available, seeds)
    report.listing("Exponents of fan-in", exponents, kind="exponents")
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__, DataOptions)

"""How a neuron's scale depends on its fan-in during a sparse run.

    python -m studies.neuron_scales

SparseOpt corrects gradients by the square root of the fan-in, because the standard
deviation of a neuron's pre-activations is proportional to it, for weights that do not
depend on their number. Training need not preserve this. The study measures, at several
moments of a run, the exponents with which four numbers of a neuron depend on its
fan-in, by least squares on logarithms, within layers:

- the deviation of its pre-activations: 1/2 according to the theory;
- the norm of its weights: 1/2;
- the norm of its gradient: 0, which the correction turns into 1/2;
- the gradient's norm over the weights': -1/2, which the correction turns into 0. The
  output of Batch Normalization does not depend on the size of the weights before it, so
  this ratio is the pace at which a neuron learns.

With weights drawn by the fan-in of their neuron, the theory predicts 0, 0, 1/2, 1/2 at
the start.

At each update of the masks, the study also measures its effect on the deviations of the
neurons whose fan-in it changes. Dropped weights are small and grown weights are zero,
so the effect can be smaller than the fan-in suggests.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import sparseopt_jax as so
from reporting import harness
from reporting.training import loss_of
from studies.convergence.conditions import Condition
from studies.convergence.runs import Trainer, networks

# Learning rates with which all of these train; the tuning of ``studies.convergence``
# chose these or, for most, twice as much.
RUNS = (
    (Condition("MLP, RigL, 95 %"), 0.4),
    (Condition("MLP, RigL, 95 %, no weight decay", weight_decay=0.0), 0.4),
    (Condition("MLP, RigL, 95 %, sparse-aware start", sparse_init=True), 0.4),
    (Condition("MLP, SET, 95 %", method="set"), 0.4),
    (Condition("MLP, fan-ins spread, 95 %", method="spread"), 0.4),
    (Condition("ResNet, RigL, 95 %", "digits"), 0.2),
)
SEEDS = 3
MOMENTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # fractions of the training
IMAGES = 1_000
LEAST = 1e-9  # smaller numbers count as 0
NUMBERS = ("deviation", "weights", "gradient", "pace")


class Neurons(NamedTuple):
    """Numbers of the neurons of one layer, float64 (neurons,).

    Attributes:
      fan_in: active inputs.
      deviation: standard deviation of the pre-activations.
      weights: norm of the active weights.
      gradient: norm of the gradient of the active weights.
    """

    fan_in: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray
    gradient: np.ndarray

    @property
    def pace(self) -> np.ndarray:
        """Return the gradient's norm over the weights'."""
        weights = np.maximum(self.weights, LEAST)
        return self.gradient / weights


@functools.partial(jax.jit, static_argnames="model")
def _measure(model: nn.Module, params: Any, batch_stats: Any, batch: Any) -> Any:
    """Return the gradient, and variances of this batch alone up to a common factor."""
    # One update of running statistics from zero scales all variances by the same
    # factor.
    nothing = jax.tree.map(jnp.zeros_like, batch_stats)
    grads, (_, stats) = jax.grad(loss_of(model), has_aux=True)(params, nothing, batch)
    return grads, stats


def neurons_of(
    trainer: Trainer, params: Any, batch_stats: Any, masks: Any, batch: Any
) -> dict[str, Neurons]:
    """Measure the neurons of each sparse kernel that a normalisation follows, by path.

    Neurons with one input or none are all 0: their normalisation leaves nothing to
    learn but a sign. Of ``batch_stats`` only the structure matters.
    """
    grads, stats = _measure(trainer.model, params, batch_stats, batch)
    flat = functools.partial(traverse_util.flatten_dict, sep="/")
    params, grads, stats, masks = map(flat, (params, grads, stats, masks))
    found = {}
    for path, norm in trainer.links.items():
        if not isinstance(masks[path], jax.Array):
            continue
        mask = np.asarray(masks[path])
        inputs = tuple(range(mask.ndim - 1))
        norms = (
            np.sqrt(np.sum(np.square(mask * np.asarray(x[path], float)), axis=inputs))
            for x in (params, grads)
        )
        deviation = np.sqrt(np.asarray(stats[f"{norm}/var"], float))
        fan_in = mask.sum(axis=inputs, dtype=float)
        neurons = Neurons(fan_in, deviation, *norms)
        found[path] = Neurons(*(np.where(fan_in > 1, x, 0.0) for x in neurons))
    return found


def exponent(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Return the slope of one logarithm on another, by least squares within layers.

    Args:
      pairs: for each layer the independent and the dependent numbers; entries with a 0
        in either are left out.

    Returns:
      The exponent; None if nothing differs within a layer.

    >>> x = np.array([1.0, 2.0, 4.0, 9.0])
    >>> y = np.array([3.0, 6.0, 12.0, 0.0])
    >>> exponent([(x, 7 * y**2), (x, y**2)])
    2.0
    """
    above, below = 0.0, 0.0
    for pair in pairs:
        alive = np.all([numbers > LEAST for numbers in pair], axis=0)
        if alive.any():
            x, y = (np.log(numbers[alive]) for numbers in pair)
            x, y = x - x.mean(), y - y.mean()
            above, below = above + float(x @ y), below + float(x @ x)
    return above / below if below > 0.0 else None


class Course(NamedTuple):
    """The measurements of one run.

    Attributes:
      exponents: for each moment one for each of ``NUMBERS``.
      jumps: for each update of the masks, log ratios (after over before) of the square
        root of fan-in and of the deviation, for neurons whose fan-in it changed.
    """

    exponents: list[dict[str, float | None]]
    jumps: list[tuple[np.ndarray, np.ndarray]]


def follow(trainer: Trainer, rate: float, seed: int) -> Course:
    """Train, and measure at the moments, and before and after each update."""
    train = trainer.network.data.train
    batch = train.images[:IMAGES], train.labels[:IMAGES]
    moments = {round(share * trainer.steps) for share in MOMENTS}
    exponents, jumps = [], []

    def layers_of(params: Any, masks: Any) -> dict[str, Neurons]:
        return neurons_of(trainer, params, batch_stats, masks, batch)

    def note(step: int, params: Any, masks: Any) -> None:
        if step in moments:
            layers = layers_of(params, masks).values()
            exponents.append(
                {
                    name: exponent(
                        [(layer.fan_in, getattr(layer, name)) for layer in layers]
                    )
                    for name in NUMBERS
                }
            )

    params, batch_stats, opt_state = trainer.start(rate, seed)
    masks = so.get_masks(opt_state)
    note(0, params, masks)
    for step, (now, seen) in enumerate(trainer.schedule(rate, seed), 1):
        # The step donates its arguments.
        before = jax.tree.map(jnp.copy, (params, masks))
        params, batch_stats, opt_state, _ = trainer.step(
            params, batch_stats, opt_state, now, seen
        )
        masks = so.get_masks(opt_state)
        same = jax.tree.map(jnp.array_equal, before[1], masks)
        if not all(jax.tree.leaves(same)):
            jumps.append(jump(layers_of(*before), layers_of(params, masks)))
        note(step, params, masks)
    return Course(exponents, jumps)


def jump(
    before: Mapping[str, Neurons], after: Mapping[str, Neurons]
) -> tuple[np.ndarray, np.ndarray]:
    """Measure an update's effect on the neurons whose fan-in it changes.

    Returns log ratios, after over before: of the square root of fan-in, and of the
    deviation.
    """
    said, measured = [], []
    for path, old in before.items():
        new = after[path]
        numbers = (old.fan_in, new.fan_in, old.deviation, new.deviation)
        kept = np.all([x > LEAST for x in numbers], axis=0)
        kept &= old.fan_in != new.fan_in
        said.append(0.5 * np.log(new.fan_in[kept] / old.fan_in[kept]))
        measured.append(np.log(new.deviation[kept] / old.deviation[kept]))
    return np.concatenate(said), np.concatenate(measured)


def table_of_exponents(
    courses: Mapping[str, Sequence[Course]],
) -> list[dict[str, Any]]:
    """Return a row for each run and moment: means over the seeds."""
    rows = []
    for name, runs in courses.items():
        for index, share in enumerate(MOMENTS):
            row: dict[str, Any] = {"run": name, "share_of_training": share}
            for number in NUMBERS:
                found = [course.exponents[index][number] for course in runs]
                known = [x for x in found if x is not None]
                row[number] = float(np.mean(known)) if known else None
                several = len(known) > 1
                row[f"{number}_sd"] = float(np.std(known, ddof=1)) if several else None
            rows.append(row)
    return rows


def table_of_jumps(courses: Mapping[str, Sequence[Course]]) -> list[dict[str, Any]]:
    """Return a row for each run whose masks change, over all updates of all seeds.

    ``follows`` is the slope of the deviation's log ratio on that of the square root of
    fan-in, by least squares through 0. SET takes an optimizer step along with the
    update, RigL does not.
    """
    rows = []
    for name, runs in courses.items():
        jumps = [jump for course in runs for jump in course.jumps]
        if jumps:
            said, measured = (np.concatenate(x) for x in zip(*jumps, strict=True))
            rows.append(
                {
                    "run": name,
                    "changes": len(jumps),
                    "neurons": len(said),
                    "said_by_fan_in": float(np.sqrt(np.mean(said**2))),
                    "measured": float(np.sqrt(np.mean(measured**2))),
                    "follows": float(said @ measured / (said @ said)),
                }
            )
    return rows


def main(options: harness.Options) -> None:
    """Run the study."""
    report = harness.Report("studies.neuron_scales", options)
    available, courses = networks(options.quick), {}
    for condition, rate in RUNS[:1] if options.quick else RUNS:
        if options.quick:
            condition = condition._replace(sparsity=0.5)
        trainer = Trainer(available[condition.network], condition, "none")
        seeds = range(2 if options.quick else SEEDS)
        courses[condition.name] = [follow(trainer, rate, seed) for seed in seeds]
        print(f"  {condition.name}", flush=True)
    rows = table_of_exponents(courses)
    report.listing("exponents of fan-in", rows, kind="exponents")
    jumps = table_of_jumps(courses)
    report.listing("changes of the masks", jumps, kind="jumps")
    for row in jumps:
        what = f"{row['run']}: change of the deviation / what the fan-in says"
        report.claim(what, row["follows"])
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)

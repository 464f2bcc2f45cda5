"""The papers' ways to train a ResNet-50 on ImageNet, as frozen configurations.

A comment after each choice gives its source:

  [RigL]   Evci et al., Rigging the lottery, 2020 (arXiv 1911.11134)
  [code]   the code published with it
  [SO]     Adnan et al., SparseOpt, 2026 (arXiv 2605.27541)
  [ours]   in none of them
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import optax

import sparseopt_jax as so
from examples.common.lengths import stretched, total_steps, warmed_up, warmup_steps

Method = Literal["dense", "static", "set", "rigl"]
Distribution = Literal["uniform", "erdos_renyi", "erdos_renyi_kernel"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to train; the defaults are what the recipes have in common.

    Attributes:
      method: sparse training method, or dense.
      sparseopt: whether gradients are corrected per neuron.
      sparsity: fraction of zeros.
      distribution: how the active weights are distributed over the layers.
      epochs: passes over the training images.
      batch_size: images per optimizer step, over all devices.
      learning_rate: the peak for a batch of 256, scaled in proportion to the batch.
      warmup_epochs: epochs of linear warm-up.
      warmup_from: learning rate of the first step.
      decay_epochs: epochs at which the learning rate is divided by 10; if empty, it
        follows a cosine instead.
      final_learning_rate: last value of the cosine.
      momentum: momentum of SGD.
      nesterov: whether to use Nesterov momentum.
      weight_decay: coefficient of the L2 term, on kernels only.
      label_smoothing: fraction of the target spread over all classes.
      every: steps between updates of the masks; None for 100 at a batch of 4096, and
        the same number of images at any other.
      drop_fraction: fraction of the active weights replaced at the first update.
      stop: fraction of the training after which the masks are frozen.
    """

    method: Method
    sparseopt: bool = False
    sparsity: float = 0.9
    distribution: Distribution = "erdos_renyi_kernel"
    epochs: float = 100.0
    batch_size: int = 4096  # [RigL]
    learning_rate: float = 0.1  # [RigL], 1.6 at 4096; [SO]
    warmup_epochs: float = 5.0  # [RigL], [SO]
    warmup_from: float = 0.0
    decay_epochs: tuple[float, ...] = ()
    final_learning_rate: float = 0.0
    momentum: float = 0.9  # [RigL]
    nesterov: bool = True  # [code]; [SO] does not say
    weight_decay: float = 1e-4  # [RigL]; [SO] does not say
    label_smoothing: float = 0.1  # [RigL]; [SO] does not say
    every: int | None = None  # [RigL]; [SO] does not say
    drop_fraction: float = 0.3  # [RigL]; [SO] does not say
    stop: float = 0.75  # [RigL]; [SO] does not say

    def __post_init__(self) -> None:
        so.static(self.sparsity, distribution=self.distribution)  # raises
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if self.sparseopt and self.method == "dense":
            raise ValueError(
                "sparseopt must be False for method dense: it corrects a sparse network"
            )

    @property
    def peak(self) -> float:
        """Return the learning rate after warm-up."""
        return self.learning_rate * self.batch_size / 256


_STEPS = Recipe("dense", decay_epochs=(30.0, 70.0, 90.0))  # [RigL]
_COSINE = Recipe(
    "rigl",
    sparseopt=True,
    batch_size=4096,  # [ours]: [SO] gives the rate for any batch
    warmup_from=1e-5,  # [SO]
    final_learning_rate=1e-5,  # [SO]
    nesterov=False,  # [ours]
    distribution="erdos_renyi_kernel",  # [ours]
)

RECIPES = {
    "dense": _STEPS,  # [RigL]: top-1 76.8 %
    "rigl": dataclasses.replace(  # [RigL]: 74.6 % at 0.8, 72.0 % at 0.9
        _STEPS, method="rigl", distribution="uniform"
    ),
    "rigl_erk": dataclasses.replace(  # [RigL]: 75.1 % at 0.8, 73.0 % at 0.9
        _STEPS, method="rigl", distribution="erdos_renyi_kernel"
    ),
    # [SO]: at 0.9, 0.95, 0.97
    "sparseopt_90": dataclasses.replace(_COSINE, epochs=90.0),  # 74.41, 72.93, 71.15 %
    "sparseopt_180": dataclasses.replace(_COSINE, epochs=180.0),  # 75.06, 73.62, 72.65
    "sparseopt_270": dataclasses.replace(_COSINE, epochs=270.0),  # 75.26, 73.95, 72.66
}


def lengthened(recipe: Recipe, multiplier: float) -> Recipe:
    """Lengthen a recipe's training; ``every`` is unchanged [RigL].

    Args:
      recipe: the recipe.
      multiplier: 5 is RigL's 5x.

    Returns:
      The recipe with epochs, warm-up and decay multiplied.

    Raises:
      ValueError: if the multiplier is not above 0.
    """
    return dataclasses.replace(
        stretched(recipe, multiplier),
        decay_epochs=tuple(multiplier * epoch for epoch in recipe.decay_epochs),
    )


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> optax.Schedule:
    """Return a linear warm-up followed by divisions by 10 or a cosine."""
    total = total_steps(recipe, steps_per_epoch)
    warmup = warmup_steps(recipe, steps_per_epoch)
    if recipe.decay_epochs:
        after = optax.piecewise_constant_schedule(
            recipe.peak,
            {
                max(0, round(epoch * steps_per_epoch) - warmup): 0.1
                for epoch in recipe.decay_epochs
            },
        )
    else:
        after = optax.cosine_decay_schedule(
            recipe.peak,
            decay_steps=total - warmup,
            alpha=recipe.final_learning_rate / recipe.peak,
        )
    return warmed_up(after, recipe.warmup_from, recipe.peak, warmup)


def make_topology(recipe: Recipe, steps_per_epoch: int) -> so.Topology:
    """Return the topology of a recipe.

    Args:
      recipe: a recipe with a sparse method.
      steps_per_epoch: optimizer steps in an epoch.

    Returns:
      The topology.
    """
    if recipe.method == "static":
        return so.static(recipe.sparsity, distribution=recipe.distribution)
    every = recipe.every or max(1, round(100 * 4096 / recipe.batch_size))
    stop = max(2, round(recipe.stop * total_steps(recipe, steps_per_epoch)))
    return {"set": so.set_, "rigl": so.rigl}[recipe.method](
        recipe.sparsity,
        every=every,
        # Not at step 0: the gradients of blocks that start as their shortcuts are zero
        # there, and RigL would grow by index.
        start=min(every, stop - 1),
        stop=stop,
        drop_fraction=recipe.drop_fraction,
        distribution=recipe.distribution,
        track_explored=True,
    )


def make_optimizer(
    recipe: Recipe, steps_per_epoch: int, *, seed: int, accumulate: int = 1
) -> optax.GradientTransformation:
    """Return SGD, sparse unless the recipe is dense.

    Args:
      recipe: the recipe.
      steps_per_epoch: optimizer steps in an epoch.
      seed: seed of the topology.
      accumulate: micro-batches per step. Their gradients are averaged before the
        optimizer, and its topology, sees them.

    Returns:
      The optimizer; ``update`` is called for every micro-batch.
    """
    inner = optax.chain(
        so.scale_by_sparseopt() if recipe.sparseopt else optax.identity(),
        optax.add_decayed_weights(recipe.weight_decay, mask=_is_kernel),
        optax.sgd(
            learning_rate(recipe, steps_per_epoch),
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
        ),
    )
    if recipe.method == "dense":
        tx = optax.with_extra_args_support(inner)
    else:
        tx = so.sparsify(inner, make_topology(recipe, steps_per_epoch), key=seed)
    if accumulate > 1:
        # Outermost: inside sparsify, every micro-batch would count as a step.
        tx = optax.MultiSteps(tx, accumulate).gradient_transformation()
    return tx


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

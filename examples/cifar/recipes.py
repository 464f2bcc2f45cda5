"""The papers' ways to train on CIFAR, as frozen configurations.

A comment after each choice gives its source:
  [SO]    Adnan et al., SparseOpt, 2026 (arXiv 2605.27541)
  [lab]   code of its authors' earlier runs with this network and data set
  [RigL]  Evci et al., Rigging the lottery, 2020 (arXiv 1911.11134)
  [code]  the code published with RigL
  [HAM]   Jacobs et al., HAM, 2026 (arXiv 2506.02630)
  [ours]  in none of them

Accuracies in comments are the papers' own, in percent. The same for all recipes, and
[ours]: pixels are standardised by the training images' mean and deviation (RigL's code:
each image by its own), kernels are initialised from Kaiming's normal ([lab]; RigL's
paper does not say), and images that do not fill a batch are left out of an epoch.
"""

import collections
import dataclasses
import math
from typing import Any, Literal

import jax
import optax

import sparseopt_jax as so
from examples.common.augment import Padding
from examples.common.lengths import total_steps, warmed_up, warmup_steps

Network = Literal["resnet20", "wrn22_2"]
Method = Literal["dense", "static", "set", "rigl"]
Correction = Literal["none", "fan_in", "batch_variance"]
Distribution = Literal["uniform", "erdos_renyi", "erdos_renyi_kernel"]
DatasetName = Literal["cifar10", "cifar100", "fashion_mnist", "glyphs", "glyphs16"]
HAM_ALPHA = 200.0  # [HAM]
HAM_BETA = 16e-3  # [HAM], for CIFAR-100; second-hand


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to train; the defaults are those of the runs with ResNet-20.

    Attributes:
      dataset: data set to train on.
      network: network to train.
      width: channels of the first stage.
      blocks: residual blocks in each of the three stages.
      dropout: fraction of the activations dropped in training; wrn22_2 only.
      method: sparse training method, or dense.
      correction: per-neuron scaling of the gradient: none, SparseOpt's factors, or the
        variances that Batch Normalization measures.
      ham: whether a multiplicative step follows each step.
      sparsity: fraction of zeros over all kernels.
      distribution: how the active weights are distributed over the layers.
      epochs: passes over the training images.
      batch_size: images per step.
      learning_rate: peak learning rate; it is not scaled with the batch size.
      warmup_epochs: epochs of linear warm-up from 0.
      decay_at: fractions of the training at which the learning rate is divided by 5,
        all after the warm-up; if empty, it follows a cosine instead.
      final_learning_rate: last value of the cosine.
      momentum: momentum of SGD.
      nesterov: whether to use Nesterov momentum.
      weight_decay: coefficient of the L2 term, on kernels only.
      padding: padding of an image before it is cropped.
      every: steps between updates of the masks.
      drop_fraction: fraction of the active weights replaced at the first update; it
        follows a cosine.
      stop: fraction of the training after which the masks are frozen.
    """

    dataset: DatasetName = "cifar100"  # [SO]
    network: Network = "resnet20"  # [SO]
    width: int = 16  # [SO], which calls it 1
    blocks: int = 3
    dropout: float = 0.0
    method: Method = "rigl"
    correction: Correction = "none"
    ham: bool = False
    sparsity: float = 0.9  # [SO]: also 0.95, 0.97
    distribution: Distribution = "erdos_renyi_kernel"  # [ours]: [SO] does not say
    epochs: float = 100.0  # [SO]: also 200, 300, 500
    batch_size: int = 128  # [lab]; [SO] does not say
    learning_rate: float = 0.1  # [SO]
    warmup_epochs: float = 5.0  # [SO]
    decay_at: tuple[float, ...] = ()
    final_learning_rate: float = 1e-6  # [SO]
    momentum: float = 0.9  # [lab]
    nesterov: bool = False  # [ours]
    weight_decay: float = 5e-4  # [lab]; on kernels only: [ours]
    padding: Padding = "zeros"  # [ours]; the crop itself and the flip: [lab]
    every: int = 100  # [RigL]; [SO] does not say
    drop_fraction: float = 0.3  # [RigL]; [SO] does not say
    stop: float = 0.75  # [RigL]; [SO] does not say

    def __post_init__(self) -> None:
        so.static(self.sparsity, distribution=self.distribution)  # raises
        for name in ("width", "blocks", "batch_size", "every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("epochs", "learning_rate"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup_epochs", "final_learning_rate", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be at least 0, got {getattr(self, name)}"
                )
        for name in ("momentum", "dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0.0 <= self.drop_fraction <= 1.0:
            raise ValueError(
                f"drop_fraction must be in [0, 1], got {self.drop_fraction}"
            )
        if not 0.0 < self.stop <= 1.0:
            raise ValueError(
                f"stop must be in (0, 1], got {self.stop}; pass --method static for a "
                "topology that never changes"
            )
        if not all(0.0 < share < 1.0 for share in self.decay_at):
            raise ValueError(
                f"decay_at must be fractions in (0, 1), got {self.decay_at}"
            )
        warmup = self.warmup_epochs / self.epochs
        if not all(share > warmup for share in self.decay_at):
            raise ValueError(
                f"decay_at must be after the warm-up, which takes {warmup:.3g} of the "
                f"training, got {self.decay_at}"
            )
        if self.dropout and self.network == "resnet20":
            raise ValueError(f"dropout must be 0 for resnet20, got {self.dropout}")
        if self.correction != "none" and self.method == "dense":
            raise ValueError(
                f"correction must be none for method dense, got {self.correction}; a "
                "correction needs a sparse network"
            )


_R20 = Recipe()
_WRN = Recipe(
    dataset="cifar10",  # [RigL]
    network="wrn22_2",  # [RigL]
    width=32,  # [RigL]
    dropout=0.3,  # [code]
    sparsity=0.8,
    distribution="uniform",  # [RigL], except where it says ERK
    epochs=250.0,  # [code]: 97,656 steps
    warmup_epochs=0.0,  # [code]
    decay_at=(30_000 / 97_656, 60_000 / 97_656, 90_000 / 97_656),  # [code]
    nesterov=True,  # [code]
    padding="mirror",  # [code]
    stop=75_000 / 97_656,  # [code]
)

RECIPES = {
    "dense_cifar100_r20": dataclasses.replace(_R20, method="dense"),
    "static_cifar100_r20": dataclasses.replace(_R20, method="static"),
    "set_cifar100_r20": dataclasses.replace(_R20, method="set"),
    # [SO], 100 / 200 / 300 / 500 epochs: 60.66 / 62.93 / 63.77 / 64.66 at 0.9,
    # 55.80 / 59.22 / 60.00 / 61.45 at 0.95, 52.53 / 54.87 / 56.50 / 57.32 at 0.97
    "rigl_cifar100_r20": _R20,
    # [SO]: 61.34 / 63.12 / 64.30 / 65.22 at 0.9, 56.80 / 59.91 / 60.67 / 61.74 at 0.95,
    # 53.95 / 57.01 / 57.62 / 58.35 at 0.97
    "sparseopt_cifar100_r20": dataclasses.replace(_R20, correction="fan_in"),
    "batch_variance_cifar100_r20": dataclasses.replace(  # [ours]
        _R20, correction="batch_variance"
    ),
    # [SO]: 57.31 / 60.41 / 60.91 / 62.20
    "sparseopt_ham_cifar100_r20": dataclasses.replace(
        _R20, correction="fan_in", ham=True, sparsity=0.95
    ),
    "dense_wrn22_2": dataclasses.replace(_WRN, method="dense"),  # [RigL]: 94.1
    "static_wrn22_2": dataclasses.replace(_WRN, method="static"),  # [RigL]: 91.2
    "set_wrn22_2": dataclasses.replace(_WRN, method="set"),  # [RigL]: 92.7
    "rigl_wrn22_2": _WRN,  # [RigL]: 92.6
    "rigl_erk_wrn22_2": dataclasses.replace(  # [RigL]: 93.1
        _WRN, distribution="erdos_renyi_kernel"
    ),
    "sparseopt_wrn22_2": dataclasses.replace(_WRN, correction="fan_in"),  # [ours]
}


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> optax.Schedule:
    """Return a linear warm-up followed by divisions by 5 or a cosine."""
    total = total_steps(recipe, steps_per_epoch)
    warmup = warmup_steps(recipe, steps_per_epoch)
    peak = recipe.learning_rate
    if recipe.decay_at:
        steps = (max(1, round(share * total) - warmup) for share in recipe.decay_at)
        # In the shortest runs several of them fall on one step.
        times = collections.Counter(steps)
        after = optax.piecewise_constant_schedule(
            peak, {step: 0.2**count for step, count in times.items()}
        )
    else:
        after = optax.cosine_decay_schedule(
            peak, decay_steps=total - warmup, alpha=recipe.final_learning_rate / peak
        )
    return warmed_up(after, 0.0, peak, warmup)


def make_topology(recipe: Recipe, steps_per_epoch: int) -> so.Topology | None:
    """Return the topology; None for a dense network."""
    if recipe.method == "dense":
        return None
    if recipe.method == "static":
        return so.static(recipe.sparsity, distribution=recipe.distribution)
    return {"set": so.set_, "rigl": so.rigl}[recipe.method](
        recipe.sparsity,
        every=recipe.every,
        stop=max(1, round(recipe.stop * total_steps(recipe, steps_per_epoch))),
        drop_fraction=recipe.drop_fraction,
        distribution=recipe.distribution,
        track_explored=True,
    )


def make_optimizer(
    recipe: Recipe,
    steps_per_epoch: int,
    correction: optax.GradientTransformation,
    *,
    key: jax.typing.ArrayLike,
) -> optax.GradientTransformation:
    """Return SGD, sparse unless the recipe is dense, with masks updated by the host.

    Args:
      recipe: the recipe.
      steps_per_epoch: steps in an epoch.
      correction: per-neuron scaling of the gradient.
      key: key of the topology.

    Returns:
      The optimizer.
    """
    schedule = learning_rate(recipe, steps_per_epoch)
    inner = optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=_is_kernel),
        optax.sgd(schedule, momentum=recipe.momentum, nesterov=recipe.nesterov),
    )
    if recipe.ham:
        inner = so.ham(inner, schedule, alpha=HAM_ALPHA, beta=HAM_BETA)
    # Before weight decay: it is the gradient that Batch Normalization amplifies.
    inner = optax.chain(correction, inner)
    topology = make_topology(recipe, steps_per_epoch)
    if topology is None:
        return optax.with_extra_args_support(inner)
    return so.sparsify(inner, topology, key=key, host_updates=topology.moves)


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

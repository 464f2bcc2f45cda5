"""The topologies that most others are made of: static, SET, RigL.

A method is a composition of parts, so most others are one of these with some parts
replaced, as MEST, SRigL and SNFS here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparseopt_jax import scores
from sparseopt_jax.distributions import Distribution
from sparseopt_jax.eligibility import Where
from sparseopt_jax.gradient_memory import GradientMomentum, MeanGradient
from sparseopt_jax.neurons import Dims
from sparseopt_jax.schedules import Schedule, UpdateSchedule
from sparseopt_jax.structures import ConstantFanIn, Structures, Unstructured
from sparseopt_jax.topology import Topology

_ANY_WEIGHTS = Unstructured()


def static(
    sparsity: float | None = None,
    *,
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    structure: Structures = _ANY_WEIGHTS,
    where: Where | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
) -> Topology:
    """A random topology that never changes.

    Args:
      sparsity: fraction of zeros over all sparse layers, in [0, 1). May be left out,
        and is not used, if ``masks`` are given; left out where a structure fixes it.
      distribution: ``"uniform"`` (first layer dense), ``"erdos_renyi"``,
        ``"erdos_renyi_kernel"``, a mapping from globs over paths to sparsities (the
        first match decides, ``sparsity`` holds for the rest), or a function of the
        layers and the sparsity that returns active weights by path.
      structure: what may be active within a layer: ``Unstructured()``, ``NM(2, 4)``,
        ``Block((4, 4))``, ``Channel()``, ``ConstantFanIn()``, or a mapping from globs
        over paths to them. Counts are rounded to what it can hold.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense. Biases,
        normalisations and embeddings are dense in any case; to choose freely, give
        ``masks``.
      masks: masks to start from, in the structure of the parameters: bool arrays,
        ``optax.MaskedNode()`` or None at dense leaves; in a later one of ``phases``,
        ``"kept"`` for those that are handed on.
      dims: the axes of kernels that do not follow the Flax convention, above all
        stacked ones: a ``NeuronDims``, a mapping from globs over paths to them, or a
        function of path and leaf.
      min_fan_in: active weights that every neuron keeps at least.

    Returns:
      The topology.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution, masks that
        are not bool, a ``min_fan_in`` below 0.
      TypeError: for an argument of another kind.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.static(0.9, distribution={"head/*": 0.5}).sparsity
      0.9
    """
    return Topology(
        name="static",
        sparsity=sparsity,
        distribution=distribution,
        structure=structure,
        where=where,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
    )


def set_(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    drop_fraction: float = 0.3,
    decay: str | Schedule = "cosine",
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    structure: Structures = _ANY_WEIGHTS,
    where: Where | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    track_explored: bool = False,
) -> Topology:
    """SET: drops the smallest weights, grows random ones, after a gradient step.

    At every step t with start <= t < stop and (t - start) divisible by ``every`` the
    optimizer takes its step, and then the masks change.

    Args:
      sparsity: as in ``static``.
      every: steps between changes, at least 1.
      stop: first step without changes.
      start: first step with a change.
      drop_fraction: fraction of the active weights replaced at first, in [0, 1].
      decay: how it falls until ``stop``: ``"cosine"``, ``"linear"``,
        ``"inverse_power"``, ``"constant"``; or any schedule of optax, which then gives
        the fraction itself.
      distribution: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: record which weights have ever been active, for ``metrics``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``static``, and for ``every < 1``, ``stop <= start``, a fraction
        outside [0, 1] or an unknown decay.
      TypeError: as ``static``.

    Note:
      The published method removes a constant fraction once per epoch; the cosine is
      RigL's, and the default here so that both share one schedule.

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive
      sparse connectivity inspired by network science, 2018.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.set_(0.9, every=100, stop=1000).replaces_step
      False
    """
    return Topology(
        name="set",
        sparsity=sparsity,
        distribution=distribution,
        structure=structure,
        where=where,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        schedule=UpdateSchedule(every, start, stop, drop_fraction, decay),
        drop=scores.magnitude,
        grow=scores.random,
        replaces_step=False,
        track_explored=track_explored,
    )


def rigl(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    drop_fraction: float = 0.3,
    decay: str | Schedule = "cosine",
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    structure: Structures = _ANY_WEIGHTS,
    where: Where | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    averaged_steps: int = 1,
    corrected_growth: bool = False,
    track_explored: bool = False,
) -> Topology:
    """RigL: drops the smallest weights, grows where the dense gradient is largest.

    At every step t with start <= t < stop and (t - start) divisible by ``every`` the
    masks change instead of the weights: the optimizer's counters and schedules go on,
    its moments and the surviving weights stay. The paper has every = 100 at batch
    4096, drop_fraction = 0.3 and stop at 75 % of training.

    Args:
      sparsity: as in ``static``.
      every: steps between changes, at least 1 (delta T).
      stop: first step without changes (T_end).
      start: first step with a change.
      drop_fraction: fraction of the active weights replaced at first (alpha).
      decay: how it falls until ``stop``: ``"cosine"``, ``"linear"``,
        ``"inverse_power"``, ``"constant"``; or any schedule of optax, which then gives
        the fraction itself.
      distribution: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      averaged_steps: steps whose gradients are averaged for growth, that of the change
        being the last; more than one keeps a float32 array of the kernel's size.
      corrected_growth: grow by the gradient times SparseOpt's factors instead of the
        gradient itself. The authors of SparseOpt advise against it: it explores less
        (arXiv 2605.27541, figures 5 and 10).
      track_explored: record which weights have ever been active, for ``metrics``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``.
      TypeError: as ``static``.

    References:
      Evci et al., Rigging the lottery: making all tickets winners, 2020
      (arXiv 1911.11134), algorithm 1.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.rigl(0.9, every=100, stop=750).replaces_step
      True
    """
    return Topology(
        name="rigl",
        sparsity=sparsity,
        distribution=distribution,
        structure=structure,
        where=where,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        schedule=UpdateSchedule(every, start, stop, drop_fraction, decay),
        drop=scores.magnitude,
        grow=scores.gradient,
        replaces_step=True,
        memory=MeanGradient(averaged_steps) if averaged_steps != 1 else None,
        corrected_growth=corrected_growth,
        track_explored=track_explored,
    )


def mest(
    sparsity: float | None = None,
    *,
    gradient_weight: float = 1.0,
    **options: Any,
) -> Topology:
    """MEST: drops the least |w| + weight |gradient|, grows random weights.

    Args:
      sparsity: as in ``static``.
      gradient_weight: weight of the gradient in the drop score (lambda). The default is
        ours.
      **options: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``, and for a weight below 0.
      TypeError: as ``set_``.

    Note:
      The paper's soft memory bound, under which more weights than the budget are active
      between a growth and the drop after it, is left out.

    References:
      Yuan et al., MEST: accurate and fast memory-economic sparse training framework on
      the edge, 2021 (arXiv 2110.14032).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.mest(0.9, gradient_weight=0.5, every=100, stop=1000).name
      'mest'
    """
    if not gradient_weight >= 0:
        raise ValueError(f"gradient_weight must be at least 0, got {gradient_weight}")
    return dataclasses.replace(
        set_(sparsity, **options),
        name="mest",
        drop=scores.magnitude_and_gradient(gradient_weight),
    )


def srigl(
    sparsity: float | None = None,
    *,
    gamma_sal: float = 0.3,
    **options: Any,
) -> Topology:
    """SRigL: RigL with a constant fan-in, that removes neurons of little use.

    A layer drops its smallest weights; neurons with fewer than ``gamma_sal`` times
    their fan-in of salient weights (kept, or among those with the largest gradients)
    are ablated for good; the layer's budget is divided evenly between the others, which
    grow their largest gradients.

    Args:
      sparsity: as in ``static``.
      gamma_sal: least fraction of salient weights, in [0, 1]; 0 ablates nobody.
      **options: as in ``rigl``, without ``structure``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``rigl``, and for a ``gamma_sal`` outside [0, 1].
      TypeError: as ``rigl``.

    Note:
      Where a budget is no multiple of the neurons that are left, the remainder is left
      out, so that fan-ins stay equal. A neuron with an infinite or NaN weight stays.

    References:
      Lasby et al., Dynamic sparse training with structured sparsity, ICLR 2024
      (arXiv 2305.02299).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.srigl(0.9, every=100, stop=1000).structure
      ConstantFanIn()
    """
    return dataclasses.replace(
        rigl(sparsity, structure=ConstantFanIn(), **options),
        name="srigl",
        ablation=gamma_sal,
    )


def snfs(
    sparsity: float | None = None,
    *,
    momentum: float = 0.9,
    **options: Any,
) -> Topology:
    """SNFS: sparse momentum, which grows by it and shares weights out between layers.

    A mean of all gradients is kept for every weight. Layers drop their smallest
    weights; what all have dropped is grown in layers in proportion to the mean size of
    the momentum of their active weights, where that momentum is largest.

    Args:
      sparsity: as in ``static``.
      momentum: decay of the mean of gradients, in [0, 1).
      **options: as in ``set_``, without ``structure``.

    Returns:
      The topology. The number of active weights is kept over all layers together, not
      in each.

    Raises:
      ValueError: as ``set_``, and for a momentum outside [0, 1).
      TypeError: as ``set_``.

    Note:
      The momentum is the topology's own, of dense gradients, and costs a float32 for
      each weight, whatever the optimizer. The authors share that of SGD.

    References:
      Dettmers and Zettlemoyer, Sparse networks from scratch, 2019 (arXiv 1907.04840).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.snfs(0.9, every=100, stop=1000).keeps_counts
      False
    """
    return dataclasses.replace(
        set_(sparsity, **options),
        name="snfs",
        grow=scores.gradient,
        memory=GradientMomentum(momentum),
        redistributes=True,
    )


def set_itop(
    sparsity: float | None = None,
    *,
    stop: int,
    every: int = 1500,
    drop_fraction: float = 0.5,
    **options: Any,
) -> Topology:
    """SET with the settings of ITOP: rarer and larger changes, exploration tracked.

    Args:
      sparsity: as in ``static``.
      stop: as in ``set_``.
      every: steps between changes; the authors' for CIFAR at batch 128.
      drop_fraction: as in ``set_``; the authors'.
      **options: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``.
      TypeError: as ``set_``.

    References:
      Liu et al., Do we actually need dense over-parameterization? In-time
      over-parameterization in sparse training, 2021 (arXiv 2102.02887), and its
      published code.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.set_itop(0.95, stop=97_000).schedule.every
      1500
    """
    itop = {"every": every, "drop_fraction": drop_fraction, "track_explored": True}
    topology = set_(sparsity, stop=stop, **(itop | options))
    return dataclasses.replace(topology, name="set_itop")


def rigl_itop(
    sparsity: float | None = None,
    *,
    stop: int,
    every: int = 4000,
    drop_fraction: float = 0.5,
    **options: Any,
) -> Topology:
    """RigL with the settings of ITOP: as ``set_itop``, for CIFAR and ImageNet.

    Args:
      sparsity: as in ``static``.
      stop: as in ``rigl``.
      every: steps between changes; the authors'.
      drop_fraction: as in ``rigl``; the authors'.
      **options: as in ``rigl``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``rigl``.
      TypeError: as ``rigl``.

    References:
      As ``set_itop``.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.rigl_itop(0.9, stop=400_000).track_explored
      True
    """
    itop = {"every": every, "drop_fraction": drop_fraction, "track_explored": True}
    topology = rigl(sparsity, stop=stop, **(itop | options))
    return dataclasses.replace(topology, name="rigl_itop")

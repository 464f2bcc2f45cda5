"""The topologies that most others are made of: static, SET, RigL.

A method is a composition of parts, so most others are one of these with some parts
replaced: each has a short file of its own.
"""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.arguments.checks import integer
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.gradient_memory import MeanGradient
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule, UpdateSchedule

_ANY_WEIGHTS = Unstructured()


def static(
    sparsity: float | None = None,
    *,
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    first: First = True,
    structure: Structures = _ANY_WEIGHTS,
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    track_explored: bool = False,
) -> Rewiring:
    """A random topology that never changes.

    Args:
      sparsity: fraction of zeros over all sparse layers, in [0, 1). May be left out,
        and is not used, if ``masks`` are given; left out where a structure fixes it.
      distribution: ``"uniform"`` (first layer dense), ``"erdos_renyi"``,
        ``"erdos_renyi_kernel"``, a mapping from globs over paths to sparsities (the
        first match decides, ``sparsity`` holds for the rest), or a function of the
        layers and the sparsity that returns active weights by path.
      first: what ``"uniform"`` keeps dense: a glob over paths or several; None for no
        layer at all. True is the network's first layer where numbers in the paths and
        the widths of the layers tell it; where they do not, that is an error.
      structure: what may be active within a layer: ``Unstructured()``, ``NM(2, 4)``,
        ``Block((4, 4))``, ``Channel()``, ``ConstantFanIn()``, or a mapping from globs
        over paths to them. Counts are rounded to what it can hold.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      include: what is made sparse although it is no kernel by name and neighbours, say
        an embedding that is the head as well: a glob over paths, a sequence of globs,
        or a function of path and leaf. ``where`` still excludes.
      masks: masks to start from, in the structure of the parameters: bool arrays,
        ``optax.MaskedNode()`` or None at dense leaves, as ``so.masks_of(params)``
        takes them from a sparse checkpoint; in a later one of ``phases``, ``"kept"``
        for those that are handed on.
      dims: the axes of kernels that do not follow the Flax convention, above all
        stacked ones: what ``infer_dims`` reads off the model, a ``NeuronDims``, a
        mapping from globs over paths to them, or a function of path and leaf.
      min_fan_in: active weights that every neuron keeps at least.
      track_explored: as in ``set_``, for a phase before one that has it.

    Returns:
      The topology.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution, masks that
        are not bool or have no active weight in a leaf, a ``min_fan_in`` below 0.
      TypeError: for an argument of another kind.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.static(0.9, distribution={"head/*": 0.5}).sparsity
      0.9
    """
    return Rewiring(
        name="static",
        sparsity=sparsity,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        track_explored=track_explored,
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
    first: First = True,
    structure: Structures = _ANY_WEIGHTS,
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    track_explored: bool = False,
) -> Rewiring:
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
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
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
    return Rewiring(
        name="set",
        sparsity=sparsity,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
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
    first: First = True,
    structure: Structures = _ANY_WEIGHTS,
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    averaged_steps: int = 1,
    corrected_growth: bool = False,
    track_explored: bool = False,
) -> Rewiring:
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
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
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
    averaged_steps = integer("averaged_steps", averaged_steps, 1)
    return Rewiring(
        name="rigl",
        sparsity=sparsity,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
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

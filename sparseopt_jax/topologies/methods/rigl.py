"""RigL: growth by the dense gradient."""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.arguments.checks import integer
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.memory import MeanGradient
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule, UpdateSchedule


@method("RigL", "1911.11134")
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
    structure: Structures = Unstructured(),
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    averaged_steps: int = 1,
    corrected_growth: bool = False,
    track_explored: bool = False,
) -> Rewiring:
    """Drop the smallest weights, grow where the dense gradient is largest (RigL).

    At every step t with start <= t < stop and t - start divisible by ``every``, the
    masks are updated instead of the weights: the optimizer's step counters and
    schedules advance, its moments and the surviving weights stay the same. Where other
    state depends on a counter, as in ``reduce_on_plateau``, both stay the same. The
    paper uses ``every=100`` at batch size 4096, ``drop_fraction=0.3``, and ``stop`` at
    75 % of training.

    Args:
      sparsity: as in ``static``.
      every: steps between updates, at least 1 (delta T).
      stop: first step without an update (T_end).
      start: step of the first update.
      drop_fraction: fraction of the active weights replaced at first, in [0, 1]
        (alpha).
      decay: how this fraction falls until ``stop``: ``"cosine"``, ``"linear"``,
        ``"inverse_power"`` or ``"constant"``; or any Optax schedule, which then returns
        the fraction itself.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``. At very high sparsity, and with SparseOpt, 2 keeps
        neurons from losing all their inputs: a rule of ours (docs/when_it_helps.md).
      averaged_steps: number of steps whose gradients are averaged for growth, the last
        being the step of the update; more than 1 stores a float32 for each weight of
        every sparse kernel, active or not.
      corrected_growth: grow by the gradient times SparseOpt's factors. The authors of
        SparseOpt advise against it, because it explores less (arXiv 2605.27541, figures
        5 and 10).
      track_explored: record which weights have ever been active, for ``metrics``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``static``; for ``every < 1``, ``start < 0``, ``stop <= start``, a
        ``drop_fraction`` outside [0, 1], an unknown ``decay``, or ``averaged_steps``
        outside [1, every].
      TypeError: for an argument of the wrong type.

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
        track_explored=track_explored,
        schedule=UpdateSchedule(every, start, stop, drop_fraction, decay),
        drop=scores.magnitude,
        grow=scores.corrected_gradient if corrected_growth else scores.gradient,
        replaces_step=True,
        memory=None if averaged_steps == 1 else MeanGradient(averaged_steps),
    )

"""SET: random growth."""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule, UpdateSchedule


@method("SET", "1707.04780")
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
    structure: Structures = Unstructured(),
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    track_explored: bool = False,
) -> Rewiring:
    """Drop the smallest weights and grow random ones, after a gradient step (SET).

    At every step t with start <= t < stop and t - start divisible by ``every``, the
    optimizer takes its step, and then the masks are updated.

    Args:
      sparsity: as in ``static``.
      every: steps between updates, at least 1.
      stop: first step without an update.
      start: step of the first update.
      drop_fraction: fraction of the active weights replaced at first, in [0, 1].
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
      min_fan_in: as in ``static``.
      track_explored: record which weights have ever been active, for ``metrics``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``static``; for ``every < 1``, ``start < 0``, ``stop <= start``, a
        ``drop_fraction`` outside [0, 1] or an unknown ``decay``.
      TypeError: as ``static``.

    Note:
      The published method replaces a constant fraction once per epoch. The cosine is
      RigL's; it is the default here so that both methods share a schedule.

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
        track_explored=track_explored,
        schedule=UpdateSchedule(every, start, stop, drop_fraction, decay),
        drop=scores.magnitude,
        grow=scores.random,
    )

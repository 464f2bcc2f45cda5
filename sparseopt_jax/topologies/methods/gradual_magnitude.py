"""Gradual magnitude pruning: from dense to sparse along a cubic."""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.layers.distributions import Distribution, First, check_sparsity
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.global_pruning import prune_within
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import (
    Cubic,
    DensitySchedule,
    Followed,
    Schedule,
    UpdateSchedule,
)
from sparseopt_jax.topologies.stages import Drop, Grow


@method("GMP", "1710.01878")
def gradual_magnitude(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    initial_sparsity: float = 0.0,
    schedule: Schedule | None = None,
    scope: str = "layer",
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
    """Prune the smallest weights step by step (gradual magnitude pruning, GMP).

    The masks are updated every ``every`` steps, from ``start`` until before ``stop``.
    The sparsity moves from ``initial_sparsity`` at ``start`` to ``sparsity`` at the
    last update T, by default along the published cubic
    s_f + (s_i - s_f) (1 - (t - start) / (T - start))^3. Pruned weights are grown again
    only if the scheduled sparsity falls. Masks from ``masks`` or a previous phase that
    are sparser than scheduled stay as they are until the schedule reaches them.

    Args:
      sparsity: final fraction of zeros, as in ``static``; leave it out if ``schedule``
        or a structure specifies it.
      every: steps between updates, at least 1.
      stop: first step without an update. The last update before it reaches
        ``sparsity``.
      start: step of the first update.
      initial_sparsity: fraction of zeros until ``start``. The largest of the weights
        passed to ``init`` are kept; random ones if it is given only shapes.
      schedule: the sparsity as a function of the step, such as any Optax schedule; it
        may rise and fall. Its values at ``start`` and ``stop`` replace
        ``initial_sparsity`` and ``sparsity``.
      scope: ``"layer"`` prunes each layer separately to the distribution's numbers,
        ``"global"`` all weights of the network by one threshold.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: the weights to start from, ``so.masks_of(params)`` for those of a sparse
        checkpoint; ``sparsity`` must still be given.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: as in ``set_``.

    Returns:
      The topology. Updates follow the gradient step.

    Raises:
      ValueError: as ``static``; for ``every < 1``, ``start < 0``, ``stop <= start`` or
        an unknown ``scope``; for both ``sparsity`` and ``schedule``, or a ``schedule``
        that has the same value at ``start`` and ``stop``.
      TypeError: for an argument of the wrong type.

    Note:
      The published formula ends at an update, t_0 + n delta t: here the last one before
      ``stop``. With a ``schedule``, this update reaches the value at ``stop``.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017 (arXiv 1710.01878).

    Examples:
      >>> import optax
      >>> import sparseopt_jax as so
      >>> topology = so.gradual_magnitude(0.9, every=100, start=500, stop=2501)
      >>> topology.schedule.steps[-1]
      2500
      >>> linear = optax.linear_schedule(0.0, 0.8, 1000)
      >>> so.gradual_magnitude(schedule=linear, every=50, stop=1001).sparsity
      0.8
    """
    times = UpdateSchedule(every, start, stop, 0.0, "constant")
    start, last = times.steps[0], times.steps[-1]
    if schedule is None:
        progress = Cubic(start, last)
    else:
        if sparsity is not None:
            raise ValueError("pass sparsity or schedule, not both")
        initial_sparsity, sparsity = _ends(schedule, start, times.stop)
        progress = Followed(schedule, initial_sparsity, sparsity, start, last)
    return Rewiring(
        name="gradual_magnitude",
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
        schedule=times,
        density=DensitySchedule(initial_sparsity, progress, by_weights=True),
        drop=scores.magnitude,
        stages=(prune_within(scope), Drop(), Grow()),
    )


def _ends(schedule: Schedule, start: int, stop: int) -> tuple[float, float]:
    """Return the first and the last sparsity of a schedule."""
    first, last = (
        # Rounded, because a schedule computes 0.9 in float32.
        round(check_sparsity(schedule(step), f"schedule({step})"), 6)
        for step in (start, stop)
    )
    if first == last:
        raise ValueError(
            "schedule must have different values at start and stop, got "
            f"{first} at both"
        )
    return first, last

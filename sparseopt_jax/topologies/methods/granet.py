"""GraNet: gradual pruning combined with RigL."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.global_pruning import PruneGlobally
from sparseopt_jax.topologies.methods.rigl import rigl
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Cubic, DensitySchedule, Schedule
from sparseopt_jax.topologies.stages import Drop, Grow


@method("GraNet", "2106.10404")
def granet(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    initial_sparsity: float = 0.5,
    drop_fraction: float = 0.5,
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
    """Prune gradually, and at each update also rewire like RigL (GraNet).

    An update prunes the network to a sparsity that follows a cubic, by one threshold on
    the magnitude of all weights. Then every layer drops a fraction of its smallest
    weights and grows as many where the gradient is largest.

    Args:
      sparsity: final fraction of zeros, as in ``static``.
      every: steps between updates, at least 1.
      stop: first step without an update. The last update before it reaches
        ``sparsity``.
      start: step of the first update.
      initial_sparsity: fraction of zeros at first, in random masks; 0 starts dense.
      drop_fraction: as in ``rigl``; the default is the authors'.
      decay: as in ``rigl``.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: the weights to start from, such as ``so.masks_of(params)``; a random part
        of them if they are denser than ``initial_sparsity`` allows. ``sparsity`` must
        still be given.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      averaged_steps: as in ``rigl``.
      corrected_growth: as in ``rigl``.
      track_explored: as in ``rigl``.

    Returns:
      The topology. Updates replace the gradient step, as in RigL.

    Raises:
      ValueError: as ``rigl``, and for an ``initial_sparsity`` outside [0, 1).
      TypeError: for an argument of the wrong type.

    Note:
      The default ``initial_sparsity`` and ``drop_fraction`` are the authors', and so
      are random first masks: with an initial sparsity above 0, they train sparse from
      scratch. The cubic ends at the last update before ``stop``, as in
      ``gradual_magnitude``. The distribution only decides the total number of active
      weights; the threshold decides how layers share it.

    References:
      Liu et al., Sparse training via boosting pruning plasticity with
      neuroregeneration, 2021 (arXiv 2106.10404).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.granet(0.9, every=100, stop=1000).crosses_layers
      True
    """
    topology = rigl(
        sparsity,
        every=every,
        stop=stop,
        start=start,
        drop_fraction=drop_fraction,
        decay=decay,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        averaged_steps=averaged_steps,
        corrected_growth=corrected_growth,
        track_explored=track_explored,
    )
    steps = topology.schedule.steps  # pyright: ignore
    return dataclasses.replace(
        topology,
        name="granet",
        density=DensitySchedule(initial_sparsity, Cubic(steps[0], steps[-1])),
        stages=(PruneGlobally(), Drop(), Grow()),
    )

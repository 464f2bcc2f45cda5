"""GraNet: gradual pruning, and RigL besides."""

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
    """GraNet: gradual pruning, and at each update RigL besides.

    The network is pruned to a sparsity that follows the cubic, by one threshold on the
    magnitude of all weights; then every layer drops a fraction of its smallest weights
    and grows as many where the gradient is largest.

    Args:
      sparsity: fraction of zeros in the end, as in ``static``.
      every: steps between updates.
      stop: first step without an update. The one before it reaches ``sparsity``.
      start: step of the first update.
      initial_sparsity: fraction of zeros at first, in random masks; 0 starts dense.
        To begin with given weights instead, pass ``masks``, say
        ``so.masks_of(params)``.
      drop_fraction: fraction of the active weights replaced at first, cosine until
        ``stop``.
      decay: as in ``rigl``, in place of the cosine.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      averaged_steps: as in ``rigl``.
      corrected_growth: as in ``rigl``.
      track_explored: as in ``static``.

    Returns:
      The topology. An update replaces the gradient step, as in RigL.

    Raises:
      ValueError: as ``rigl``.
      TypeError: as ``rigl``.

    Note:
      The defaults of the initial sparsity and of the fraction are the authors', and so
      are random first masks: above 0 their run is sparse from scratch. The cubic ends
      at the last update before ``stop``, as in ``gradual_magnitude``. The
      budget over all layers is the distribution's total; its share between layers is
      what the threshold makes of it.

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

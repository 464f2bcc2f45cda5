"""RigL with the settings of ITOP, which explore more weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.methods.rigl import rigl
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule


@method("ITOP", "2102.02887")
def rigl_itop(
    sparsity: float | None = None,
    *,
    stop: int,
    every: int = 4000,
    start: int = 0,
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
    track_explored: bool = True,
) -> Rewiring:
    """Run RigL with ITOP's settings: fewer, larger updates, and exploration tracked.

    Args:
      sparsity: as in ``static``.
      stop: as in ``rigl``.
      every: steps between updates; the default is the authors', for CIFAR and ImageNet.
      start: as in ``rigl``.
      drop_fraction: as in ``rigl``; the default is the authors'.
      decay: as in ``rigl``.
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
      track_explored: record which weights have ever been active; True by default.

    Returns:
      The topology.

    Raises:
      ValueError: as ``rigl``.
      TypeError: for an argument of the wrong type.

    References:
      Liu et al., Do we actually need dense over-parameterization? In-time
      over-parameterization in sparse training, 2021 (arXiv 2102.02887), and its
      published code.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.rigl_itop(0.9, stop=400_000).track_explored
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
    return dataclasses.replace(topology, name="rigl_itop")

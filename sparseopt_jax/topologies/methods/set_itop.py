"""SET with the settings of ITOP, which explore more weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.methods.set_ import set_
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule


@method("ITOP", "2102.02887")
def set_itop(
    sparsity: float | None = None,
    *,
    stop: int,
    every: int = 1500,
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
    track_explored: bool = True,
) -> Rewiring:
    """Run SET with ITOP's settings: fewer, larger updates, and exploration tracked.

    Args:
      sparsity: as in ``static``.
      stop: as in ``set_``.
      every: steps between updates; the default is the authors' for CIFAR at batch size
        128.
      start: as in ``set_``.
      drop_fraction: as in ``set_``; the default is the authors'.
      decay: as in ``set_``.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: record which weights have ever been active; True by default.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``.
      TypeError: for an argument of the wrong type.

    References:
      Liu et al., Do we actually need dense over-parameterization? In-time
      over-parameterization in sparse training, 2021 (arXiv 2102.02887), and its
      published code.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.set_itop(0.95, stop=97_000).schedule.every
      1500
    """
    topology = set_(
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
        track_explored=track_explored,
    )
    return dataclasses.replace(topology, name="set_itop")

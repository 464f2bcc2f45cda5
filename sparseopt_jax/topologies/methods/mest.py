"""MEST: weights with a small magnitude and a small gradient are dropped."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparseopt_jax.arguments.checks import number
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.methods.set_ import set_
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule


@method("MEST", "2110.14032")
def mest(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    drop_fraction: float = 0.3,
    decay: str | Schedule = "cosine",
    gradient_weight: float = 1.0,
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
    """Drop weights of small magnitude and gradient, grow random ones (MEST).

    The drop score is |w| + ``gradient_weight`` |gradient|.

    Args:
      sparsity: as in ``static``.
      every: as in ``set_``.
      stop: as in ``set_``.
      start: as in ``set_``.
      drop_fraction: as in ``set_``.
      decay: as in ``set_``.
      gradient_weight: weight of the gradient in the drop score, at least 0 (lambda).
        The default is ours.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``, and for a negative ``gradient_weight``.
      TypeError: for an argument of the wrong type.

    Note:
      The paper's soft memory bound is not implemented. It lets more weights than the
      budget be active between growing and the next drop.

    References:
      Yuan et al., MEST: accurate and fast memory-economic sparse training framework on
      the edge, 2021 (arXiv 2110.14032).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.mest(0.9, gradient_weight=0.5, every=100, stop=1000).name
      'mest'
    """
    number("gradient_weight", gradient_weight, 0)
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
    return dataclasses.replace(
        topology, name="mest", drop=scores.magnitude_and_gradient(gradient_weight)
    )

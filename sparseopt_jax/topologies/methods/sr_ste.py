"""SR-STE: a straight-through estimator that decays pruned weights."""

from collections.abc import Mapping

from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import NM, Structures, Unstructured
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import FOREVER, UpdateSchedule


@method("SR-STE", "2102.04010")
def sr_ste(
    sparsity: float | None = None,
    *,
    decay: float = 2e-4,
    every: int = 1,
    start: int = 0,
    stop: int = FOREVER,
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    first: First = True,
    structure: Structures | None = None,
    where: Where | None = None,
    include: Include | None = None,
    dims: Dims = None,
) -> ForwardMasks:
    """Prune the forward pass, train all weights, decay pruned ones (SR-STE).

    ``decay`` times the weight is added to the gradient of every inactive weight, so
    that masks settle. The method was made for N:M sparsity: without ``structure`` and
    ``sparsity``, masks are 2:4. Use it like ``ste``.

    Args:
      sparsity: fraction of zeros in the forward pass, as in ``static``.
      decay: strength of the decay (lambda), at least 0.
      every: as in ``ste``.
      start: as in ``ste``.
      stop: as in ``ste``.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``; None is ``NM(2, 4)`` without ``sparsity``,
        ``Unstructured()`` with it.
      where: as in ``static``.
      include: as in ``static``.
      dims: as in ``static``.

    Returns:
      A topology for ``sparsify``.

    Raises:
      ValueError: as ``ste``, and for a negative ``decay``.
      TypeError: for an argument of the wrong type.

    References:
      Zhou et al., Learning N:M fine-grained structured sparse neural networks from
      scratch, 2021 (arXiv 2102.04010).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.sr_ste(structure=so.NM(1, 4)).decay
      0.0002
    """
    if structure is None:
        structure = NM(2, 4) if sparsity is None else Unstructured()
    used = Rewiring(
        name="sr_ste",
        sparsity=sparsity,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
        dims=dims,
    )
    schedule = UpdateSchedule(every, start, stop)
    return ForwardMasks(topology=used, schedule=schedule, decay=decay)

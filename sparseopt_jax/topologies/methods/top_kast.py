"""Top-KAST: the forward pass uses the largest weights, and some more are trained."""

import dataclasses
from collections.abc import Mapping

from sparseopt_jax.layers.distributions import Distribution, First, check_sparsity
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import FOREVER, UpdateSchedule


@method("Top-KAST", "2106.03517")
def top_kast(
    sparsity: float | None = None,
    *,
    trained_sparsity: float,
    every: int = 100,
    start: int = 0,
    stop: int = FOREVER,
    penalty: float = 1e-4,
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    first: First = True,
    structure: Structures = Unstructured(),
    where: Where | None = None,
    include: Include | None = None,
    dims: Dims = None,
) -> ForwardMasks:
    """Use the largest weights in the forward pass, and train some more (Top-KAST).

    The forward pass uses the largest weights of each layer. These and the next largest
    receive gradients. The others stay unchanged until an update of the masks selects
    them. Use it like ``ste``.

    Args:
      sparsity: fraction of zeros in the forward pass, as in ``static``; it must be
        given.
      trained_sparsity: fraction of weights that are not trained, at most ``sparsity``.
      every: steps between updates of the masks, at least 1. The default is ours.
      start: as in ``ste``.
      stop: as in ``ste``.
      penalty: strength of the decay of trained weights, at least 0; divided by the
        layer's density for those that the forward pass does not use. The default is
        ours.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      dims: as in ``static``.

    Returns:
      A topology for ``sparsify``.

    Raises:
      ValueError: as ``ste``, and for a missing ``sparsity``, a ``trained_sparsity``
        outside [0, ``sparsity``], or a negative ``penalty``.
      TypeError: for an argument of the wrong type.

    References:
      Jayakumar et al., Top-KAST: Top-K always sparse training, 2020
      (arXiv 2106.03517).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.top_kast(0.9, trained_sparsity=0.8).trained.sparsity
      0.8
    """
    used = Rewiring(
        name="top_kast",
        sparsity=sparsity,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
        dims=dims,
    )
    check_sparsity(trained_sparsity, "trained_sparsity")
    if sparsity is None:
        raise ValueError(
            "top_kast needs sparsity, and a structure that does not fix it, so that it "
            "can train more weights than the forward pass uses"
        )
    if trained_sparsity > sparsity:
        raise ValueError(
            f"trained_sparsity must be at most sparsity = {sparsity}, got "
            f"{trained_sparsity}"
        )
    return ForwardMasks(
        topology=used,
        schedule=UpdateSchedule(every, start, stop),
        trained=dataclasses.replace(used, name="static", sparsity=trained_sparsity),
        penalty=penalty,
    )

"""AC/DC: dense and sparse phases in turn."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sparseopt_jax.arguments.checks import integers
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Alternating, DensitySchedule, StepList


@method("AC/DC", "2106.12379")
def ac_dc(
    sparsity: float | None = None,
    *,
    compress: Sequence[int],
    decompress: Sequence[int],
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
    """AC/DC: dense and sparse phases in turn.

    After each step of ``compress`` the largest weights of every layer stay; after each
    step of ``decompress`` all are active, those that come back with a value of zero
    and a fresh optimizer state; with ``masks``, those that they leave out as well.

    Args:
      sparsity: fraction of zeros in the sparse phases, as in ``static``.
      compress: steps after which the network is sparse, ascending.
      decompress: steps after which it is dense again, one between each two of
        ``compress``, so that it is sparse in the end.
      distribution: as in ``gradual_magnitude``.
      first: as in ``gradual_magnitude``.
      structure: as in ``gradual_magnitude``.
      where: as in ``gradual_magnitude``.
      include: as in ``gradual_magnitude``.
      masks: as in ``gradual_magnitude``.
      dims: as in ``gradual_magnitude``.
      min_fan_in: as in ``gradual_magnitude``.
      track_explored: as in ``gradual_magnitude``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``static``, and for steps that do not alternate.
      TypeError: as ``static``.

    Note:
      The authors compare the weights of all layers together; here each layer keeps what
      its distribution gives it. ImageNet at 90 %, in epochs: compress at 10, 20, ...,
      70, 85; decompress at 15, 25, ..., 65, 75.

    References:
      Peste et al., AC/DC: alternating compressed/decompressed training of deep neural
      networks, 2021 (arXiv 2106.12379).

    Examples:
      >>> import sparseopt_jax as so
      >>> topology = so.ac_dc(0.9, compress=[100, 300], decompress=[200])
      >>> [topology.due(step) for step in (100, 150, 200)]
      [True, False, True]
    """
    compress = integers("compress", compress)
    decompress = integers("decompress", decompress)
    steps = sorted((*compress, *decompress))
    alternating = [
        step
        for pair in itertools.zip_longest(compress, decompress)
        for step in pair
        if step is not None
    ]
    if len(compress) != len(decompress) + 1 or steps != alternating:
        raise ValueError(
            "compress and decompress must alternate, compress first and last, got "
            f"{list(compress)} and {list(decompress)}"
        )
    times = StepList(tuple(steps))
    # Dense before the first, sparse after the first, and so on.
    progress = Alternating(tuple(steps))
    return Rewiring(
        name="ac_dc",
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
        density=DensitySchedule(0.0, progress),
        drop=scores.magnitude,
    )

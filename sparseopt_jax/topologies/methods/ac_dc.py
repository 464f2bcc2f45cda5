"""AC/DC: alternating dense and sparse phases."""

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
    """Alternate dense and sparse phases (AC/DC).

    After each step of ``compress``, only the largest weights of every layer stay
    active. After each step of ``decompress`` all are active; those that come back start
    at zero with a fresh optimizer state.

    Args:
      sparsity: fraction of zeros in the sparse phases, as in ``static``.
      compress: steps after which the network is sparse, ascending.
      decompress: steps after which it is dense again, one between any two successive
        steps of ``compress``, so that the network is sparse in the end.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: the weights to start from, ``so.masks_of(params)`` for those of a sparse
        checkpoint; ``sparsity`` must still be given. Decompression also activates the
        weights that they exclude.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``static``, and for steps that do not alternate.
      TypeError: for an argument of the wrong type.

    Note:
      The authors compare the weights of all layers; here each layer keeps the number
      that its distribution assigns. Their schedule for ImageNet at 90 %, in epochs:
      compress at 10, 20, ..., 70, 85; decompress at 15, 25, ..., 65, 75.

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

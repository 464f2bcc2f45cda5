"""Static: random masks that are never updated."""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.rewiring import Rewiring


@method("static", "1911.11134")
def static(
    sparsity: float | None = None,
    *,
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
    """Return a topology of random masks that are never updated.

    Args:
      sparsity: fraction of zeros over all sparse layers, in [0, 1). Optional and unused
        if ``masks`` are given; leave it out if a structure fixes it.
      distribution: ``"uniform"`` (first layer dense), ``"erdos_renyi"``,
        ``"erdos_renyi_kernel"``, a mapping from globs over paths to sparsities (the
        first match decides, the rest have ``sparsity``), or a function of the layers
        and the sparsity that returns active weights by path.
      first: what ``"uniform"`` keeps dense: a glob over paths, or several; None for no
        layer. True finds the network's first layer by the numbers in paths and the
        widths of layers, and raises if these are ambiguous.
      structure: which weights of a layer may be active together: ``Unstructured()``,
        ``NM(2, 4)``, ``Block((4, 4))``, ``Channel()``, ``ConstantFanIn()``, or a
        mapping from globs over paths to them. Counts are rounded to fit it.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      include: leaves to make sparse that name and neighbours do not identify as
        kernels, such as an embedding that is also the head: a glob over paths, a
        sequence of globs, or a function of path and leaf. ``where`` can still exclude
        them.
      masks: masks to start from, in the structure of the parameters: bool arrays,
        ``optax.MaskedNode()`` or None at dense leaves; ``so.masks_of(params)`` reads
        them from a sparse checkpoint. In any but the first of ``phases``,
        ``PREVIOUS_MASKS`` takes over those of the previous phase.
      dims: the axes of kernels that do not follow the Flax convention, most of all
        stacked ones: the result of ``infer_dims``, a ``NeuronDims``, a mapping from
        globs over paths to them, or a function of path and leaf.
      min_fan_in: least number of active weights per neuron, for structures of single
        weights.
      track_explored: record which weights have ever been active, for ``metrics``; here
        it only serves phases, which must all have the same value.

    Returns:
      The topology.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution, masks that
        are not bool or leave a leaf without active weights, or a negative
        ``min_fan_in``.
      TypeError: for an argument of the wrong type.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.static(0.9, distribution={"head/*": 0.5}).sparsity
      0.9
    """
    return Rewiring(
        name="static",
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
    )

"""A random topology that never changes."""

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
    """Return a random topology that never changes.

    Args:
      sparsity: fraction of zeros over all sparse layers, in [0, 1). May be left out,
        and is not used, if ``masks`` are given; left out where a structure fixes it.
      distribution: ``"uniform"`` (first layer dense), ``"erdos_renyi"``,
        ``"erdos_renyi_kernel"``, a mapping from globs over paths to sparsities (the
        first match decides, ``sparsity`` holds for the rest), or a function of the
        layers and the sparsity that returns active weights by path.
      first: what ``"uniform"`` keeps dense: a glob over paths or several; None for no
        layer at all. True is the network's first layer where numbers in the paths and
        the widths of the layers tell it; where they do not, that is an error.
      structure: what may be active within a layer: ``Unstructured()``, ``NM(2, 4)``,
        ``Block((4, 4))``, ``Channel()``, ``ConstantFanIn()``, or a mapping from globs
        over paths to them. Counts are rounded to what it can hold.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      include: what is made sparse although it is no kernel by name and neighbours, say
        an embedding that is the head as well: a glob over paths, a sequence of globs,
        or a function of path and leaf. ``where`` still excludes.
      masks: masks to start from, in the structure of the parameters: bool arrays,
        ``optax.MaskedNode()`` or None at dense leaves, as ``so.masks_of(params)``
        takes them from a sparse checkpoint; in a later one of ``phases``,
        ``PREVIOUS_MASKS`` for those that are handed on.
      dims: the axes of kernels that do not follow the Flax convention, above all
        stacked ones: what ``infer_dims`` reads off the model, a ``NeuronDims``, a
        mapping from globs over paths to them, or a function of path and leaf.
      min_fan_in: active weights that every neuron keeps at least.
      track_explored: as in ``set_``, for a phase before one that has it.

    Returns:
      The topology.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution, masks that
        are not bool or have no active weight in a leaf, a ``min_fan_in`` below 0.
      TypeError: for an argument of another kind.

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

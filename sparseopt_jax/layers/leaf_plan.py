"""What is decided about one leaf, and by which rules."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers.distributions import Distribution, First, Layer
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Axes, Dims
from sparseopt_jax.layers.structures import (
    ConstantFanIn,
    Structure,
    Structures,
    Unstructured,
)


class LeafPlan(NamedTuple):
    """What a topology decides about one leaf.

    Attributes:
      path: the leaf's canonical path.
      leaf: the leaf, or what stands for its shape.
      why_dense: the reason that it stays dense; empty if it is sparse.
      axes: its axes; None if it has no neurons.
      layer: the layer that distributions see; None if it stays dense.
      structure: what may be active in it; None if it stays dense.
      units: how its weights are switched; None if it stays dense.
      per_cell: active units in each cell, in the end where a schedule moves the
        density; None if it stays dense, or if given masks decide.
      active: its active weights, in the end; None if it stays dense, or if a traced or
        remote mask keeps the number to itself.
      kind: what it is, if that is no kernel, by name and neighbours.
      note: what else is to be said of it.
    """

    path: str
    leaf: Any
    why_dense: str
    axes: Axes | None
    layer: Layer | None = None
    structure: Structure | None = None
    units: Units | None = None
    per_cell: int | None = None
    active: int | None = None
    kind: str = ""
    note: str = ""


class Rules(NamedTuple):
    """The part of a topology that decides about leaves: as in ``Rewiring``.

    ``begins`` is for masks that a moving density begins with: no structure fixes their
    numbers. ``moves`` is for a density that moves: given masks are where it begins, and
    the distribution says where it ends.
    """

    sparsity: float | None
    distribution: str | Mapping[str, float] | Distribution
    structure: Structures
    where: Where | None
    masks: Any
    dims: Dims
    min_fan_in: int
    begins: bool = False
    include: Include | None = None
    first: First = True
    moves: bool = False


class Leaves(NamedTuple):
    """The array leaves of the parameters, each by its path.

    Attributes:
      arrays: arrays, or what stands for their shapes.
      axes: their axes; None where a leaf has no neurons.
      kinds: what they are, if that is no kernel; else empty.
    """

    arrays: dict[str, Any]
    axes: dict[str, Axes | None]
    kinds: dict[str, str]


def check_single_weights(structure: Structure, path: str) -> None:
    """Raise ValueError where ``min_fan_in`` cannot hold for a leaf."""
    if not isinstance(structure, Unstructured | ConstantFanIn):
        raise ValueError(
            f"min_fan_in holds for single weights, not for {structure}, the structure "
            f"of {path!r}"
        )

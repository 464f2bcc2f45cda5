"""The plan of a leaf, and the rules that decide it."""

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
    """A topology's decision about one leaf.

    Attributes:
      path: the leaf's canonical path.
      leaf: the leaf, or a placeholder with its shape.
      why_dense: why it stays dense; empty if it is sparse.
      axes: its axes; None if it has no neurons.
      layer: the layer as distributions see it; None if it stays dense.
      structure: its structure; None if it stays dense.
      units: the units in which weights are switched; None if it stays dense.
      per_cell: active units in each cell, at the end of a density schedule; None if it
        stays dense, or if given masks decide.
      active: its active weights, at the end; None if it stays dense, or if a traced or
        remote mask does not reveal the number.
      kind: its kind by name and neighbours; empty for kernels.
      note: a further remark.
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
    """The part of a topology that decides about leaves, as in ``Rewiring``.

    ``begins`` marks the initial masks of a density schedule: no structure fixes their
    numbers. ``moves`` marks a density schedule: it begins at the given masks and ends
    at the distribution.
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
    """The array leaves of the parameters, by path.

    Attributes:
      arrays: arrays, or placeholders with their shapes.
      axes: their axes; None for a leaf without neurons.
      kinds: their kinds; empty for kernels.
    """

    arrays: dict[str, Any]
    axes: dict[str, Axes | None]
    kinds: dict[str, str]


def check_single_weights(structure: Structure, path: str) -> None:
    """Raise ValueError if ``min_fan_in`` cannot apply to a leaf."""
    if not isinstance(structure, Unstructured | ConstantFanIn):
        raise ValueError(
            f"min_fan_in applies to single weights, not to {structure}, the structure "
            f"of {path!r}"
        )

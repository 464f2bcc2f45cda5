"""Structures of active weights: single weights, N of M, blocks, channels, fan-ins.

A structure defines two things for a leaf. Its *units* are switched as one: a weight, a
block, a channel. Its *cells* each keep their number of active units: the whole layer, a
neuron, a group of M. Weights are dropped over the whole layer, and grown to refill
every cell to its number, so that topologies can move within any structure.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

from sparseopt_jax.arguments.checks import integer
from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.trees import paths

__all__ = [
    "NM",
    "Block",
    "Channel",
    "ConstantFanIn",
    "Structure",
    "Structures",
    "Unstructured",
]


@dataclasses.dataclass(frozen=True)
class Structure(abc.ABC):
    """Base class of all structures; use one of the subclasses below."""

    @abc.abstractmethod
    def units(self, path: str, shape: tuple[int, ...], axes: Axes) -> Units:
        """Return the units of a leaf of this shape.

        Args:
          path: the leaf's path, for errors.
          shape: its shape.
          axes: its axes.

        Returns:
          The units of the leaf.

        Raises:
          ValueError: if the shape does not fit the structure.
        """

    @property
    def density(self) -> float | None:
        """The fraction of active weights that the structure fixes, or None."""
        return None

    def per_cell(self, units: Units, active: int) -> int:
        """Return the active units per cell for a number of active weights in a layer.

        Args:
          units: the leaf's units.
          active: the layer's budget from the distribution.

        Returns:
          The number that the structure fixes, or else the nearest possible one.
        """
        return self.nearest(units, active)

    def nearest(self, units: Units, active: int) -> int:
        """Return the active units per cell nearest to a number, at least 1."""
        return min(max(round(active / (units.size * units.cells)), 1), units.per_cell)


@dataclasses.dataclass(frozen=True)
class Unstructured(Structure):
    """Any weight of a layer may be active.

    Examples:
      >>> Unstructured()
      Unstructured()
    """

    def units(self, path: str, shape: tuple[int, ...], axes: Axes) -> Units:
        del path
        return Units(shape, shape, (), (), axes.layer, axes.layer)


@dataclasses.dataclass(frozen=True)
class ConstantFanIn(Structure):
    """Every neuron of a layer has the same number of active incoming weights.

    References:
      Lasby et al., Dynamic sparse training with structured sparsity, ICLR 2024.

    Examples:
      >>> import sparseopt_jax as so
      >>> topology = so.static(0.9, structure=so.ConstantFanIn())
    """

    def units(self, path: str, shape: tuple[int, ...], axes: Axes) -> Units:
        del path
        return Units(shape, shape, (), (), axes.reduction, axes.layer)


@dataclasses.dataclass(frozen=True)
class NM(Structure):
    """Exactly n of every m neighbours along one axis are active.

    The density is n / m in every layer, whatever the distribution.

    Attributes:
      n: active weights in a group.
      m: weights in a group.
      axis: axis of the kernel along which a group lies; None is the last reduction
        axis longer than 1, the input channels, as sparse matrix units require.

    Raises:
      ValueError: unless 1 <= n <= m and m >= 2.
      TypeError: if one of them is not an integer.

    Examples:
      >>> NM(2, 4)
      NM(n=2, m=4, axis=None)
    """

    n: int
    m: int
    axis: int | None = None

    def __post_init__(self) -> None:
        for name in ("n", "m") if self.axis is None else ("n", "m", "axis"):
            _set_integer(self, name)
        if not 1 <= self.n <= self.m or self.m < 2:
            raise ValueError(
                f"NM needs 1 <= n <= m and m >= 2, got n = {self.n}, m = {self.m}"
            )

    @property
    def density(self) -> float:
        """The fraction n / m."""
        return self.n / self.m

    def units(self, path: str, shape: tuple[int, ...], axes: Axes) -> Units:
        axis = self.axis_of(shape, axes.reduction)
        axis = _layer_axis(self, axis, path, shape, axes)
        extents = tuple(self.m if a == axis else 1 for a in range(len(shape)))
        split, cut, places = _cut(self, extents, path, shape)
        layer = tuple(sorted(b for a in axes.layer for b in places[a]))
        return Units(shape, split, cut, (), (places[axis][-1],), layer)

    def axis_of(self, shape: tuple[int, ...], reduction: tuple[int, ...]) -> int:
        """Return the axis along which the groups of a kernel lie."""
        if self.axis is not None:
            return self.axis
        return next((a for a in reversed(reduction) if shape[a] > 1), reduction[-1])

    def per_cell(self, units: Units, active: int) -> int:
        """Return n, whatever the layer's budget."""
        del units, active
        return self.n


@dataclasses.dataclass(frozen=True)
class Block(Structure):
    """Blocks of weights are active or not as one; scores are summed over a block.

    Attributes:
      shape: the block's extents along the last axes of a kernel, 1 along all others; an
        int is the extent along the last axis.

    Raises:
      ValueError: if the shape is empty or an extent is below 1.
      TypeError: if an extent is not an integer.

    Examples:
      >>> Block(16), Block((4, 4))
      (Block(shape=(16,)), Block(shape=(4, 4)))
    """

    shape: int | tuple[int, ...]

    def __post_init__(self) -> None:
        shape = self.shape
        shape = shape if isinstance(shape, tuple | list) else (shape,)
        extents = tuple(integer("shape", extent) for extent in shape)
        if not extents or min(extents) < 1:
            raise ValueError(f"Block needs extents of at least 1, got {self.shape!r}")
        object.__setattr__(self, "shape", extents)

    def units(self, path: str, shape: tuple[int, ...], axes: Axes) -> Units:
        block: tuple[int, ...] = self.shape  # pyright: ignore
        if len(block) > len(shape):
            raise ValueError(
                f"{self} has more axes than {path!r} with shape {shape}; give this "
                "leaf another structure with a mapping, or exclude it with where"
            )
        extents = (1,) * (len(shape) - len(block)) + block
        stacked = [a for a in axes.batch if extents[a] > 1]
        if stacked:
            raise ValueError(
                f"{self} spans axis {stacked[0]} of {path!r} with shape "
                f"{shape}, which stacks separate layers"
            )
        return _units_of_blocks(self, extents, path, shape, axes)


@dataclasses.dataclass(frozen=True)
class Channel(Structure):
    """Whole channels are active or not; scores are summed over a channel.

    Attributes:
      axis: axis of the kernel along which the channels lie: -1 removes neurons, the
        last reduction axis (-2 in Flax) removes inputs.

    Raises:
      TypeError: if the axis is not an integer.

    Examples:
      >>> Channel()
      Channel(axis=-1)
    """

    axis: int = -1

    def __post_init__(self) -> None:
        _set_integer(self, "axis")

    def units(self, path: str, shape: tuple[int, ...], axes: Axes) -> Units:
        axis = _layer_axis(self, self.axis, path, shape, axes)
        extents = tuple(
            1 if a == axis or a in axes.batch else n for a, n in enumerate(shape)
        )
        return _units_of_blocks(self, extents, path, shape, axes)


Structures = Structure | Mapping[str, Structure]
"""One structure for all leaves, or one for each glob over paths."""


def check_structure(structure: Any) -> None:
    """Raise unless ``resolve_structure`` accepts this.

    Raises:
      TypeError: with the value and the available structures.
    """
    values = structure.values() if isinstance(structure, Mapping) else [structure]
    for value in values:
        if not isinstance(value, Structure):
            raise TypeError(
                "structure must be Unstructured(), NM(n, m), Block(shape), Channel(), "
                "ConstantFanIn(), or a mapping from path patterns to them, got "
                f"{value!r}"
            )


def resolve_structure(structure: Structures, path: str) -> Structure:
    """Return the structure of the leaf at ``path``; unstructured if none is mapped."""
    if isinstance(structure, Mapping):
        return paths.first_match(path, structure) or Unstructured()
    return structure


def fixed_density(structure: Structures) -> float | None:
    """Return the fraction of active weights that one structure fixes for all leaves."""
    return None if isinstance(structure, Mapping) else structure.density


def _units_of_blocks(
    structure: Structure,
    extents: tuple[int, ...],
    path: str,
    shape: tuple[int, ...],
    axes: Axes,
) -> Units:
    split, cut, places = _cut(structure, extents, path, shape)
    inner = tuple(places[a][-1] for a, extent in enumerate(extents) if extent > 1)
    layer = tuple(sorted(b for a in axes.layer for b in places[a]))
    return Units(shape, split, cut, inner, layer, layer)


def _cut(
    structure: Structure,
    extents: tuple[int, ...],
    path: str,
    shape: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, ...]]]:
    """Return the split shape, the axes that are cut, and where each axis went."""
    split: list[int] = []
    cut, places = [], []
    for axis, (n, extent) in enumerate(zip(shape, extents, strict=True)):
        if n % extent:
            fitting = [d for d in range(1, n + 1) if n % d == 0]
            raise ValueError(
                f"{structure} needs axis {axis} of {path!r} with shape {shape} to be a "
                f"multiple of {extent}; {n} is one of {', '.join(map(str, fitting))}. "
                "Give this leaf another structure with a mapping, or exclude it with "
                "where"
            )
        if extent in (1, n):
            places.append((len(split),))
            split.append(n)
        else:
            cut.append(axis)
            places.append((len(split), len(split) + 1))
            split.extend((n // extent, extent))
    return tuple(split), tuple(cut), places


def _layer_axis(
    structure: Structure, axis: int, path: str, shape: tuple[int, ...], axes: Axes
) -> int:
    ndim = len(shape)
    if not -ndim <= axis < ndim or axis % ndim not in axes.layer:
        what = "stacks separate layers" if -ndim <= axis < ndim else "it has not"
        raise ValueError(
            f"{structure} names axis {axis} of {path!r} with shape {shape}, which "
            f"{what}"
        )
    return axis % ndim


def _set_integer(structure: Any, name: str) -> None:
    object.__setattr__(structure, name, integer(name, getattr(structure, name)))

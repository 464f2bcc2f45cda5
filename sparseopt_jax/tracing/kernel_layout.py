"""Layouts of kernels that have been reshaped, transposed and broadcast.

A kernel is a leaf of the variables, but a model often multiplies its inputs by another
arrangement of it: `DenseGeneral` flattens heads, ``vmap`` turns a stack of convolutions
into groups. Every axis of a value is therefore followed as a row-major product of
*factors*, each a part of one axis of the leaf.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sparseopt_jax.layers.kernel_names import input_axes
from sparseopt_jax.layers.neuron_dims import Axes


class Factor(NamedTuple):
    """A part of an axis of a kernel.

    Attributes:
      axis: the axis; -1 for copies made by broadcasting.
      stride: the distance of neighbours along the part, in entries of the axis.
      size: number of entries along the part.
    """

    axis: int
    stride: int
    size: int


Factors = tuple[Factor, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrangement of a kernel's entries in a value.

    Attributes:
      path: the kernel's path.
      shape: the kernel's shape.
      axes: the factors of each axis of the value.
      slices: for each axis along which a loop takes one slice per step, its factors,
        the outermost loop first.
      loops: for each loop around the value, whether it takes slices of the kernel.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[Factors, ...]
    slices: tuple[Factors, ...] = ()
    loops: tuple[bool, ...] = ()

    @classmethod
    def of(cls, path: str, shape: Sequence[int]) -> "Layout":
        """Return the layout of the kernel itself."""
        axes = tuple((Factor(axis, 1, size),) for axis, size in enumerate(shape))
        return cls(path, tuple(shape), axes)

    def transpose(self, permutation: Sequence[int]) -> "Layout":
        """Transpose as ``jax.lax.transpose``."""
        return dataclasses.replace(
            self, axes=tuple(self.axes[axis] for axis in permutation)
        )

    def broadcast(self, shape: Sequence[int], dims: Sequence[int]) -> "Layout":
        """Broadcast as ``jax.lax.broadcast_in_dim``."""
        axes: list[Factors] = [(Factor(-1, 1, size),) for size in shape]
        for factors, axis in zip(self.axes, dims, strict=True):
            # A broadcast axis of size 1 holds copies.
            if math.prod(factor.size for factor in factors) == shape[axis]:
                axes[axis] = factors
        return dataclasses.replace(self, axes=tuple(axes))

    def reshape(self, shape: Sequence[int]) -> "Layout | None":
        """Reshape as ``jax.lax.reshape``; None if an axis would hold parts of parts."""
        left = [f for factors in self.axes for f in factors if f.size > 1]
        axes = []
        for size in shape:
            taken = split(tuple(left), size)
            if taken is None:
                return None
            axes.append(taken[0])
            left = list(taken[1])
        return dataclasses.replace(self, axes=tuple(axes))

    def constant_in_loop(self) -> "Layout":
        """Return the layout of the same value in every step of a loop."""
        return dataclasses.replace(self, loops=(*self.loops, False))

    def slice_in_loop(self) -> "Layout":
        """Return the layout of one slice along the first axis per step of a loop."""
        return dataclasses.replace(self.without(0), loops=(*self.loops, True))

    def without(self, axis: int) -> "Layout":
        """Return the layout of one slice along an axis, without that axis."""
        return dataclasses.replace(
            self,
            axes=(*self.axes[:axis], *self.axes[axis + 1 :]),
            slices=(*self.slices, self.axes[axis]),
        )


def split(factors: Factors, size: int) -> tuple[Factors, Factors] | None:
    """Return the leading factors whose product is ``size``, and the rest.

    A factor is cut in two if necessary.

    Returns:
      Both parts, or None if no cut gives this size.

    Examples:
      >>> split((Factor(0, 1, 12),), 3)
      ((Factor(axis=0, stride=4, size=3),), (Factor(axis=0, stride=1, size=4),))
    """
    leading: list[Factor] = []
    left = list(factors)
    while size > 1:
        if not left:
            return None
        factor = left.pop(0)
        if size % factor.size == 0:
            leading.append(factor)
            size //= factor.size
        elif factor.size % size == 0:
            rest = factor.size // size
            leading.append(factor._replace(stride=factor.stride * rest, size=size))
            left.insert(0, factor._replace(size=rest))
            size = 1
        else:
            return None
    return tuple(leading), tuple(left)


def ordered(factors: Iterable[Factor]) -> list[Factor]:
    """Sort factors in the order of the kernel's own axes."""
    return sorted(factors, key=lambda factor: (factor.axis, -factor.stride))


class Use(NamedTuple):
    """The roles of a kernel's axes in a multiplication.

    Attributes:
      axes: the axes of the kernel: the inputs that a neuron sums over, the neurons,
        and the stack of separate layers.
      groups: number of equal parts of the neurons with separate inputs (grouped
        convolutions); 1 if all share their inputs.
      lead: the factors of separate layers and groups, in the order in which the inputs
        have them.
    """

    axes: Axes
    groups: int
    lead: Factors

    @property
    def lead_order(self) -> list[int]:
        """Permutation that puts stack axes first, in order, and groups last."""
        return sorted(
            range(len(self.lead)),
            key=lambda i: (
                self.lead[i].axis in self.axes.output,
                self.lead[i].axis,
                -self.lead[i].stride,
            ),
        )


def use_of(layout: Layout, lead: Factors, summed: Factors) -> Use | str:
    """Return how a multiplication uses a kernel.

    Args:
      layout: the layout of the operand.
      lead: factors of the operand for separate layers or groups.
      summed: factors that are summed over.

    Returns:
      The use, or why no statistics of inputs could be computed for it.
    """
    lead = (*(f for factors in layout.slices for f in factors), *lead)
    if any(factor.axis < 0 for factor in (*lead, *summed)):
        return "broadcast before it multiplies inputs"
    batch, reduction, output, groups = [], [], [], 1
    inputs = input_axes(layout.path, layout.shape)
    for axis, size in enumerate(layout.shape):
        leading = [f for f in lead if f.axis == axis]
        stacked = math.prod(f.size for f in leading)
        added = math.prod(f.size for f in summed if f.axis == axis)
        is_summed = any(f.axis == axis for f in summed)
        if size == 1 and not leading and not is_summed:
            # Reshaping loses axes of size 1: their role is a convention.
            (reduction if axis < inputs else output).append(axis)
        elif is_summed and added == size:
            reduction.append(axis)
        elif leading and stacked == size and not is_summed:
            batch.append(axis)
        elif not is_summed and not leading:
            output.append(axis)
        elif (
            not is_summed
            and not output
            and min(f.stride for f in leading) == size // stacked
        ):
            groups = stacked
            output.append(axis)
        else:
            return f"axis {axis} is used in parts"
    if not reduction or not output:
        what = "sums over none" if not reduction else "sums over all"
        return f"the multiplication {what} of its axes"
    return Use(Axes(tuple(batch), tuple(reduction), tuple(output)), groups, lead)

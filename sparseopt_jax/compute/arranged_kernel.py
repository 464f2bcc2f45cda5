"""A compact kernel inside a model: transposed, reshaped, cast, sliced."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.masks.compact_kernel import CompactKernel
from sparseopt_jax.masks.probed_kernel import ProbedKernel


class Refused(Exception):
    """Raised for a use of a kernel that blocks do not support; names this use."""


class KernelUseError(ValueError):
    """Raised if a model uses a compact kernel in a way that needs the dense array.

    Attributes:
      path: the kernel's path.
      reason: how the model uses the kernel.
    """

    def __init__(self, path: str, reason: str, message: str):
        super().__init__(message)
        self.path = path
        self.reason = reason


class LeafAxis(NamedTuple):
    """An axis of a kernel, cut into blocks.

    Attributes:
      blocks: number of blocks along the axis.
      extent: number of entries of one block along the axis.
      is_stack: whether the axis stacks separate layers, each with its own blocks.
    """

    blocks: int
    extent: int
    is_stack: bool

    @property
    def size(self) -> int:
        """Number of entries along the axis."""
        return self.blocks * self.extent


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How the axes of a value are made of the axes of a kernel.

    Attributes:
      path: the kernel's path.
      origin: its position among the leaves of the model's arguments.
      leaf: the axes of the kernel, without those that loops have sliced.
      axes: for each axis of the value, the axes of the kernel that are joined in it.
      is_changed: whether the value differs from the kernel itself.
    """

    path: str
    origin: int
    leaf: tuple[LeafAxis, ...]
    axes: tuple[tuple[int, ...], ...]
    is_changed: bool = False

    def size(self, axes: Sequence[int]) -> int:
        """Return the number of entries along joined axes of the kernel."""
        return math.prod(self.leaf[axis].size for axis in axes)

    @property
    def stacks(self) -> tuple[int, ...]:
        """The axes of the kernel that stack separate layers."""
        return tuple(a for a, axis in enumerate(self.leaf) if axis.is_stack)

    @property
    def items(self) -> tuple[int, ...]:
        """The other axes of the kernel, along which its blocks are numbered."""
        return tuple(a for a, axis in enumerate(self.leaf) if not axis.is_stack)


@jax.tree_util.register_pytree_node_class
class ArrangedKernel:
    """The active blocks of a kernel, and the arrangement of the value they represent.

    Attributes:
      blocks: array (*stacks, active, *extents along each axis of the kernel).
      index: int32 array (*stacks, active), the numbers of the active blocks.
      arrangement: how the value's axes are made of the kernel's axes.
      zeros: dense array like the value, the probe of a ``ProbedKernel``; else None.
    """

    def __init__(
        self, blocks: Any, index: Any, arrangement: Arrangement, zeros: Any = None
    ):
        self.blocks = blocks
        self.index = index
        self.arrangement = arrangement
        self.zeros = zeros

    @classmethod
    def of(cls, path: str, origin: int, kernel: CompactKernel) -> "ArrangedKernel":
        """Return a parameter as a value in the model, not yet rearranged.

        Args:
          path: its path.
          origin: its position among the leaves of the model's arguments.
          kernel: the parameter.

        Raises:
          ValueError: if axes were added to it, such as one of seeds, or removed.
        """
        zeros = None
        if isinstance(kernel, ProbedKernel):
            kernel, zeros = kernel.fixed(), kernel.zeros
        layout, units = kernel.layout, kernel.layout.units
        if jnp.ndim(kernel.places) != len(layout.index_shape) + 1:
            raise ValueError(
                f"the compact kernel {path!r} of shape {kernel.shape} holds blocks of "
                f"shape {jnp.shape(kernel.active)} instead of {layout.shape}: wrap the "
                "call in jax.vmap over the axes along which the kernel was stacked, "
                "and loop over layers inside apply_fn"
            )
        leaf: list[LeafAxis] = []
        at = 0
        for axis in range(len(units.shape)):
            if axis in units.cut:
                leaf.append(LeafAxis(units.split[at], units.split[at + 1], False))
                at += 2
                continue
            size, is_inner = units.split[at], at in units.inner
            blocks, extent = (1, size) if is_inner else (size, 1)
            is_stack = not is_inner and at not in units.cell
            leaf.append(LeafAxis(blocks, extent, is_stack))
            at += 1
        axes = tuple((axis,) for axis in range(len(leaf)))
        arrangement = Arrangement(path, origin, tuple(leaf), axes)
        # The position of the axis of active blocks among the stack axes: before the
        # first of these that follows an axis of the layer.
        first_item = min(arrangement.items)
        at = sum(axis < first_item for axis in arrangement.stacks)
        index = jnp.moveaxis(kernel.index, at, -1)
        blocks = jnp.moveaxis(
            jnp.reshape(kernel.active, (*kernel.places.shape[:-1], -1)), at, -2
        )
        extents = [axis.extent for axis in leaf]
        blocks = jnp.reshape(blocks, (*index.shape, *extents))
        return cls(blocks, index, arrangement, zeros)

    def tree_flatten(self):
        """Implement JAX's pytree protocol."""
        return (self.blocks, self.index, self.zeros), self.arrangement

    @classmethod
    def tree_unflatten(cls, arrangement, parts):
        """Implement JAX's pytree protocol."""
        blocks, index, zeros = parts
        return cls(blocks, index, arrangement, zeros)

    @property
    def path(self) -> str:
        """The kernel's path."""
        return self.arrangement.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense value."""
        return tuple(map(self.arrangement.size, self.arrangement.axes))

    def _with_axes(
        self,
        axes: Sequence[tuple[int, ...]],
        rearranged: Callable[[jax.Array], jax.Array],
    ) -> "ArrangedKernel":
        arrangement = dataclasses.replace(
            self.arrangement, axes=tuple(axes), is_changed=True
        )
        zeros = None if self.zeros is None else rearranged(self.zeros)
        return ArrangedKernel(self.blocks, self.index, arrangement, zeros)

    def with_blocks(self, blocks: Any, zeros: Any = None) -> "ArrangedKernel":
        """Return the kernel with other blocks at the same places, and another probe."""
        arrangement = dataclasses.replace(self.arrangement, is_changed=True)
        return ArrangedKernel(blocks, self.index, arrangement, zeros)

    def transposed(self, permutation: Sequence[int]) -> "ArrangedKernel":
        """Return the kernel transposed, as ``jax.lax.transpose`` does."""
        axes = [self.arrangement.axes[axis] for axis in permutation]
        return self._with_axes(axes, lambda x: jax.lax.transpose(x, permutation))

    def reshaped(self, shape: Sequence[int]) -> "ArrangedKernel":
        """Return the kernel reshaped, if every new axis consists of whole axes."""
        left = [axis for joined in self.arrangement.axes for axis in joined]
        axes: list[tuple[int, ...]] = []
        for size in shape:
            taken: list[int] = []
            # Axes of size 1 join the axis before them.
            while left and (
                self.arrangement.size(taken) < size
                or (taken and self.arrangement.leaf[left[0]].size == 1)
            ):
                taken.append(left.pop(0))
            if self.arrangement.size(taken) != size:
                raise Refused(f"is reshaped to {tuple(shape)}, which splits its axes")
            axes.append(tuple(taken))
        if left and axes:
            axes[-1] = (*axes[-1], *left)
        return self._with_axes(axes, lambda x: jax.lax.reshape(x, shape))

    def by_layer(self) -> "ArrangedKernel":
        """Return the kernel with the stack axis that a loop slices as its first axis.

        The loop slices its arrays; ``layer`` then makes a kernel of each slice.
        """
        stack = self._looped()
        at = self.arrangement.stacks.index(stack)
        return ArrangedKernel(
            jnp.moveaxis(self.blocks, at, 0),
            jnp.moveaxis(self.index, at, 0),
            self.arrangement,
            self.zeros,
        )

    def layer(self) -> "ArrangedKernel":
        """Return one layer from a slice of ``by_layer``."""
        stack, old = self._looped(), self.arrangement
        left = [axis for axis in range(len(old.leaf)) if axis != stack]
        renamed = {axis: new for new, axis in enumerate(left)}
        arrangement = Arrangement(
            old.path,
            old.origin,
            tuple(old.leaf[axis] for axis in left),
            tuple(tuple(renamed[a] for a in joined) for joined in old.axes[1:]),
            is_changed=True,
        )
        # The extent along the sliced axis is 1.
        extents = [axis.extent for axis in arrangement.leaf]
        blocks = jnp.reshape(self.blocks, (*self.index.shape, *extents))
        return ArrangedKernel(blocks, self.index, arrangement, self.zeros)

    def _looped(self) -> int:
        first = self.arrangement.axes[0]
        if len(first) != 1 or not self.arrangement.leaf[first[0]].is_stack:
            raise Refused(
                "is sliced along its first axis, which is part of its layer: specify "
                "with dims= that it stacks separate layers, for example with the "
                "result of so.infer_dims"
            )
        return first[0]

    def dense(self) -> jax.Array:
        """Return the dense value, exactly zero at inactive weights."""
        leaf, stacks = self.arrangement.leaf, self.arrangement.stacks
        items = self.arrangement.items
        layers = math.prod(leaf[axis].blocks for axis in stacks)
        blocks = math.prod(leaf[axis].blocks for axis in items)
        index = jnp.reshape(self.index, (layers, -1))
        index = index + blocks * jnp.arange(layers, dtype=index.dtype)[:, None]
        extents = [axis.extent for axis in leaf]
        zeros = jnp.zeros((layers * blocks, *extents), self.blocks.dtype)
        all_blocks = zeros.at[jnp.ravel(index)].set(
            jnp.reshape(self.blocks, (-1, *extents)),
            mode="promise_in_bounds",
            unique_indices=True,
        )
        numbered = (*stacks, *items)
        cut = [*(leaf[axis].blocks for axis in numbered), *extents]
        order = [
            at
            for axis in range(len(leaf))
            for at in (numbered.index(axis), len(leaf) + axis)
        ]
        whole = jnp.transpose(jnp.reshape(all_blocks, cut), order)
        whole = jnp.reshape(whole, [axis.size for axis in leaf])
        joined = [axis for axes in self.arrangement.axes for axis in axes]
        value = jnp.reshape(jnp.transpose(whole, joined), self.shape)
        return value if self.zeros is None else value + self.zeros

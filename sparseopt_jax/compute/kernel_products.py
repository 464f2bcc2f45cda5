"""Products of inputs with compact kernels, summed over any axes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.compute.arranged_kernel import ArrangedKernel, LeafAxis, Refused
from sparseopt_jax.compute.block_product import Options, Places, block_product


class Sums(NamedTuple):
    """Pairs of axes: an axis of the inputs, and the axis of the kernel that it meets.

    Attributes:
      contracted: pairs that are summed over.
      batch: pairs along which products are separate.
    """

    contracted: Sequence[tuple[int, int]]
    batch: Sequence[tuple[int, int]] = ()


class BlockShape(NamedTuple):
    """The shape of a product of inputs with a matrix of blocks.

    Attributes:
      block: number of entries of a block along the summed axes, and along the others.
      blocks: number of blocks along the summed axes, and along the others.
      active: number of active blocks.
      samples: number of input vectors that each matrix multiplies.
    """

    block: tuple[int, int]
    blocks: tuple[int, int]
    active: int
    samples: int

    @property
    def sparsity(self) -> float:
        """The fraction of blocks that are inactive."""
        return 1 - self.active / math.prod(self.blocks)


class _Axes(NamedTuple):
    """The axes of a kernel by role in a product, and the other axes of the inputs."""

    batch: list[int]
    summed: list[int]
    free: list[int]
    samples: list[int]


def _axes(kernel: ArrangedKernel, x: Any, sums: Sums) -> _Axes:
    axes, leaf = kernel.arrangement.axes, kernel.arrangement.leaf
    batch = [k for _, k in sums.batch]
    summed = [k for _, k in sums.contracted]
    free = [k for k in range(len(axes)) if k not in (*batch, *summed)]
    met = [i for i, _ in (*sums.batch, *sums.contracted)]
    of_batch = [axis for k in batch for axis in axes[k]]
    if not all(leaf[axis].is_stack for axis in of_batch):
        raise Refused(
            "is multiplied separately along an axis whose blocks belong to one layer: "
            "specify with dims= that it stacks separate layers, for example with the "
            "result of so.infer_dims"
        )
    return _Axes(
        batch=of_batch,
        summed=[axis for k in summed for axis in axes[k]],
        free=[axis for k in free for axis in axes[k]],
        samples=[i for i in range(len(x.shape)) if i not in met],
    )


def block_shape(kernel: ArrangedKernel, x: Any, sums: Sums) -> BlockShape:
    """Return the shape of a product, which decides whether it is faster by block.

    Args:
      kernel: the kernel.
      x: the inputs, or their shape.
      sums: the axes that meet.

    Raises:
      Refused: if blocks of one layer are multiplied separately.
    """
    leaf, axes = kernel.arrangement.leaf, _axes(kernel, x, sums)
    apart = math.prod(leaf[axis].blocks for axis in axes.batch)
    return BlockShape(
        block=_both(axes, [axis.extent for axis in leaf]),
        blocks=_both(axes, [axis.blocks for axis in leaf]),
        active=math.prod(kernel.index.shape) // apart,
        samples=math.prod(x.shape[axis] for axis in axes.samples),
    )


def _both(axes: _Axes, sizes: Sequence[int]) -> tuple[int, int]:
    """Return the product of sizes along the summed axes, and along the free axes."""
    summed = math.prod(sizes[axis] for axis in axes.summed)
    return summed, math.prod(sizes[axis] for axis in axes.free)


def multiply(
    kernel: ArrangedKernel, x: jax.Array, sums: Sums, dtype: Any, precision: Any = None
) -> jax.Array:
    """Multiply inputs with a kernel, block by block.

    Args:
      kernel: the kernel.
      x: the inputs.
      sums: the axes that meet.
      dtype: dtype of the result.
      precision: as in ``jax.lax.dot_general``.

    Returns:
      An array with the batch axes first, then the other axes of the inputs, then those
      of the kernel.

    Raises:
      Refused: if blocks of one layer are multiplied separately.
    """
    leaf, axes = kernel.arrangement.leaf, _axes(kernel, x, sums)
    summed = [leaf[axis] for axis in axes.summed]
    free = [leaf[axis] for axis in axes.free]
    met = [i for i, _ in (*sums.batch, *sums.contracted)]
    inputs = jnp.transpose(
        x, (*met[: len(sums.batch)], *axes.samples, *met[len(sums.batch) :])
    )
    batch = math.prod(leaf[axis].size for axis in axes.batch)
    inputs = _cut(jnp.reshape(inputs, (batch, -1, *(a.size for a in summed))), summed)
    blocks, places = _matrices(kernel, axes)
    options = Options(math.prod(axis.blocks for axis in free), dtype, precision)

    def one(x: jax.Array, blocks: jax.Array, places: Places) -> Any:
        return block_product(x, blocks, places, options)

    if batch == 1:
        y = one(inputs[0], blocks[0], Places(places.rows[0], places.columns[0]))[None]
    else:
        y = jax.vmap(one)(inputs, blocks, places)
    y = _joined(y, free)
    of_batch = [x.shape[i] for i, _ in sums.batch]
    of_samples = [x.shape[i] for i in axes.samples]
    summed_axes = [k for _, k in (*sums.batch, *sums.contracted)]
    of_kernel = [n for k, n in enumerate(kernel.shape) if k not in summed_axes]
    return jnp.reshape(y, (*of_batch, *of_samples, *of_kernel))


def _cut(x: jax.Array, axes: Sequence[LeafAxis]) -> jax.Array:
    """Reshape (batch, samples, *axes) to (batch, samples, blocks, entries of one)."""
    cut = [n for axis in axes for n in (axis.blocks, axis.extent)]
    x = jnp.reshape(x, (*x.shape[:2], *cut))
    every = range(2, 2 + len(cut))
    x = jnp.transpose(x, (0, 1, *every[::2], *every[1::2]))
    blocks = math.prod(axis.blocks for axis in axes)
    return jnp.reshape(x, (*x.shape[:2], blocks, -1))


def _joined(y: jax.Array, axes: Sequence[LeafAxis]) -> jax.Array:
    """Invert ``_cut``."""
    blocks, extents = [a.blocks for a in axes], [a.extent for a in axes]
    y = jnp.reshape(y, (*y.shape[:2], *blocks, *extents))
    order = [at for i in range(len(axes)) for at in (2 + i, 2 + len(axes) + i)]
    y = jnp.transpose(y, (0, 1, *order))
    return jnp.reshape(y, (*y.shape[:2], *(axis.size for axis in axes)))


def _matrices(kernel: ArrangedKernel, axes: _Axes) -> tuple[jax.Array, Places]:
    """Return the blocks as (batch, active, b, c), and their rows and columns."""
    arrangement = kernel.arrangement
    leaf, stacks, items = arrangement.leaf, arrangement.stacks, arrangement.items
    coordinates = dict(
        zip(
            items,
            jnp.unravel_index(kernel.index, [leaf[axis].blocks for axis in items]),
            strict=True,
        )
    )
    for at, axis in enumerate(stacks):
        coordinates[axis] = jax.lax.broadcasted_iota(
            kernel.index.dtype, kernel.index.shape, at
        )
    # Blocks along a stack axis outside the batch are part of the same matrix.
    order = [stacks.index(axis) for axis in axes.batch]
    order += [at for at in range(len(stacks) + 1) if at not in order]
    batch = math.prod(leaf[axis].blocks for axis in axes.batch)

    def along(joined: Sequence[int]) -> jax.Array:
        number = jnp.zeros_like(kernel.index)
        for axis in joined:
            number = number * leaf[axis].blocks + coordinates[axis]
        return jnp.reshape(jnp.transpose(number, order), (batch, -1))

    # The entries of a block: along the summed axes first, then along the others.
    first = len(stacks) + 1
    entries = [first + a for a in (*axes.summed, *axes.free, *axes.batch)]
    blocks = jnp.transpose(kernel.blocks, (*order, *entries))
    rows, columns = along(axes.summed), along(axes.free)
    block = _both(axes, [axis.extent for axis in leaf])
    blocks = jnp.reshape(blocks, (*rows.shape, *block))
    return blocks, Places(rows, columns)

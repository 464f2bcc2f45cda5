"""The product of inputs with a matrix of which only the active blocks are kept."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Samples are processed in parts, so that the arrays gathered for one part are at most
# this large. On CPUs they then stay in the cache: 1024 samples times 1024x4096 in
# blocks of 64 take 0.6 of the time of a single part. Elsewhere this limits the memory.
_GATHERED_BYTES = {"cpu": 4 * 2**20}
_GATHERED_BYTES_ELSEWHERE = 256 * 2**20

# With smaller parts, products lose more time than the cache saves.
_FEWEST_SAMPLES = 32


class Places(NamedTuple):
    """The places of the active blocks of a matrix.

    Attributes:
      rows: int32 array, the row of blocks in which each block is.
      columns: int32 array, the column of blocks in which each block is.
    """

    rows: jax.Array
    columns: jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of a product.

    Attributes:
      columns: number of columns of blocks in the matrix.
      dtype: dtype of the result; sums are in float32 or wider.
      precision: as in ``jax.lax.dot_general``.
    """

    columns: int
    dtype: Any
    precision: Any = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def block_product(
    x: jax.Array, blocks: jax.Array, places: Places, options: Options
) -> jax.Array:
    """Multiply inputs with a matrix of blocks.

    The inputs of all blocks are gathered, multiplied in one batched product, and summed
    over the blocks of each column. Gradients are computed in the same way; they keep
    the inputs and gather them again. Blocks may be in any order: sorting them gains
    nothing.

    Args:
      x: (samples, rows, b), the inputs cut like the blocks.
      blocks: (active, b, c).
      places: the places of the active blocks, without duplicates.
      options: number of columns, dtype and precision.

    Returns:
      Array of shape (samples, columns, c).
    """
    return _product(x, blocks, places, options)


def _product(
    x: jax.Array, blocks: jax.Array, places: Places, options: Options
) -> jax.Array:
    def multiply(x: jax.Array) -> jax.Array:
        y = _multiplied(_taken(x, places.rows), blocks, (2, 1), options)
        return _summed(y, places.columns, options.columns).astype(options.dtype)

    parts = _parts(x, blocks)
    # The compiler would not optimise across a loop, even one of a single step.
    if parts == 1:
        return multiply(x)
    return _joined(jax.lax.map(multiply, _in_parts(x, parts)))


def _forward(
    x: jax.Array, blocks: jax.Array, places: Places, options: Options
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Places]]:
    # Not `block_product`, so that forward mode can differentiate gradients.
    y = _product(x, blocks, places, options)
    return y, (x, blocks, places)


def _backward(
    options: Options,
    kept: tuple[jax.Array, jax.Array, Places],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array, None]:
    x, blocks, places = kept

    def step(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> Any:
        x, dy = part
        x, dy = _taken(x, places.rows), _taken(dy, places.columns)
        dx = _multiplied(dy, blocks, (2, 2), options)
        dx = _summed(dx, places.rows, rows).astype(dtype)
        return total + _multiplied(x, dy, (1, 1), options), dx

    rows, dtype, parts = x.shape[1], x.dtype, _parts(x, blocks)
    total = jnp.zeros(blocks.shape, _accumulated(x, blocks))
    if parts == 1:
        d_blocks, dx = step(total, (x, dy))
    else:
        both = _in_parts(x, parts), _in_parts(dy, parts)
        d_blocks, dx = jax.lax.scan(step, total, both)
        dx = _joined(dx)
    return dx, d_blocks.astype(blocks.dtype), None


block_product.defvjp(_forward, _backward)


def _taken(x: jax.Array, index: jax.Array) -> jax.Array:
    """Gather (samples, n, size) by index to (index, samples, size)."""
    return jnp.transpose(x, (1, 0, 2)).at[index].get(mode="promise_in_bounds")


def _summed(y: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """Sum (index, samples, size) by index to (samples, n, size)."""
    y = jax.ops.segment_sum(y, index, size, mode="promise_in_bounds")
    return jnp.transpose(y, (1, 0, 2))


def _multiplied(
    a: jax.Array, b: jax.Array, contracted: tuple[int, int], options: Options
) -> jax.Array:
    """Multiply two stacks of matrices pairwise, summed over one axis of each."""
    return jax.lax.dot_general(
        a,
        b,
        (((contracted[0],), (contracted[1],)), ((0,), (0,))),
        precision=options.precision,
        preferred_element_type=_accumulated(a, b),
    )


def _accumulated(a: jax.Array, b: jax.Array) -> Any:
    return jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)


def _parts(x: jax.Array, blocks: jax.Array) -> int:
    """Return the number of equal parts into which the samples are cut."""
    samples = x.shape[0]
    widest = max(blocks.shape[1:]) * jnp.dtype(jnp.float32).itemsize
    bound = _GATHERED_BYTES.get(jax.default_backend(), _GATHERED_BYTES_ELSEWHERE)
    wanted = -(-samples * blocks.shape[0] * widest // bound)
    most = samples // _FEWEST_SAMPLES
    enough = (n for n in range(wanted, most + 1) if samples % n == 0)
    # If no number of parts is large enough, the largest possible one.
    fewer = (n for n in range(min(wanted, most), 1, -1) if samples % n == 0)
    return next(enough, next(fewer, 1))


def _in_parts(x: jax.Array, parts: int) -> jax.Array:
    """Reshape (samples, ...) to (parts, samples of a part, ...)."""
    if jax.device_count() == 1:
        return jnp.reshape(x, (parts, -1, *x.shape[1:]))
    # Each part takes samples from the whole batch, so that it stays sharded.
    return jnp.swapaxes(jnp.reshape(x, (-1, parts, *x.shape[1:])), 0, 1)


def _joined(x: jax.Array) -> jax.Array:
    """Invert ``_in_parts``."""
    if jax.device_count() > 1:
        x = jnp.swapaxes(x, 0, 1)
    return jnp.reshape(x, (-1, *x.shape[2:]))

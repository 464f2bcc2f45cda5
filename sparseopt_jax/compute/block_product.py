"""The product of inputs with a matrix of which the active blocks alone are kept."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Samples go through in parts, such that what is gathered for one part stays this small.
# On CPUs it then stays in the cache: 1024 samples times 1024x4096 in blocks of 64 take
# 0.6 of the time that they take at once. Elsewhere it bounds the memory.
_GATHERED_BYTES = {"cpu": 4 * 2**20}
_GATHERED_BYTES_ELSEWHERE = 256 * 2**20

# Parts of fewer samples lose more in the products than they gain in the cache.
_FEWEST_SAMPLES = 32


class Places(NamedTuple):
    """Where the active blocks of a matrix stand.

    Attributes:
      rows: int32 array, the row of blocks that each block is in.
      columns: int32 array, its column of blocks.
    """

    rows: jax.Array
    columns: jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
    """What a product is besides its operands.

    Attributes:
      columns: how many columns of blocks the matrix has.
      dtype: the result's; sums are in float32 at least.
      precision: as ``jax.lax.dot_general`` takes it.
    """

    columns: int
    dtype: Any
    precision: Any = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def block_product(
    x: jax.Array, blocks: jax.Array, places: Places, options: Options
) -> jax.Array:
    """Multiply inputs with a matrix of blocks.

    The inputs of every block are gathered, multiplied in one batched product, and added
    up by the column that the block is in. So are the gradients, which keep the inputs
    and gather them again. Blocks may stand in any order: sorting them gains nothing.

    Args:
      x: (samples, rows, b), the inputs cut as the blocks are.
      blocks: (active, b, c).
      places: where the active blocks stand, no two at the same place.
      options: the matrix's width, and how to multiply.

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
    # A loop of one step would hide from the compiler what is around it.
    if parts == 1:
        return multiply(x)
    return _joined(jax.lax.map(multiply, _in_parts(x, parts)))


def _forward(
    x: jax.Array, blocks: jax.Array, places: Places, options: Options
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Places]]:
    # The function itself, so that gradients can be differentiated forwards.
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
    """From (samples, n, size) to (index, samples, size)."""
    return jnp.transpose(x, (1, 0, 2)).at[index].get(mode="promise_in_bounds")


def _summed(y: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """From (index, samples, size) to (samples, n, size), what meets added up."""
    y = jax.ops.segment_sum(y, index, size, mode="promise_in_bounds")
    return jnp.transpose(y, (1, 0, 2))


def _multiplied(
    a: jax.Array, b: jax.Array, contracted: tuple[int, int], options: Options
) -> jax.Array:
    """The products of the first matrices, the second, …, summed over an axis each."""
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
    """Into how many equal parts the samples are cut."""
    samples = x.shape[0]
    widest = max(blocks.shape[1:]) * jnp.dtype(jnp.float32).itemsize
    bound = _GATHERED_BYTES.get(jax.default_backend(), _GATHERED_BYTES_ELSEWHERE)
    wanted = -(-samples * blocks.shape[0] * widest // bound)
    most = samples // _FEWEST_SAMPLES
    enough = (n for n in range(wanted, most + 1) if samples % n == 0)
    # Where nothing cuts it so finely, the finest cut that there is.
    fewer = (n for n in range(min(wanted, most), 1, -1) if samples % n == 0)
    return next(enough, next(fewer, 1))


def _in_parts(x: jax.Array, parts: int) -> jax.Array:
    """From (samples, ...) to (parts, samples of a part, ...)."""
    if jax.device_count() == 1:
        return jnp.reshape(x, (parts, -1, *x.shape[1:]))
    # Every part takes samples from all over, so that a sharded batch stays sharded.
    return jnp.swapaxes(jnp.reshape(x, (-1, parts, *x.shape[1:])), 0, 1)


def _joined(x: jax.Array) -> jax.Array:
    """Return the inverse of ``_in_parts``."""
    if jax.device_count() > 1:
        x = jnp.swapaxes(x, 0, 1)
    return jnp.reshape(x, (-1, *x.shape[2:]))

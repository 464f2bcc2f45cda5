"""Timing of products by block and dense, at their actual shapes."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.compute.arranged_kernel import (
    ArrangedKernel,
    Arrangement,
    LeafAxis,
)
from sparseopt_jax.compute.kernel_products import BlockShape, Sums, multiply

_ROUNDS = 7
_MATRIX = Sums([(1, 0)])


@functools.cache
def times(shape: BlockShape, dtype: Any) -> tuple[float, float]:
    """Time a product with its gradients, by block and dense, compiled separately.

    Each shape and dtype is timed once per process. The dense way builds the dense array
    from the blocks, and extracts the blocks of its gradient, as training with compact
    kernels must.

    Args:
      shape: the shape of the product.
      dtype: dtype of inputs and blocks.

    Returns:
      Seconds by block and dense: medians over rounds that alternate between the two.
    """
    # If a model is being traced, these computations are not part of its program.
    with jax.ensure_compile_time_eval():
        operands = _operands(shape, dtype)
        steps = [jax.jit(_with_gradients(f)) for f in (_by_block, _dense)]
        for step in steps:
            jax.block_until_ready(step(*operands))
        seconds: tuple[list[float], list[float]] = [], []
        for _ in range(_ROUNDS):
            for step, found in zip(steps, seconds, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(step(*operands))
                found.append(time.perf_counter() - start)
    by_block, dense = map(statistics.median, seconds)
    return by_block, dense


def _operands(shape: BlockShape, dtype: Any) -> tuple[ArrangedKernel, Any, Any]:
    random = np.random.default_rng(0)
    leaf = tuple(
        LeafAxis(blocks, extent, is_stack=False)
        for blocks, extent in zip(shape.blocks, shape.block, strict=True)
    )
    inputs, outputs = (axis.size for axis in leaf)
    places = random.permutation(leaf[0].blocks * leaf[1].blocks)[: shape.active]

    def normal(*sizes: int) -> jax.Array:
        return jnp.asarray(random.normal(size=sizes), dtype)

    kernel = ArrangedKernel(
        normal(shape.active, *shape.block),
        jnp.asarray(places, jnp.int32),
        Arrangement(path="", origin=0, leaf=leaf, axes=((0,), (1,))),
    )
    return kernel, normal(shape.samples, inputs), normal(shape.samples, outputs)


def _by_block(kernel: ArrangedKernel, x: jax.Array) -> jax.Array:
    return multiply(kernel, x, _MATRIX, x.dtype)


def _dense(kernel: ArrangedKernel, x: jax.Array) -> jax.Array:
    return x @ kernel.dense()


def _with_gradients(product: Callable[[ArrangedKernel, Any], Any]) -> Callable:
    def step(kernel: ArrangedKernel, x: jax.Array, dy: jax.Array) -> Any:
        def of(blocks: jax.Array, x: jax.Array) -> jax.Array:
            return product(kernel.with_blocks(blocks), x)

        y, transposed = jax.vjp(of, kernel.blocks, x)
        return y, transposed(dy)

    return step

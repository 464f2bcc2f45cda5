"""The dense gradient of a product computed by block."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from sparseopt_jax.arrays.sharding_types import explicit_sharding
from sparseopt_jax.compute.arranged_kernel import ArrangedKernel
from sparseopt_jax.tracing.jaxprs import evaluate


def probed_product(
    eqn: core.JaxprEqn, values: Sequence[Any], y: jax.Array
) -> jax.Array:
    """Return a product with a derivative with respect to the probe of its kernel.

    This derivative is the one of the equation with respect to a dense kernel, and costs
    one more product; the other derivatives are those of ``y``.

    Args:
      eqn: the equation of the product.
      values: its operands, one of which is a kernel with a probe.
      y: the result by block, which is returned unchanged.
    """
    side = int(isinstance(values[1], ArrangedKernel))
    zeros, x = values[side].zeros, values[1 - side]
    like = jax.ShapeDtypeStruct(
        zeros.shape, zeros.dtype, sharding=explicit_sharding(zeros)
    )

    @jax.custom_vjp
    def product(y: jax.Array, zeros: jax.Array, x: jax.Array) -> jax.Array:
        del zeros, x
        return y

    def forward(y: jax.Array, zeros: jax.Array, x: jax.Array) -> Any:
        del zeros
        return y, x

    def backward(x: jax.Array, dy: jax.Array) -> Any:
        def by_kernel(kernel: jax.Array) -> jax.Array:
            return evaluate(eqn, [kernel, x] if side == 0 else [x, kernel])[0]

        (gradient,) = jax.linear_transpose(by_kernel, like)(dy)
        return dy, gradient, None

    product.defvjp(forward, backward)
    return product(y, zeros, x)

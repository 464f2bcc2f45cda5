"""What a kernel in an equation multiplies, and along which axes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from sparseopt_jax.compute.arranged_kernel import ArrangedKernel, Refused
from sparseopt_jax.compute.kernel_products import Sums


class Product(NamedTuple):
    """A product of inputs with a compact kernel.

    Attributes:
      kernel: the kernel.
      x: the inputs.
      sums: the axes that meet.
      order: the permutation to the equation's result, from an array with the batch axes
        first, then those of the inputs, then those of the kernel.
    """

    kernel: ArrangedKernel
    x: Any
    sums: Sums
    order: Sequence[int]


def product_of(eqn: core.JaxprEqn, values: list[Any]) -> Product:
    """Return the product that a matrix product or convolution computes with a kernel.

    Args:
      eqn: the equation.
      values: its operands, one of which is a kernel.

    Raises:
      Refused: if blocks cannot compute it.
    """
    if all(isinstance(value, ArrangedKernel) for value in values):
        raise Refused("is multiplied with another compact kernel")
    if eqn.primitive.name == "dot_general":
        return _matrix_product(eqn, values)
    return _convolution(eqn, values)


def _matrix_product(eqn: core.JaxprEqn, values: list[Any]) -> Product:
    side = int(isinstance(values[1], ArrangedKernel))
    x, kernel = values[1 - side], values[side]
    contracted, batch = (
        list(zip(axes[1 - side], axes[side], strict=True))
        for axes in eqn.params["dimension_numbers"]
    )
    first = len(batch)
    last = np.ndim(x) - len(contracted)
    end = last + len(kernel.shape) - first - len(contracted)
    order = [*range(end)]
    if side == 0:
        # The axes of the left operand come first.
        order = [*range(first), *range(last, end), *range(first, last)]
    return Product(kernel, x, Sums(contracted, batch), order)


def _convolution(eqn: core.JaxprEqn, values: list[Any]) -> Product:
    x, kernel = values
    if not isinstance(kernel, ArrangedKernel):
        raise Refused("is the left operand of a convolution")
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    outputs, inputs, *window = numbers.rhs_spec
    sizes = [kernel.shape[axis] for axis in window]
    if any(size > 1 for size in sizes):
        raise Refused(f"is convolved with a window of {'x'.join(map(str, sizes))}")
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        raise Refused("is convolved in groups")
    padding = [size for pair in params["padding"] for size in pair]
    if any(padding) or any(size > 1 for size in params["lhs_dilation"]):
        raise Refused("is convolved with padded or dilated inputs")
    samples, channels, *places = numbers.lhs_spec
    strides = [1] * len(numbers.lhs_spec)
    for axis, stride in zip(places, params["window_strides"], strict=True):
        strides[axis] = stride
    x = jax.lax.slice(x, [0] * len(strides), x.shape, strides)
    matrix = kernel.transposed((inputs, outputs, *window))
    matrix = matrix.reshaped(matrix.shape[:2])
    # From the axes of the inputs in order, without the channels, then the outputs.
    kept = [axis for axis in range(x.ndim) if axis != channels]
    order = [0] * x.ndim
    order[numbers.out_spec[0]] = kept.index(samples)
    order[numbers.out_spec[1]] = len(kept)
    for axis, place in zip(numbers.out_spec[2:], places, strict=True):
        order[axis] = kept.index(place)
    return Product(matrix, x, Sums([(channels, 0)]), order)

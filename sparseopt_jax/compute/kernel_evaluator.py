"""Evaluation of a model's program with only the active blocks of its kernels.

Equations without a compact kernel are computed unchanged. Products with a compact
kernel are computed by block, and operations that keep a kernel's values are applied to
its blocks. Everything else is rejected, because it would need the dense array.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util

from sparseopt_jax.arrays.sharding_types import is_explicit
from sparseopt_jax.compute.arranged_kernel import (
    ArrangedKernel,
    KernelUseError,
    Refused,
)
from sparseopt_jax.compute.kernel_products import BlockShape, block_shape, multiply
from sparseopt_jax.compute.probed_product import probed_product
from sparseopt_jax.compute.product_equations import product_of
from sparseopt_jax.tracing.jaxprs import (
    called_jaxpr,
    evaluate,
    interpret,
    loop_of,
    open_jaxpr,
    shape_of,
)
from sparseopt_jax.tracing.primitives import (
    CALLS,
    CHECKPOINTS,
    CUSTOM_CALLS,
    KEEPS,
    MOVES,
    PLACES,
    PRODUCTS,
)

ByBlock = Callable[[str, BlockShape, Any], bool]
"""Decides from a kernel's path, a product's shape and dtype whether to run by block."""


class KernelEvaluator:
    """Evaluates jaxprs in which some values are compact kernels."""

    def __init__(self, by_block: ByBlock):
        self.by_block = by_block

    def run(
        self, jaxpr: core.Jaxpr, constants: Sequence[Any], values: Sequence[Any]
    ) -> list[Any]:
        """Compute the outputs of a jaxpr.

        Args:
          jaxpr: the jaxpr.
          constants: the values of its constants.
          values: its inputs, with an ``ArrangedKernel`` for each compact kernel.

        Returns:
          Its outputs, with an ``ArrangedKernel`` for each that is still a kernel.

        Raises:
          ValueError: if a kernel is used in a way that needs the dense array.
        """
        return interpret(
            jaxpr, values, self._equation, constants=constants, literal=_value_of
        )

    def _equation(self, eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
        kernels = [value for value in values if _is_kernel(value)]
        if not kernels:
            return evaluate(eqn, values)
        try:
            return self._with_kernels(eqn, values)
        except Refused as refused:
            path = kernels[0].path
            # Empty for equations from a library.
            line = source_info_util.summarize(eqn.source_info)
            where = f"{eqn.primitive.name} at {line}" if line else eqn.primitive.name
            raise KernelUseError(
                path,
                str(refused),
                f"the compact kernel {path!r} {refused} ({where}), but its blocks can "
                "only multiply inputs: keep this leaf dense with where= or another "
                f"structure, or let sparse_apply(..., by={{{path!r}: 'dense'}}) build "
                "a dense array in every step",
            ) from None

    def _with_kernels(self, eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        if name in PRODUCTS:
            return [self._product(eqn, values)]
        loops = {"scan": self._scan, "while": self._while, "cond": self._cond}
        if name in loops:
            return loops[name](eqn, values)
        if name in CHECKPOINTS:
            return self._checkpoint(eqn, values)
        if name in CUSTOM_CALLS:
            raise Refused("is passed to a function with a custom derivative")
        if name in CALLS and (body := called_jaxpr(eqn)) is not None:
            return self.run(open_jaxpr(body), getattr(body, "consts", ()), values)
        return _arranged(eqn, values)

    def _product(self, eqn: core.JaxprEqn, values: list[Any]) -> jax.Array:
        product = product_of(eqn, values)
        kernel, x, sums = product.kernel, product.x, product.sums
        result: Any = eqn.outvars[0].aval
        shape = block_shape(kernel, x, sums)
        if not self.by_block(kernel.path, shape, x.dtype):
            return evaluate(eqn, [_dense(value) for value in values])[0]

        def multiplied(kernel: ArrangedKernel, x: jax.Array) -> jax.Array:
            precision = eqn.params["precision"]
            y = multiply(kernel, x, sums, result.dtype, precision)
            return jnp.transpose(y, product.order)

        if is_explicit(result.sharding):
            # The compiler chooses the shardings inside.
            placed: Any = jax.sharding.auto_axes(
                multiplied, out_sharding=result.sharding
            )
            y = placed(kernel, x)
        else:
            y = multiplied(kernel, x)
        return y if kernel.zeros is None else probed_product(eqn, values, y)

    def _checkpoint(self, eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
        params = eqn.params

        def again(*values: Any) -> list[Any]:
            return self.run(open_jaxpr(params["jaxpr"]), (), values)

        return jax.checkpoint(
            again, prevent_cse=params["prevent_cse"], policy=params["policy"]
        )(*values)

    def _cond(self, eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
        def branch(held: core.ClosedJaxpr) -> Callable[..., list[Any]]:
            def run(*values: Any) -> list[Any]:
                return _without_kernels(self.run(held.jaxpr, held.consts, values))

            return run

        index, *operands = values
        branches = [branch(held) for held in eqn.params["branches"]]
        return jax.lax.switch(index, branches, *operands)

    def _while(self, eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
        loop = loop_of(eqn)
        condition = eqn.params["cond_jaxpr"]
        of_condition, values = values[: loop.condition], values[loop.condition :]
        constants, carried = values[: loop.constants], values[loop.constants :]
        _check_carried(carried)

        def goes_on(carried: list[Any]) -> Any:
            inputs = [*of_condition, *carried]
            return self.run(condition.jaxpr, condition.consts, inputs)[0]

        def step(carried: list[Any]) -> list[Any]:
            inputs = [*constants, *carried]
            outputs = self.run(loop.body, loop.body_constants, inputs)
            return _without_kernels(outputs)

        return jax.lax.while_loop(goes_on, step, carried)

    def _scan(self, eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
        loop = loop_of(eqn)
        first_slice = loop.constants + loop.carried
        carried = values[loop.constants : first_slice]
        _check_carried(carried)

        def step(carried: list[Any], sliced: list[Any]) -> tuple[Any, Any]:
            sliced = [x.layer() if _is_kernel(x) else x for x in sliced]
            inputs = [*values[: loop.constants], *carried, *sliced]
            outputs = self.run(loop.body, loop.body_constants, inputs)
            outputs = _without_kernels(outputs)
            return outputs[: loop.carried], outputs[loop.carried :]

        slices = [x.by_layer() if _is_kernel(x) else x for x in values[first_slice:]]
        carried, stacked = jax.lax.scan(
            step,
            carried,
            slices,
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        return [*carried, *stacked]


def _is_kernel(value: Any) -> bool:
    return isinstance(value, ArrangedKernel)


def _dense(value: Any) -> Any:
    return value.dense() if _is_kernel(value) else value


def _value_of(literal: core.Literal) -> Any:
    # With the dtype that it has in the jaxpr, which a loop that carries it needs.
    return np.asarray(literal.val, getattr(literal.aval, "dtype", None))


def _check_carried(values: Sequence[Any]) -> None:
    if any(map(_is_kernel, values)):
        raise Refused("is carried between the steps of a loop")


def _without_kernels(outputs: list[Any]) -> list[Any]:
    if any(map(_is_kernel, outputs)):
        raise Refused("is returned by a branch or a loop")
    return outputs


def _arranged(eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
    """Return the results of an equation that does not change a kernel's weights."""
    name, kernel = eqn.primitive.name, values[0]
    if name in PLACES and kernel.zeros is None:
        # The placement of the dense array does not apply to blocks.
        return values
    if name in KEEPS:
        # Probes are dense arrays, so they are placed.
        arrays = [value.blocks if _is_kernel(value) else value for value in values]
        results = arrays if name in PLACES else evaluate(eqn, arrays)
        probes = [value.zeros if _is_kernel(value) else value for value in values]
        has_probes = not any(probe is None for probe in probes)
        zeros = evaluate(eqn, probes) if has_probes else [None] * len(results)
        return [
            old.with_blocks(*new) if _is_kernel(old) else new[0]
            for old, *new in zip(values, results, zeros, strict=True)
        ]
    if name == "transpose":
        return [kernel.transposed(eqn.params["permutation"])]
    shape = shape_of(eqn.outvars[0]) if eqn.outvars else ()
    if name in MOVES and math.prod(shape) == math.prod(kernel.shape):
        order = eqn.params.get("dimensions") if name == "reshape" else None
        if order:
            kernel = kernel.transposed(order)
        return [kernel.reshaped(shape)]
    raise Refused(f"passes through {name}")

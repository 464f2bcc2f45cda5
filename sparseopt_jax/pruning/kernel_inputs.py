"""Evaluation of a model that collects the inputs of its kernels.

Every equation of the model's jaxpr is computed unchanged.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from sparseopt_jax.arrays.sharding_types import replicated
from sparseopt_jax.pruning.input_statistics import (
    Inputs,
    Moments,
    add_moments,
    common_count,
    inputs_of,
    join_moments,
    moments_of,
)
from sparseopt_jax.tracing.jaxprs import Loop, evaluate, loop_of
from sparseopt_jax.tracing.kernel_layout import Layout, Use
from sparseopt_jax.tracing.kernel_trace import (
    KernelReader,
    hides_code,
    layouts_in_loop,
)
from sparseopt_jax.tracing.operand_rows import Rows
from sparseopt_jax.tracing.primitives import (
    ELEMENTWISE,
    KEEPS,
    MOVES,
    PARTS,
    PRODUCTS,
    REDUCTIONS,
)

# Operations that multiply no data with a kernel, unless they multiply entries.
_HARMLESS = ELEMENTWISE | KEEPS | MOVES | PARTS | REDUCTIONS

# Moments by the kernel's path and, for each enclosing loop, whether it slices the
# kernel.
_Found = dict[tuple[str, tuple[bool, ...]], Moments]


class Computed(NamedTuple):
    """A value, and what it is computed from.

    Attributes:
      array: the value.
      kernels: the kernels that it is computed from, except through products.
      is_data: whether it depends on the model's inputs, not only on its variables, or
        holds rows of a table.
    """

    array: Any
    kernels: frozenset[str] = frozenset()
    is_data: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return jnp.shape(self.array)

    @property
    def is_kernel(self) -> bool:
        """Whether products with it use the kernels as weights, not as a lookup."""
        return bool(self.kernels) and not self.is_data

    def joined(self, others: Sequence["Computed"]) -> "Computed":
        """Return the same array, computed from others as well."""
        return self._replace(
            kernels=self.kernels.union(*(other.kernels for other in others)),
            is_data=self.is_data or any(other.is_data for other in others),
        )


class InputReader(KernelReader):
    """A reader that collects the inputs of kernels.

    It also knows which other values are computed from a kernel: if one of them
    multiplies data, the kernel has a use whose inputs were not observed.

    Attributes:
      with_gram: whether to compute Gram matrices.
      incomplete: kernels some of whose inputs cannot be observed.
    """

    def __init__(self, with_gram: bool):
        super().__init__()
        self.with_gram = with_gram
        self.incomplete: set[str] = set()

    def read(
        self,
        jaxpr: core.ClosedJaxpr,
        values: Sequence[Computed],
        layouts: Sequence[Layout | None],
    ) -> dict[str, Inputs]:
        """Evaluate a jaxpr.

        Args:
          jaxpr: the model's jaxpr.
          values: its inputs.
          layouts: the layout of each input; None if it is not a kernel.

        Returns:
          Statistics by path, for every kernel all of whose inputs were observed.
        """
        found: _Found = {}
        self.run(jaxpr.jaxpr, jaxpr.consts, values, layouts, found)
        shapes = {layout.path: layout.shape for layout in layouts if layout}
        return {
            path: inputs_of(moments, self.uses[path], shapes[path])
            for (path, _), moments in found.items()
            if path not in self.incomplete
        }

    def results(
        self, eqn: core.JaxprEqn, values: list[Any], layouts: list[Layout | None]
    ) -> Sequence[Computed]:
        """Compute the results of an equation."""
        operands = [*map(_computed, values)]
        for kernel in _out_of_sight(eqn, operands, layouts):
            self.trouble.setdefault(kernel, f"goes into {eqn.primitive.name}")
            self.incomplete.add(kernel)
        results = map(Computed, evaluate(eqn, [operand.array for operand in operands]))
        found = [result.joined(operands) for result in results]
        if eqn.primitive.name in PRODUCTS:
            return [result._replace(kernels=frozenset()) for result in found]
        if eqn.primitive.name == "gather":
            return [result._replace(is_data=True) for result in found]
        return found

    def follows(self, values: list[Any]) -> bool:
        """Tell whether a value is computed from kernels."""
        return any(_computed(value).kernels for value in values)

    def lost(self, layout: Layout, reason: str, is_incomplete: bool) -> None:
        """Record the first reason, and whether inputs are missing."""
        self.trouble.setdefault(layout.path, reason)
        if is_incomplete:
            self.incomplete.add(layout.path)

    def multiplied(
        self, layout: Layout, use: Use, rows: Rows, inputs: Any, found: _Found
    ) -> None:
        """Add the moments of the inputs."""
        inputs = _computed(inputs)
        if inputs.is_kernel:
            self.lost(layout, "multiplied with another kernel", True)
            return
        if self.uses.setdefault(layout.path, use) != use:
            self.lost(layout, "used in several different ways", True)
            return
        moments = replicated(
            lambda x: moments_of(rows.of(x), self.with_gram), inputs.array
        )
        _add(found, (layout.path, layout.loops), moments)

    def loop(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: _Found,
    ) -> Sequence[Computed]:
        """Run a loop that also returns the statistics of each step."""
        loop = loop_of(eqn)
        inside = layouts_in_loop(self, loop, layouts)
        operands = [*map(_computed, values)]
        arrays = [operand.array for operand in operands]
        first_slice = loop.constants + loop.carried
        # Carried values may be data from the second step on.
        is_data = any(operand.is_data for operand in operands)
        for index in range(loop.constants, first_slice):
            operands[index] = operands[index]._replace(is_data=is_data)
        results: list[Computed] = []

        def step(carry: list[Any], sliced: list[Any]) -> tuple[Any, Any]:
            collected: _Found = {}
            given = [*arrays[: loop.constants], *carry, *sliced]
            inputs = [
                operand._replace(array=array)
                for array, operand in zip(given, operands, strict=True)
            ]
            results[:] = self._step(loop, inputs, inside, collected)
            outputs = [result.array for result in results]
            return outputs[: loop.carried], (outputs[loop.carried :], collected)

        carry, (stacked, collected) = jax.lax.scan(
            step,
            arrays[loop.constants : first_slice],
            arrays[first_slice:],
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        for (path, loops), moments in collected.items():
            if loops[-1]:
                joined = moments._replace(count=common_count(moments))
            else:
                joined = join_moments(moments)
            _add(found, (path, loops[:-1]), joined)
        outputs = zip([*carry, *stacked], results, strict=True)
        return [result._replace(array=array) for array, result in outputs]

    def _step(
        self,
        loop: Loop,
        inputs: list[Computed],
        layouts: list[Layout | None],
        found: _Found,
    ) -> list[Computed]:
        """Run one step, repeatedly until carried values name all their kernels."""
        carried = slice(loop.constants, loop.constants + loop.carried)
        while True:
            collected: _Found = {}
            outputs, _ = self.run(
                loop.body, loop.body_constants, inputs, layouts, collected
            )
            outputs = [*map(_computed, outputs)]
            before = inputs[carried]
            pairs = zip(before, outputs[: loop.carried], strict=True)
            inputs[carried] = [one.joined([other]) for one, other in pairs]
            if [one[1:] for one in inputs[carried]] == [one[1:] for one in before]:
                found.update(collected)
                return outputs


def _computed(value: Any) -> Computed:
    # Constants and literals are plain arrays.
    return value if isinstance(value, Computed) else Computed(value)


def _out_of_sight(
    eqn: core.JaxprEqn, operands: list[Computed], layouts: list[Layout | None]
) -> frozenset[str]:
    """Return the kernels that an equation multiplies with inputs that are not seen."""
    name = eqn.primitive.name
    is_data = any(operand.is_data for operand in operands)
    kernels = frozenset[str]()
    for index, (operand, layout) in enumerate(zip(operands, layouts, strict=True)):
        if name in PRODUCTS:
            # Rows of a table are the inputs of a kernel.
            is_lookup = operand.is_data and operands[1 - index].is_kernel
            is_unseen = layout is None and not is_lookup
        elif hides_code(eqn):
            is_unseen = True
        elif operand.is_data:
            is_unseen = False
        else:
            is_unseen = name not in _HARMLESS or (is_data and name in ("mul", "div"))
        if is_unseen:
            kernels |= operand.kernels
    return kernels


def _add(found: _Found, key: tuple[str, tuple[bool, ...]], moments: Moments):
    found[key] = add_moments(found[key], moments) if key in found else moments

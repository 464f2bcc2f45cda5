"""A reader of kernels' axes off a model, which computes no numbers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core

from sparseopt_jax.layers.neuron_dims import Axes
from sparseopt_jax.tracing.jaxprs import loop_of, open_jaxpr, shape_of
from sparseopt_jax.tracing.kernel_layout import Factor, Layout, Use, use_of
from sparseopt_jax.tracing.kernel_trace import KernelReader, layouts_in_loop
from sparseopt_jax.tracing.operand_rows import Rows
from sparseopt_jax.tracing.primitives import ELEMENTWISE

# Equations whose results have the axes of their operands.
_KEEP_AXES = ELEMENTWISE | {"rev"}


class Known(NamedTuple):
    """The properties of a value that are known without computing it.

    Attributes:
      shape: its shape.
      is_data: whether it depends on the model's inputs, not only on its variables.
    """

    shape: tuple[int, ...]
    is_data: bool


class AxesReader(KernelReader):
    """A reader that collects how a model uses the axes of its kernels.

    It follows more than readers that need the inputs: kernels that are normalised,
    quantised or masked before they multiply, parts of kernels, branches and loops.

    Attributes:
      conflicts: kernel -> why its uses leave its axes open.
    """

    def __init__(self):
        super().__init__()
        self.conflicts: dict[str, str] = {}
        # Multiplications without data count only if a kernel has no others: the power
        # iteration of a spectral norm is not a use of it.
        self._without_data: dict[str, Use] = {}

    def read(
        self,
        jaxpr: core.ClosedJaxpr,
        values: Sequence[Known],
        layouts: Sequence[Layout | None],
    ) -> dict[str, Axes]:
        """Read a jaxpr.

        Args:
          jaxpr: the model's.
          values: its inputs.
          layouts: the layout of each input that is a kernel, else None.

        Returns:
          The axes by kernel path, for every kernel whose uses agree.
        """
        self.run(jaxpr.jaxpr, jaxpr.consts, values, layouts, None)
        uses = self._without_data | self.uses
        return {
            path: use.axes for path, use in uses.items() if path not in self.conflicts
        }

    def results(
        self, eqn: core.JaxprEqn, values: list[Any], layouts: list[Layout | None]
    ) -> Sequence[Known]:
        """Return the known properties of an equation's results."""
        del layouts
        is_data = any(map(_is_data, values))
        return [Known(shape_of(atom), is_data) for atom in eqn.outvars]

    def lost(self, layout: Layout, reason: str, is_incomplete: bool) -> None:
        """Record the first reason."""
        del is_incomplete
        self.trouble.setdefault(layout.path, reason)

    def multiplied(
        self, layout: Layout, use: Use, rows: Rows | None, inputs: Any, found: Any
    ) -> None:
        """Compare the axes with those of other uses."""
        uses = self.uses if _is_data(inputs) else self._without_data
        known = uses.setdefault(layout.path, use)
        if known.axes.reduction == use.axes.reduction:
            # Separate layers may share inputs; only a use with separate inputs shows
            # the stack.
            uses[layout.path] = max(known, use, key=lambda one: len(one.axes.batch))
        elif uses is self.uses:
            self.conflicts[layout.path] = (
                f"used in several ways: it sums over axes {known.axes.reduction}, and "
                f"over {use.axes.reduction}"
            )

    def loop(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: Any,
    ) -> Sequence[Known]:
        """Read one step of a scan."""
        loop = loop_of(eqn)
        # Carried values may be data from the second step on.
        is_data = [*map(_is_data, values)]
        first_slice = loop.constants + loop.carried
        is_data[loop.constants : first_slice] = [any(is_data)] * loop.carried
        inputs = [*map(Known, map(shape_of, loop.body.invars), is_data)]
        inside = layouts_in_loop(self, loop, layouts)
        self.run(loop.body, loop.body_constants, inputs, inside, found)
        return self.results(eqn, values, layouts)

    def further(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: Any,
    ) -> Sequence[Layout | None] | None:
        """Follow kernels through elementwise operations, parts, branches and loops."""
        name = eqn.primitive.name
        if name in _KEEP_AXES:
            return _entrywise(eqn, values, layouts)
        if name in ("slice", "dynamic_slice", "split") and layouts[0]:
            parts = [_part(layouts[0], shape_of(atom)) for atom in eqn.outvars]
            return parts if all(parts) else None
        if name == "unstack" and layouts[0]:
            return [layouts[0].without(eqn.params["axis"])] * len(eqn.outvars)
        if name == "shard_map":
            body = open_jaxpr(eqn.params["jaxpr"])
            parts = [
                layout and _part(layout, shape_of(atom), is_layer=False)
                for layout, atom in zip(layouts, body.invars, strict=True)
            ]
            self.run(body, (), values, parts, found)
            return ()
        if name == "cond" and not layouts[0]:
            for branch in eqn.params["branches"]:
                body, consts = open_jaxpr(branch), getattr(branch, "consts", ())
                self.run(body, consts, values[1:], layouts[1:], found)
            return ()
        if name == "while":
            return self._while(eqn, values, layouts, found)
        if name == "ragged_dot_general" and layouts[1] and not layouts[0]:
            return self._ragged_dot(eqn, values[0], layouts[1])
        return None

    def _while(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: Any,
    ) -> Sequence[Layout | None]:
        loop = loop_of(eqn)
        carry = self.results(eqn, values, layouts)
        constants = values[loop.condition : loop.condition + loop.constants]
        inside = layouts_in_loop(self, loop, layouts[loop.condition :])
        inputs = [*constants, *carry]
        self.run(loop.body, loop.body_constants, inputs, inside, found)
        return ()

    def _ragged_dot(
        self, eqn: core.JaxprEqn, inputs: Any, layout: Layout
    ) -> Sequence[Layout | None]:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (_, contracted), (_, batch) = numbers.dot_dimension_numbers
        leading = (*numbers.rhs_group_dimensions, *batch)
        lead = tuple(f for axis in leading for f in layout.axes[axis])
        summed = tuple(f for axis in contracted for f in layout.axes[axis])
        use = use_of(layout, lead, summed)
        if isinstance(use, str):
            self.lost(layout, use, True)
        else:
            self.multiplied(layout, use, None, inputs, None)
        return ()


def _is_data(value: Any) -> bool:
    return getattr(value, "is_data", False)


def _entrywise(
    eqn: core.JaxprEqn, values: list[Any], layouts: list[Layout | None]
) -> Sequence[Layout | None] | None:
    """Return the layout of a kernel whose entries change independently of the data."""
    known = [layout for layout in layouts if layout]
    # A table that is added to the data is not a kernel of later products.
    if any(map(_is_data, values)) or any(layout != known[0] for layout in known):
        return None
    return [known[0]]


def _part(
    layout: Layout, shape: tuple[int, ...], *, is_layer: bool = True
) -> Layout | None:
    """Return the layout of a part of a kernel, which is that of a smaller kernel.

    Args:
      layout: the kernel's.
      shape: the shape of the part.
      is_layer: whether a single entry of an axis is one layer of a stack.

    Returns:
      The layout, or None if joined axes are then cut.
    """
    axes, sizes, slices = list(layout.axes), list(layout.shape), list(layout.slices)
    for index, (factors, size) in enumerate(zip(layout.axes, shape, strict=True)):
        if math.prod(factor.size for factor in factors) == size:
            continue
        if len(factors) != 1 or factors[0].axis < 0:
            return None
        (factor,) = factors
        if factor.size != layout.shape[factor.axis]:
            return None
        if size == 1 and is_layer:
            slices.append(factors)
            axes[index] = ()
        else:
            sizes[factor.axis] = size
            axes[index] = (Factor(factor.axis, 1, size),)
    return dataclasses.replace(
        layout, axes=tuple(axes), shape=tuple(sizes), slices=tuple(slices)
    )

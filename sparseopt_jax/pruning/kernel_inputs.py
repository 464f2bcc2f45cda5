"""Evaluation of a model that collects the inputs of its kernels.

Every equation of the model's jaxpr is computed unchanged.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from sparseopt_jax.arrays.sharding_types import replicated
from sparseopt_jax.pruning.input_statistics import (
    Inputs,
    Moments,
    add_moments,
    inputs_of,
    join_moments,
    moments_of,
)
from sparseopt_jax.tracing.jaxprs import evaluate, loop_of
from sparseopt_jax.tracing.kernel_layout import Layout, Use
from sparseopt_jax.tracing.kernel_trace import KernelReader, layouts_in_loop
from sparseopt_jax.tracing.operand_rows import Rows

# Moments by the kernel's path and, for each enclosing loop, whether it slices the
# kernel.
_Found = dict[tuple[str, tuple[bool, ...]], Moments]


class InputReader(KernelReader):
    """A reader that collects the inputs of kernels.

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
        values: Sequence[jax.Array],
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

    def results(self, eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
        """Compute the results of an equation."""
        return evaluate(eqn, values)

    def lost(self, layout: Layout, reason: str, is_incomplete: bool) -> None:
        """Record the first reason, and whether inputs are missing."""
        self.trouble.setdefault(layout.path, reason)
        if is_incomplete:
            self.incomplete.add(layout.path)

    def multiplied(
        self, layout: Layout, use: Use, rows: Rows, inputs: Any, found: _Found
    ) -> None:
        """Add the moments of the inputs."""
        if self.uses.setdefault(layout.path, use) != use:
            self.lost(layout, "used in several different ways", True)
            return
        moments = replicated(lambda x: moments_of(rows.of(x), self.with_gram), inputs)
        _add(found, (layout.path, layout.loops), moments)

    def loop(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: _Found,
    ) -> Sequence[Any]:
        """Run a loop that also returns the statistics of each step."""
        loop = loop_of(eqn)
        inside = layouts_in_loop(self, loop, layouts)
        first_slice = loop.constants + loop.carried

        def step(carry: list[Any], sliced: list[Any]) -> tuple[Any, Any]:
            collected: _Found = {}
            inputs = [*values[: loop.constants], *carry, *sliced]
            outputs, _ = self.run(
                loop.body, loop.body_constants, inputs, inside, collected
            )
            return outputs[: loop.carried], (outputs[loop.carried :], collected)

        carry, (stacked, collected) = jax.lax.scan(
            step,
            values[loop.constants : first_slice],
            values[first_slice:],
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        for (path, loops), moments in collected.items():
            if loops[-1]:
                joined = moments._replace(count=moments.count[0])
            else:
                joined = join_moments(moments)
            _add(found, (path, loops[:-1]), joined)
        return [*carry, *stacked]


def _add(found: _Found, key: tuple[str, tuple[bool, ...]], moments: Moments):
    found[key] = add_moments(found[key], moments) if key in found else moments

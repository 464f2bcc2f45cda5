"""A reader that follows kernels through a model, equation by equation.

Each value that is a kernel in some arrangement has a layout. If such a value is an
operand of a matrix product or a convolution, the other operand holds the kernel's
inputs. Subclasses decide what happens to the values themselves: statistics of inputs
need them computed, the axes do not.
"""

import abc
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from sparseopt_jax.layers.eligibility import Where, kinds_by_path
from sparseopt_jax.layers.leaf_kinds import NOT_MULTIPLIED
from sparseopt_jax.tracing.jaxprs import (
    Loop,
    called_jaxpr,
    held_jaxprs,
    interpret,
    open_jaxpr,
    shape_of,
)
from sparseopt_jax.tracing.kernel_layout import Layout, Use, use_of
from sparseopt_jax.tracing.model_program import has_collections
from sparseopt_jax.tracing.operand_rows import Rows, convolution_rows, product_rows
from sparseopt_jax.tracing.primitives import CALLBACKS, CALLS, KEEPS, PRODUCTS
from sparseopt_jax.trees import paths


class KernelReader(abc.ABC):
    """Base class of readers that follow kernels through a jaxpr.

    Attributes:
      uses: kernel -> the roles of its axes in its multiplications.
      trouble: kernel -> the first reason why it could not be followed further.
    """

    def __init__(self):
        self.uses: dict[str, Use] = {}
        self.trouble: dict[str, str] = {}

    @abc.abstractmethod
    def results(
        self, eqn: core.JaxprEqn, values: list[Any], layouts: list[Layout | None]
    ) -> Sequence[Any]:
        """Return the results of an equation other than calls and loops over kernels."""

    @abc.abstractmethod
    def loop(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: Any,
    ) -> Sequence[Any]:
        """Return the results of a scan that takes kernels."""

    @abc.abstractmethod
    def multiplied(
        self, layout: Layout, use: Use, rows: Rows, inputs: Any, found: Any
    ) -> None:
        """Record a multiplication of a kernel with inputs."""

    @abc.abstractmethod
    def lost(self, layout: Layout, reason: str, is_incomplete: bool) -> None:
        """Record why a kernel cannot be followed further.

        Args:
          layout: the kernel's.
          reason: why it is lost.
          is_incomplete: whether some of its inputs cannot be seen.
        """

    def follows(self, values: list[Any]) -> bool:
        """Tell whether to read the code that an equation calls without kernels."""
        del values
        return False

    def further(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: Any,
    ) -> Sequence[Layout | None] | None:
        """Return layouts of results that only some readers can follow, or None."""
        return None

    def run(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Any],
        values: Sequence[Any],
        layouts: Sequence[Layout | None],
        found: Any,
    ) -> tuple[list[Any], list[Layout | None]]:
        """Return the results of a jaxpr, and the layouts of those that are kernels."""
        traced: list[tuple[Any, Layout | None]] = interpret(
            jaxpr,
            zip(values, layouts, strict=True),
            functools.partial(self._equation, found),
            constants=[(value, None) for value in consts],
            literal=lambda literal: (literal.val, None),
        )
        return [value for value, _ in traced], [layout for _, layout in traced]

    def _equation(
        self,
        found: Any,
        eqn: core.JaxprEqn,
        operands: list[tuple[Any, Layout | None]],
    ) -> Iterable[tuple[Any, Layout | None]]:
        values = [value for value, _ in operands]
        layouts = [layout for _, layout in operands]
        results, placed = self._results(eqn, values, layouts, found)
        # Results without a layout are not kernels.
        return itertools.zip_longest(results, placed)

    def _results(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: Any,
    ) -> tuple[Sequence[Any], Sequence[Layout | None]]:
        name = eqn.primitive.name
        if not any(layouts) and not self.follows(values):
            return self.results(eqn, values, layouts), ()
        if name == "scan":
            return self.loop(eqn, values, layouts, found), ()
        if name in CALLS and (body := called_jaxpr(eqn)) is not None:
            consts = getattr(body, "consts", ())
            return self.run(open_jaxpr(body), consts, values, layouts, found)
        if name in PRODUCTS and any(layouts):
            self._multiplication(eqn, values, layouts, found)
            return self.results(eqn, values, layouts), ()
        moved = self.further(eqn, values, layouts, found)
        if moved is None:
            moved = self._arrangement(eqn, layouts)
        return self.results(eqn, values, layouts), moved

    def _arrangement(
        self, eqn: core.JaxprEqn, layouts: list[Layout | None]
    ) -> Sequence[Layout | None]:
        name, layout = eqn.primitive.name, layouts[0]
        if name in KEEPS and len(layouts) == len(eqn.outvars):
            return layouts
        shape = shape_of(eqn.outvars[0]) if eqn.outvars else ()
        moved = None
        if layout and name == "transpose":
            moved = layout.transpose(eqn.params["permutation"])
        elif layout and name == "broadcast_in_dim":
            moved = layout.broadcast(shape, eqn.params["broadcast_dimensions"])
        elif layout and name in ("reshape", "squeeze", "expand_dims"):
            order = eqn.params.get("dimensions") if name == "reshape" else None
            moved = (layout.transpose(order) if order else layout).reshape(shape)
        if moved is not None:
            return [moved]
        hides = hides_code(eqn)
        for layout in filter(None, layouts):
            verb = "goes into" if hides else "passes through"
            self.lost(layout, f"{verb} {name}", hides)
        return ()

    def _multiplication(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: Any,
    ):
        side = 0 if layouts[0] else 1
        layout = layouts[side]
        assert layout is not None
        if all(layouts):
            for operand in filter(None, layouts):
                self.lost(operand, "multiplied with another kernel", True)
            return
        inputs = values[1 - side]
        if eqn.primitive.name == "dot_general":
            rows = product_rows(eqn, inputs, layout, side)
        elif side == 0:
            rows = "the left operand of a convolution"
        else:
            rows = convolution_rows(eqn, inputs, layout)
        use = rows if isinstance(rows, str) else use_of(layout, rows.lead, rows.summed)
        if isinstance(use, str):
            self.lost(layout, use, True)
        else:
            assert not isinstance(rows, str)
            self.multiplied(layout, use, rows, inputs, found)


def hides_code(eqn: core.JaxprEqn) -> bool:
    """Tell whether an equation runs code that is not read: a branch, a callback."""
    name = eqn.primitive.name
    return bool(held_jaxprs(eqn)) or name in CALLBACKS or name in ("cond", "while")


def layouts_in_loop(
    reader: KernelReader, loop: Loop, layouts: Sequence[Layout | None]
) -> list[Layout | None]:
    """Return the layouts of a loop's kernels in one of its steps.

    Args:
      reader: records kernels that a loop changes.
      loop: the loop.
      layouts: the layouts of the operands that the body takes.

    Returns:
      The layouts of the body's inputs.
    """
    first_slice = loop.constants + loop.carried
    inside: list[Layout | None] = []
    for index, layout in enumerate(layouts):
        if layout is None:
            inside.append(None)
        elif index < loop.constants:
            inside.append(layout.constant_in_loop())
        elif index >= first_slice:
            inside.append(layout.slice_in_loop())
        else:
            inside.append(None)
            reader.lost(layout, "changes from step to step of a loop", True)
    return inside


def candidates(variables: Any, where: Where | None = None) -> list[Layout | None]:
    """Return layouts of the leaves of a model's variables that may be kernels.

    Args:
      variables: all variables. If there is a collection ``"params"`` at the top, the
        layouts' paths omit its name, and other collections hold no kernels.
      where: ``where(path, leaf) -> bool``; False excludes a kernel.

    Returns:
      The layout of every leaf, or None.

    Raises:
      ValueError: if there are no arrays.
    """
    in_params = has_collections(variables)
    found: list[Layout | None] = []
    kinds = kinds_by_path(variables)
    for path, leaf in paths.flatten_with_paths(variables):
        if paths.is_hole(leaf):
            continue
        shape = tuple(getattr(leaf, "shape", ()))
        name = path.partition("/")[2] if in_params else path
        is_kernel = (
            len(shape) >= 2
            # Biases of stacked layers have two axes or more, but multiply nothing.
            and kinds[path] not in NOT_MULTIPLIED
            and jnp.issubdtype(leaf.dtype, jnp.floating)
            and (path.startswith("params/") or not in_params)
            and (where is None or where(name, leaf))
        )
        found.append(Layout.of(name, shape) if is_kernel else None)
    if not found:
        raise ValueError(
            f"variables must hold the model's arrays, got {variables!r}: pass the "
            "result of model.init or nnx.state(model)"
        )
    return found

"""Evaluates a model and collects what its kernels multiply, equation by equation.

The evaluation is the model's own: every equation of its jaxpr is computed as it stands.
Beside each value that is a kernel in some arrangement goes its layout; where such a
value is an operand of a matrix product or a convolution, the other operand holds the
kernel's inputs.
"""

import operator
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from sparseopt_jax.input_statistics import (
    Inputs,
    Moments,
    add_moments,
    inputs_of,
    join_moments,
    moments_of,
)
from sparseopt_jax.jaxprs import called_jaxpr, held_jaxprs, open_jaxpr, ranks
from sparseopt_jax.kernel_layout import Layout, Use, use_of
from sparseopt_jax.operand_rows import convolution_rows, product_rows
from sparseopt_jax.sharding_types import replicated

# Equations that do nothing but call a jaxpr, as far as values are concerned.
_CALLS = {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
}
# Equations that leave the arrangement of numbers as it is, one result per operand.
_KEEPS = {
    "convert_element_type",
    "copy",
    "copy_p",
    "device_put",
    "mesh_cast",
    "name",
    "optimization_barrier",
    "pvary",
    "reduce_precision",
    "reshard",
    "sharding_constraint",
}

# Moments by the kernel's path and, for each loop around, whether it slices the kernel.
_Found = dict[tuple[str, tuple[bool, ...]], Moments]


class Reader:
    """Collects the inputs of kernels.

    Attributes:
      with_gram: whether to form Gram matrices.
      uses: kernel -> what its multiplications do with its axes.
      trouble: kernel -> the first thing that ended its being followed.
      incomplete: kernels with inputs that cannot be seen, whatever else is known.
    """

    def __init__(self, with_gram: bool):
        self.with_gram = with_gram
        self.uses: dict[str, Use] = {}
        self.trouble: dict[str, str] = {}
        self.incomplete: set[str] = set()

    def read(
        self,
        jaxpr: core.ClosedJaxpr,
        values: Sequence[jax.Array],
        layouts: Sequence[Layout | None],
    ) -> dict[str, Inputs]:
        """Evaluates a jaxpr.

        Args:
          jaxpr: the model's.
          values: its inputs.
          layouts: for each of them its layout if it is a kernel.

        Returns:
          Statistics by kernel path, for every kernel all of whose inputs were seen.
        """
        found: _Found = {}
        self._run(jaxpr.jaxpr, jaxpr.consts, values, layouts, found)
        shapes = {layout.path: layout.shape for layout in layouts if layout}
        return {
            path: inputs_of(moments, self.uses[path], shapes[path])
            for (path, _), moments in found.items()
            if path not in self.incomplete
        }

    def _run(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Any],
        values: Sequence[Any],
        layouts: Sequence[Layout | None],
        found: _Found,
    ) -> tuple[list[Any], list[Layout | None]]:
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))
        placed: dict[Any, Layout | None] = dict(zip(jaxpr.invars, layouts, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        def layout_of(atom: Any) -> Layout | None:
            return None if isinstance(atom, core.Literal) else placed.get(atom)

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            own = [layout_of(atom) for atom in eqn.invars]
            outputs, after = self._equation(eqn, operands, own, found)
            known.update(zip(eqn.outvars, outputs, strict=True))
            placed.update(zip(eqn.outvars, after, strict=False))
        return (
            [read(atom) for atom in jaxpr.outvars],
            [layout_of(atom) for atom in jaxpr.outvars],
        )

    def _equation(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: _Found,
    ) -> tuple[Sequence[Any], Sequence[Layout | None]]:
        """The results of an equation, and the layouts of those that are kernels."""
        name = eqn.primitive.name
        if not any(layouts):
            return _evaluate(eqn, values), ()
        if name == "scan":
            return self._scan(eqn, values, layouts, found), ()
        if name in _CALLS and (body := called_jaxpr(eqn)) is not None:
            consts = getattr(body, "consts", ())
            return self._run(open_jaxpr(body), consts, values, layouts, found)
        if name in ("dot_general", "conv_general_dilated"):
            self._multiplication(eqn, values, layouts, found)
            return _evaluate(eqn, values), ()
        return _evaluate(eqn, values), self._arrangement(eqn, layouts)

    def _arrangement(
        self, eqn: core.JaxprEqn, layouts: list[Layout | None]
    ) -> Sequence[Layout | None]:
        name, layout = eqn.primitive.name, layouts[0]
        if name in _KEEPS and len(layouts) == len(eqn.outvars):
            return layouts
        shape = getattr(eqn.outvars[0].aval, "shape", ())
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
        hides = bool(held_jaxprs(eqn)) or name in ("cond", "while")
        for layout in filter(None, layouts):
            verb = "goes into" if hides else "passes through"
            self._trouble(layout, f"{verb} {name}", hides)
        return ()

    def _trouble(self, layout: Layout, reason: str, incomplete: bool):
        self.trouble.setdefault(layout.path, reason)
        if incomplete:
            self.incomplete.add(layout.path)

    def _multiplication(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: _Found,
    ):
        side = 0 if layouts[0] else 1
        layout = layouts[side]
        assert layout is not None
        if all(layouts):
            for own in filter(None, layouts):
                self._trouble(own, "multiplied with another kernel", True)
            return
        if eqn.primitive.name == "dot_general":
            rows = product_rows(eqn, values[1 - side], layout, side)
        elif side == 0:
            rows = "the left operand of a convolution"
        else:
            rows = convolution_rows(eqn, values[0], layout)
        if isinstance(rows, str):
            self._trouble(layout, rows, True)
            return
        use = use_of(layout, rows.lead, rows.summed)
        if isinstance(use, str):
            self._trouble(layout, use, True)
        elif self.uses.setdefault(layout.path, use) != use:
            self._trouble(layout, "used in several ways that differ", True)
        else:
            moments = replicated(
                lambda x: moments_of(rows.of(x), self.with_gram), values[1 - side]
            )
            _add(found, (layout.path, layout.loops), moments)

    def _scan(
        self,
        eqn: core.JaxprEqn,
        values: list[Any],
        layouts: list[Layout | None],
        found: _Found,
    ) -> Sequence[Any]:
        """Runs a loop whose steps hand out the statistics of each."""
        body = eqn.params["jaxpr"]
        # The body's inputs are constants, carry and slices, its outputs carry and
        # slices. A slice has one axis less than what it is cut from.
        inside, outside = ranks(body.jaxpr.invars), ranks(eqn.invars)
        slices = sum(map(operator.lt, inside, outside))
        carried = sum(map(operator.eq, ranks(body.jaxpr.outvars), ranks(eqn.outvars)))
        constants = len(values) - carried - slices
        own: list[Layout | None] = []
        for index, layout in enumerate(layouts):
            if layout is None:
                own.append(None)
            elif index < constants:
                own.append(layout.constant_in_loop())
            elif index >= constants + carried:
                own.append(layout.slice_in_loop())
            else:
                own.append(None)
                self._trouble(layout, "changes from step to step of a loop", True)

        def step(carry: list[Any], sliced: list[Any]) -> tuple[Any, Any]:
            collected: _Found = {}
            inputs = [*values[:constants], *carry, *sliced]
            outputs, _ = self._run(body.jaxpr, body.consts, inputs, own, collected)
            return outputs[:carried], (outputs[carried:], collected)

        carry, (stacked, collected) = jax.lax.scan(
            step,
            values[constants : constants + carried],
            values[constants + carried :],
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


def _evaluate(eqn: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
    with eqn.ctx.manager:
        result = eqn.primitive.bind(
            *values, **eqn.primitive.get_bind_params(eqn.params)
        )
    return result if eqn.primitive.multiple_results else [result]

"""What can be told of a jaxpr: what acts, what is zero, what mixes entries."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jax.extend import core

from sparseopt_jax.tracing.jaxprs import called_jaxpr, held_jaxprs, open_jaxpr, shape_of

# Have no effect that JAX knows of, but run code of the user's on the host.
_CALLBACKS = frozenset({"pure_callback"})


def variables(atoms: Iterable[Any]) -> list[Any]:
    return [atom for atom in atoms if isinstance(atom, core.Var)]


def acts(eqn: core.JaxprEqn) -> bool:
    """Whether an equation has side effects, itself or in what it calls."""
    # What communicates between devices names its axes as an effect.
    if any(type(effect).__name__ != "NamedAxisEffect" for effect in eqn.effects):
        return True
    if eqn.primitive.name in _CALLBACKS:
        return True
    bodies = [*held_jaxprs(eqn), *eqn.params.get("branches", ())]
    return any(acts(inner) for body in bodies for inner in open_jaxpr(body).eqns)


def leading_to(
    eqns: list[core.JaxprEqn], outvars: Iterable[Any], given: Collection[Any]
) -> tuple[list[core.JaxprEqn], set[Any]]:
    """The equations that some variables need, and all variables on the way."""
    needed = {var for var in variables(outvars) if var not in given}
    found = []
    for eqn in reversed(eqns):
        if needed.isdisjoint(eqn.outvars):
            continue
        found.append(eqn)
        needed.update(var for var in variables(eqn.invars) if var not in given)
    return found[::-1], needed


# Zero where their first operand is.
_KEEP_ZERO = frozenset(
    {
        *("broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims"),
        *("neg", "pvary", "reduce_precision", "reshape", "reshard", "squeeze"),
        *("sharding_constraint", "stop_gradient", "transpose"),
    }
)


def zero_outputs(program: core.Jaxpr, inputs: list[bool]) -> list[bool]:
    """Which outputs of a jaxpr are zero whatever its inputs are.

    Args:
      program: a jaxpr.
      inputs: which of its inputs are known to be zero.

    Returns:
      A bool for each output; False where it cannot be told.
    """
    zero = {var for var, known in zip(program.invars, inputs, strict=True) if known}

    def is_zero(atom: Any) -> bool:
        if isinstance(atom, core.Literal):
            return not np.any(atom.val)
        return atom in zero

    for eqn in program.eqns:
        name, flags = eqn.primitive.name, [is_zero(atom) for atom in eqn.invars]
        outputs = [False] * len(eqn.outvars)
        if name == "cond":
            branches = map(open_jaxpr, eqn.params["branches"])
            each = [zero_outputs(branch, flags[1:]) for branch in branches]
            outputs = [all(ways) for ways in zip(*each, strict=True)]
        elif name in _KEEP_ZERO:
            outputs = [flags[0]]
        elif name == "mul":
            # A learning rate of zero is a number like another.
            outputs = [any(atom in zero for atom in variables(eqn.invars))]
        elif name in ("add", "sub", "max", "min"):
            outputs = [all(flags)]
        elif name == "select_n":
            outputs = [all(flags[1:])]
        elif name in _CALLS and (body := called_jaxpr(eqn)) is not None:
            outputs = zero_outputs(open_jaxpr(body), flags)
        zero.update(v for v, flag in zip(eqn.outvars, outputs, strict=True) if flag)
    return [is_zero(atom) for atom in program.outvars]


# Primitives whose every output entry depends on the input entries at its place alone.
# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "add", "and", "cbrt", "ceil", "clamp", "convert_element_type", "copy",
    "copy_p", "cos", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge",
    "gt", "imag", "integer_pow", "is_finite", "le", "log", "log1p", "logistic",
    "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "real",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "sharding_constraint",
    "sign", "sin", "sqrt", "square", "stop_gradient", "sub", "tanh", "xor",
})
# fmt: on
_CALLS = frozenset({"closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit"})


def is_elementwise(program: core.Jaxpr, state: set[Any]) -> bool:
    """Whether no weight's result depends on another weight's part of the state.

    Args:
      program: a jaxpr.
      state: its variables that hold the state; receives all that depend on them.
    """
    for equation in program.eqns:
        inputs = [
            var
            for var in equation.invars
            if isinstance(var, core.Var) and var in state and shape_of(var)
        ]
        if not inputs:
            continue
        name = equation.primitive.name
        if name in _CALLS:
            inner: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            inner = getattr(inner, "jaxpr", inner)
            inner_state = {
                own
                for own, var in zip(inner.invars, equation.invars, strict=True)
                if isinstance(var, core.Var) and var in state
            }
            if not is_elementwise(inner, inner_state):
                return False
        elif name not in _ELEMENTWISE or any(
            shape_of(var) != shape_of(result)
            for var in inputs
            for result in equation.outvars
        ):
            return False
        state.update(equation.outvars)
    return True

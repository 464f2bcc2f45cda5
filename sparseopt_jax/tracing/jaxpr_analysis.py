"""Analysis of jaxprs: effects, zero outputs, dependencies, mixing of entries."""

import functools
import math
import operator
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jax.extend import core

from sparseopt_jax.tracing.jaxprs import (
    called_jaxpr,
    held_jaxprs,
    interpret,
    open_jaxpr,
    shape_of,
)
from sparseopt_jax.tracing.primitives import (
    CALLBACKS,
    CALLS,
    DRAWS,
    ELEMENTWISE,
    KEEPS,
    MOVES,
)


def variables(atoms: Iterable[Any]) -> list[Any]:
    return [atom for atom in atoms if isinstance(atom, core.Var)]


def acts(eqn: core.JaxprEqn) -> bool:
    """Tell whether an equation has side effects, itself or in a jaxpr it calls."""
    # Communication between devices has its axis names as an effect.
    if any(type(effect).__name__ != "NamedAxisEffect" for effect in eqn.effects):
        return True
    if eqn.primitive.name in CALLBACKS:
        return True
    bodies = [*held_jaxprs(eqn), *eqn.params.get("branches", ())]
    return any(acts(inner) for body in bodies for inner in open_jaxpr(body).eqns)


def draws(program: core.Jaxpr, size: int) -> bool:
    """Tell whether a jaxpr, or one that it calls, draws as many random numbers."""

    def found(eqn: core.JaxprEqn) -> bool:
        is_draw = eqn.primitive.name in DRAWS
        if is_draw and any(math.prod(shape_of(v)) == size for v in eqn.outvars):
            return True
        bodies = [*held_jaxprs(eqn), *eqn.params.get("branches", ())]
        return any(draws(open_jaxpr(body), size) for body in bodies)

    return any(map(found, program.eqns))


def leading_to(
    eqns: list[core.JaxprEqn], outvars: Iterable[Any], given: Collection[Any]
) -> tuple[list[core.JaxprEqn], set[Any]]:
    """Return the equations that some variables need, and all variables on the way."""
    needed = {var for var in variables(outvars) if var not in given}
    found = []
    for eqn in reversed(eqns):
        if needed.isdisjoint(eqn.outvars):
            continue
        found.append(eqn)
        needed.update(var for var in variables(eqn.invars) if var not in given)
    return found[::-1], needed


def zero_outputs(program: core.Jaxpr, inputs: list[bool]) -> list[bool]:
    """Find the outputs of a jaxpr that are zero whatever its inputs are.

    Args:
      program: a jaxpr.
      inputs: which of its inputs are known to be zero.

    Returns:
      A bool for each output; False if it is unknown.
    """
    return interpret(
        program,
        inputs,
        _zero_results,
        constants=[False] * len(program.constvars),
        literal=lambda literal: not np.any(literal.val),
    )


def _zero_results(eqn: core.JaxprEqn, zero: list[bool]) -> list[bool]:
    """Find the results of an equation that are zero, given its zero operands."""
    name, results = eqn.primitive.name, len(eqn.outvars)
    if name == "cond":
        branches = map(open_jaxpr, eqn.params["branches"])
        each = [zero_outputs(branch, zero[1:]) for branch in branches]
        return [all(ways) for ways in zip(*each, strict=True)]
    if name in KEEPS and len(zero) == results:
        return zero
    if name in MOVES or name == "neg":
        return [zero[0]]
    if name == "mul":
        # A learning rate of zero is a number like any other.
        known = zip(zero, eqn.invars, strict=True)
        return [any(flag for flag, atom in known if isinstance(atom, core.Var))]
    if name in ("add", "sub", "max", "min"):
        return [all(zero)]
    if name == "select_n":
        return [all(zero[1:])]
    if name in CALLS and (body := called_jaxpr(eqn)) is not None:
        return zero_outputs(open_jaxpr(body), zero)
    return [False] * results


def dependencies(program: core.Jaxpr, inputs: list[int]) -> list[int]:
    """Find which inputs of a jaxpr its outputs depend on.

    Args:
      program: a jaxpr.
      inputs: for each of its inputs, a set of labels, as the bits of an integer.

    Returns:
      The labels of all inputs that each output depends on, or may depend on.
    """
    return interpret(
        program,
        inputs,
        _labels_of_results,
        constants=[0] * len(program.constvars),
        literal=lambda _: 0,
    )


def _labels_of_results(eqn: core.JaxprEqn, labels: list[int]) -> list[int]:
    """Return the labels of an equation's results, given those of its operands."""
    name, results = eqn.primitive.name, len(eqn.outvars)
    if name == "cond":
        branches = map(open_jaxpr, eqn.params["branches"])
        each = [dependencies(branch, labels[1:]) for branch in branches]
        return [_union([labels[0], *ways]) for ways in zip(*each, strict=True)]
    if name in KEEPS and len(labels) == results:
        return labels
    if name in CALLS and (body := called_jaxpr(eqn)) is not None:
        return dependencies(open_jaxpr(body), labels)
    return [_union(labels)] * results


def _union(labels: Iterable[int]) -> int:
    return functools.reduce(operator.or_, labels, 0)


def is_elementwise(program: core.Jaxpr, state: set[Any]) -> bool:
    """Tell whether no weight's result depends on another weight's part of the state.

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
        if name in CALLS and (body := called_jaxpr(equation)) is not None:
            inner = open_jaxpr(body)
            inner_state = {
                inside
                for inside, var in zip(inner.invars, equation.invars, strict=True)
                if isinstance(var, core.Var) and var in state
            }
            if not is_elementwise(inner, inner_state):
                return False
        elif name not in ELEMENTWISE or any(
            shape_of(var) != shape_of(result)
            for var in inputs
            for result in equation.outvars
        ):
            return False
        state.update(equation.outvars)
    return True

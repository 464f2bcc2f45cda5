"""Tools to read jaxprs: walk through their equations, calls and loops."""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from jax.extend import core

Value = TypeVar("Value")


def open_jaxpr(jaxpr: Any) -> core.Jaxpr:
    """Return a jaxpr without the values of its constants, if it holds them."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def called_jaxpr(eqn: core.JaxprEqn) -> Any:
    """Return the jaxpr that an equation calls on its operands, if it does nothing else.

    Other equations that hold one jaxpr are reductions, whose jaxpr takes scalars.

    Args:
      eqn: an equation of a jaxpr.

    Returns:
      The jaxpr as held by the equation, with or without constants, or None.
    """
    bodies = held_jaxprs(eqn)
    if len(bodies) != 1:
        return None
    body = open_jaxpr(bodies[0])
    inside = ranks(body.invars), ranks(body.outvars)
    return bodies[0] if inside == (ranks(eqn.invars), ranks(eqn.outvars)) else None


def held_jaxprs(eqn: core.JaxprEqn) -> list[Any]:
    """Return the jaxprs among the parameters of an equation."""
    return [
        value
        for value in eqn.params.values()
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr)
    ]


def shape_of(atom: Any) -> tuple[int, ...]:
    """Return the shape of a variable or literal of a jaxpr."""
    # Tokens have no shape.
    return getattr(atom.aval, "shape", ())


def ranks(atoms: Iterable[Any]) -> list[int]:
    """Return the number of axes of each variable or literal."""
    return [len(shape_of(atom)) for atom in atoms]


def interpret(
    jaxpr: core.Jaxpr,
    inputs: Iterable[Value],
    equation: Callable[[core.JaxprEqn, list[Value]], Iterable[Value]],
    *,
    constants: Iterable[Value],
    literal: Callable[[core.Literal], Value],
) -> list[Value]:
    """Interpret a jaxpr with a known property of each value.

    Args:
      jaxpr: the jaxpr.
      inputs: the properties of its inputs.
      equation: maps an equation and the properties of its operands to the properties of
        its results.
      constants: the properties of its constants' variables.
      literal: returns the property of a literal.

    Returns:
      The properties of its outputs.
    """
    known: dict[core.Var, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return literal(atom) if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        results = equation(eqn, [read(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate(
    eqn: core.JaxprEqn, values: Sequence[Any], **changed: Any
) -> Sequence[Any]:
    """Compute the results of an equation.

    Args:
      eqn: an equation of a jaxpr.
      values: its operands.
      **changed: parameters of its primitive to override.

    Returns:
      One value for each of its results.
    """
    with eqn.ctx.manager:
        bound = eqn.primitive.get_bind_params({**eqn.params, **changed})
        result = eqn.primitive.bind(*values, **bound)
    return result if eqn.primitive.multiple_results else [result]


class Loop(NamedTuple):
    """The body of a scan or a while loop, and the roles of its operands.

    The operands are those of a while loop's condition, then constants, then carried
    values, then values to be sliced; the body takes all but the condition's. Its
    outputs are carried values, then slices.

    Attributes:
      body: the jaxpr of one step.
      body_constants: the values of the body's constants.
      condition: number of operands that only the condition takes.
      constants: number of operands that are the same in every step.
      carried: number of operands carried from step to step.
      shapes: the shapes of the operands that the body takes.
    """

    body: core.Jaxpr
    body_constants: Sequence[Any]
    condition: int
    constants: int
    carried: int
    shapes: tuple[tuple[int, ...], ...]


def loop_of(eqn: core.JaxprEqn) -> Loop:
    """Return the loop of a scan or while equation."""
    held = eqn.params.get("body_jaxpr") or eqn.params["jaxpr"]
    body = open_jaxpr(held)
    condition = len(eqn.invars) - len(body.invars)
    operands = eqn.invars[condition:]
    # Ranks identify the roles in every version of JAX: a slice has one axis less than
    # the sliced operand, and stacked outputs have one more than the body's.
    slices = sum(map(operator.lt, ranks(body.invars), ranks(operands)))
    carried = sum(map(operator.eq, ranks(body.outvars), ranks(eqn.outvars)))
    return Loop(
        body=body,
        body_constants=getattr(held, "consts", ()),
        condition=condition,
        constants=len(operands) - carried - slices,
        carried=carried,
        shapes=tuple(shape_of(atom) for atom in operands),
    )

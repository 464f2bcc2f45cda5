"""Reading jaxprs: what an equation calls, and the shapes of what it takes and gives."""

from collections.abc import Iterable
from typing import Any

from jax.extend import core


def open_jaxpr(jaxpr: Any) -> core.Jaxpr:
    """A jaxpr without the values of its constants, if it holds them."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def called_jaxpr(eqn: core.JaxprEqn) -> Any:
    """The jaxpr that an equation calls on its operands, if it does no more than that.

    The other equations that hold one jaxpr are reductions, whose jaxpr takes scalars.

    Args:
      eqn: an equation of a jaxpr.

    Returns:
      The jaxpr as the equation holds it, with or without constants, or None.
    """
    bodies = held_jaxprs(eqn)
    if len(bodies) != 1:
        return None
    body = open_jaxpr(bodies[0])
    inside = ranks(body.invars), ranks(body.outvars)
    return bodies[0] if inside == (ranks(eqn.invars), ranks(eqn.outvars)) else None


def held_jaxprs(eqn: core.JaxprEqn) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    return [
        value
        for value in eqn.params.values()
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr)
    ]


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of a variable or literal of a jaxpr."""
    # Tokens have none.
    return getattr(atom.aval, "shape", ())


def ranks(atoms: Iterable[Any]) -> list[int]:
    """How many axes each variable or literal has."""
    return [len(shape_of(atom)) for atom in atoms]

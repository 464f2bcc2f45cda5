"""Operations that run only at some steps, at no cost to the others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sparseopt_jax.arrays.sharding_types import typed_like


def if_due(due: Any, change: Callable[..., Any], kept: Any, *operands: Any) -> Any:
    """Return ``change(kept, *operands)`` if due, else ``kept``.

    Args:
      due: a bool, or a bool scalar.
      change: returns a tree like ``kept``.
      kept: any pytree; the only one that passes through the condition.
      *operands: further pytrees, which are only read.

    Returns:
      A tree like ``kept``.

    Examples:
      >>> if_due(True, lambda kept, step: kept + step, 1, 2)
      3
    """
    if not isinstance(due, Tracer):
        # Outside jit a cond would compile again at every call.
        return change(kept, *operands) if due else kept

    def change_in_type(kept, *operands):
        return typed_like(kept, change(kept, *operands))

    return jax.lax.cond(due, change_in_type, lambda kept, *_: kept, kept, *operands)


def chosen(condition: Any, x: Any, y: Any) -> jax.Array:
    """Return ``jnp.where(condition, x, y)``, traced in a third of the time.

    If all arguments are arrays of one type, it is a single equation, which matters if
    there is one for every leaf of a network.

    Args:
      condition: a bool, a bool scalar, or a bool array like ``x``.
      x: the values where the condition holds.
      y: the values elsewhere; a Python number fills an array.

    Returns:
      An array.

    Examples:
      >>> print(chosen(jnp.array([True, False]), jnp.ones(2), 0))
      [1. 0.]
    """
    if isinstance(condition, jax.Array) and isinstance(x, jax.Array):
        kind, wanted = jax.typeof(condition), jax.typeof(x)
        fits = not kind.shape or kind.sharding == wanted.sharding
        if fits and kind.shape in ((), wanted.shape):
            if isinstance(y, int | float):
                return jax.lax.select(condition, x, jax.lax.full_like(x, y))
            if isinstance(y, jax.Array) and jax.typeof(y) == wanted:
                return jax.lax.select(condition, x, y)
    return jnp.where(condition, x, y)

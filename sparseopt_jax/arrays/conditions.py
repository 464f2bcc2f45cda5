"""What happens at some steps only, at no price to the others."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from sparseopt_jax.arrays.sharding_types import typed_like


def if_due(due: Any, change: Callable[..., Any], kept: Any, *operands: Any) -> Any:
    """``change(kept, *operands)`` where due, else ``kept``.

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
        # Outside of jit a cond would compile anew at every call.
        return change(kept, *operands) if due else kept

    def change_in_type(kept, *operands):
        return typed_like(kept, change(kept, *operands))

    return jax.lax.cond(due, change_in_type, lambda kept, *_: kept, kept, *operands)

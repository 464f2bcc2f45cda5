"""The program of a model's call, and the arrays it takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core


def model_program(
    apply_fn: Callable[..., Any],
    variables: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[core.ClosedJaxpr, list[int]]:
    """Traces ``apply_fn(variables, *args, **kwargs)``.

    Args:
      apply_fn: evaluates the model.
      variables: its variables, as arrays or shapes.
      args: its inputs; what is not an array is passed as it is.
      kwargs: treated as ``args`` are.

    Returns:
      The jaxpr, whose outputs are the arrays that the model returns, and for each of
      its inputs the place among ``jax.tree.leaves((variables, args, kwargs))``.
    """
    leaves, structure = jax.tree.flatten((variables, tuple(args), dict(kwargs)))
    taken = [index for index, leaf in enumerate(leaves) if is_array(leaf)]

    def evaluate(arrays: list[Any]) -> list[Any]:
        given = list(leaves)
        for index, array in zip(taken, arrays, strict=True):
            given[index] = array
        variables, args, kwargs = jax.tree.unflatten(structure, given)
        outputs = jax.tree.leaves(apply_fn(variables, *args, **kwargs))
        # What is returned beside arrays, a model for instance, decides nothing.
        return [output for output in outputs if is_array(output)]

    return jax.make_jaxpr(evaluate)([leaves[index] for index in taken]), taken


def is_array(x: Any) -> bool:
    """Whether ``x`` has a shape and a dtype."""
    return hasattr(x, "shape") and hasattr(x, "dtype")

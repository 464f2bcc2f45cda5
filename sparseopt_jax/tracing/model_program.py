"""The program of a model's call, and the arrays it takes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core


class ModelProgram(NamedTuple):
    """What a call of a model computes.

    Attributes:
      jaxpr: its outputs are the arrays that the model returns.
      taken: for each of the jaxpr's inputs its place among the leaves of the arguments.
      returned: the leaves that the model returns, None in place of arrays.
      structure: that of what the model returns.
    """

    jaxpr: core.ClosedJaxpr
    taken: list[int]
    returned: list[Any]
    structure: Any

    def outputs(self, arrays: Iterable[Any]) -> Any:
        """What the model returns, with these as the outputs of the jaxpr."""
        arrays = iter(arrays)
        leaves = [next(arrays) if x is None else x for x in self.returned]
        return jax.tree.unflatten(self.structure, leaves)


def model_program(
    apply_fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ModelProgram:
    """Traces ``apply_fn(*args, **kwargs)``.

    Args:
      apply_fn: evaluates the model.
      args: its variables and inputs, as arrays or shapes; what is not an array is
        passed as it is.
      kwargs: treated as ``args`` are.

    Returns:
      The program.
    """
    leaves, structure = jax.tree.flatten((tuple(args), dict(kwargs)))
    taken = [index for index, leaf in enumerate(leaves) if is_array(leaf)]
    returned: list[Any] = []
    of_returned: Any = None

    def evaluate(arrays: list[Any]) -> list[Any]:
        nonlocal of_returned
        given = list(leaves)
        for index, array in zip(taken, arrays, strict=True):
            given[index] = array
        args, kwargs = jax.tree.unflatten(structure, given)
        outputs, of_returned = jax.tree.flatten(apply_fn(*args, **kwargs))
        returned[:] = [None if is_array(x) else x for x in outputs]
        return [x for x in outputs if is_array(x)]

    jaxpr = jax.make_jaxpr(evaluate)([leaves[index] for index in taken])
    return ModelProgram(jaxpr, taken, returned, of_returned)


def has_collections(variables: Any) -> bool:
    """Whether a tree is all variables of a linen model, ``"params"`` among them."""
    return isinstance(variables, Mapping) and "params" in variables


def is_array(x: Any) -> bool:
    """Whether ``x`` has a shape and a dtype."""
    return hasattr(x, "shape") and hasattr(x, "dtype")

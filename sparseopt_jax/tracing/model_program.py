"""The program of a model's call, and the arrays it takes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core


class ModelProgram(NamedTuple):
    """The computation of a model's call.

    Attributes:
      jaxpr: its outputs are the arrays that the model returns.
      taken: the place of each of the jaxpr's inputs among the leaves of the arguments.
      returned: the leaves that the model returns, with None in place of arrays.
      structure: the structure of the model's result.
    """

    jaxpr: core.ClosedJaxpr
    taken: list[int]
    returned: list[Any]
    structure: Any

    def outputs(self, arrays: Iterable[Any]) -> Any:
        """Return the model's result for these outputs of the jaxpr."""
        arrays = iter(arrays)
        leaves = [next(arrays) if x is None else x for x in self.returned]
        return jax.tree.unflatten(self.structure, leaves)


def model_program(
    apply_fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ModelProgram:
    """Trace ``apply_fn(*args, **kwargs)``.

    Args:
      apply_fn: evaluates the model.
      args: its variables and inputs, as arrays or shapes; values that are not arrays
        are passed unchanged.
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
    """Tell whether a tree holds a linen model's variables, ``"params"`` among them."""
    return isinstance(variables, Mapping) and "params" in variables


def is_array(x: Any) -> bool:
    """Tell whether ``x`` has a shape and a dtype."""
    return hasattr(x, "shape") and hasattr(x, "dtype")

"""Compares the outputs of a model before and after neurons were removed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparseopt_jax.tracing.model_program import model_program


class Call(NamedTuple):
    """A call of a model, but for its variables."""

    apply_fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def compared(self, variables: Any, small: Any, silent: Any) -> str:
        """Compares the outputs before and after.

        Args:
          variables: the variables before.
          small: the smaller variables.
          silent: variables of the old shapes that read no neuron that is gone.

        Returns:
          What was evaluated, as a sentence; empty if there are no inputs.

        Raises:
          ValueError: if the outputs differ by more than rounding.
        """
        given = jax.tree.leaves((self.args, dict(self.kwargs)))
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in given):
            return ""
        outputs, others = self._outputs(variables, silent)
        what = "without the neurons"
        _check(outputs, others, what)
        try:
            (others,) = self._outputs(small)
        except Exception as error:
            # Each library has its own error for shapes that a module does not expect.
            how = f"apply_fn does not take the smaller ones: {type(error).__name__}"
            return f"Outputs {what} agree for the given inputs (old shapes; {how})."
        what = "of the smaller model"
        _check(outputs, others, what)
        return f"Outputs {what} agree for the given inputs."

    def _outputs(self, *several: Any) -> list[list[jax.Array]]:
        """The outputs for each of several trees of variables, all of one shape."""
        jaxpr, taken = model_program(self.apply_fn, several[0], self.args, self.kwargs)
        evaluate = jax.jit(core.jaxpr_as_fun(jaxpr))
        found = []
        for variables in several:
            leaves = jax.tree.leaves((variables, self.args, dict(self.kwargs)))
            found.append(evaluate(*(leaves[place] for place in taken)))
        return found


def _check(outputs: list[jax.Array], others: list[jax.Array], what: str) -> None:
    differ, allowed = _difference(outputs, others)
    if not differ <= allowed:
        raise ValueError(
            f"outputs {what} differ by {differ:.1e} of the largest: apply_fn must "
            "evaluate for inference, the same at every call, and compute no numbers "
            "from the widths of layers; verify=False returns the variables all the same"
        )


def _difference(
    outputs: Sequence[jax.Array], others: Sequence[jax.Array]
) -> tuple[float, float]:
    """How far apart two outputs of a model are.

    Args:
      outputs: arrays by their place.
      others: the same of the other.

    Returns:
      The largest difference, as a fraction of the largest entry of its array, and what
      rounding may make of it.
    """
    worst, allowed = 0.0, 0.0
    for one, other in zip(outputs, others, strict=True):
        if one.shape != other.shape:
            return math.inf, 0.0
        if one.size == 0 or not jnp.issubdtype(one.dtype, jnp.inexact):
            continue
        eps = float(jnp.finfo(one.dtype).eps)
        a, b = (np.asarray(x).astype(np.complex128) for x in (one, other))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        distance = np.max(np.where(same, 0.0, np.abs(a - b)))
        finite = np.abs(a[np.isfinite(a)])
        largest = max(float(finite.max(initial=0.0)), float(np.finfo(np.float32).tiny))
        worst, allowed = max((worst, allowed), (float(distance) / largest, eps**0.5))
    return worst, allowed

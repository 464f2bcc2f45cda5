"""Comparison of a model's outputs before and after neurons are removed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparseopt_jax.tracing.model_program import model_program
from sparseopt_jax.trees.prng_keys import is_typed


class Call(NamedTuple):
    """A call of a model, without its variables."""

    apply_fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def compared(self, variables: Any, small: Any, silent: Any) -> str:
        """Compare the outputs before and after.

        Args:
          variables: the variables before.
          small: the smaller variables.
          silent: variables of the old shapes that do not read removed neurons.

        Returns:
          A sentence about the compared outputs; empty if there is nothing to compare:
          no inputs, or no outputs other than NaN.

        Raises:
          ValueError: if the outputs differ by more than rounding.
        """
        given = jax.tree.leaves((self.args, dict(self.kwargs)))
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in given):
            return ""
        outputs, others = self._outputs(variables, silent)
        if not any(map(_has_numbers, outputs)):
            return ""
        what = "without the neurons"
        _check(outputs, others, what)
        try:
            (others,) = self._outputs(small)
        except Exception as error:
            # Each library has its own error for shapes that modules do not expect.
            how = f"apply_fn does not accept the smaller ones: {type(error).__name__}"
            return f"Outputs {what} agree for the given inputs (old shapes; {how})."
        what = "of the smaller model"
        _check(outputs, others, what)
        return f"Outputs {what} agree for the given inputs."

    def _outputs(self, *several: Any) -> list[list[jax.Array]]:
        """Return the outputs for each of several trees of variables of equal shapes."""
        given = (several[0], *self.args)
        program = model_program(self.apply_fn, given, self.kwargs)
        evaluate = jax.jit(core.jaxpr_as_fun(program.jaxpr))
        found = []
        for variables in several:
            leaves = jax.tree.leaves((variables, self.args, dict(self.kwargs)))
            found.append(evaluate(*(leaves[place] for place in program.taken)))
        return found


def _check(
    outputs: Sequence[jax.Array], others: Sequence[jax.Array], what: str
) -> None:
    for one, other in zip(outputs, others, strict=True):
        differ = _difference(one, other)
        # `not <=` instead of `>`: a NaN difference counts as well.
        if not differ <= _tolerance(one.dtype):
            raise ValueError(
                f"outputs {what} differ by {differ:.1e} of the largest: apply_fn must "
                "run in inference mode, be deterministic, and compute no numbers from "
                "the widths of layers; integers and bools must be equal, so if they "
                "depend on rounding, return what they are computed from; pass "
                "verify=False to return the variables anyway"
            )


def _tolerance(dtype: Any) -> float:
    """Return the largest relative difference that may come from rounding.

    Types of 16 bits or less get a few units in the last place, because the root of
    their epsilon is several percent; deep networks of random weights differ by 1.5.
    Integers and bools must be equal.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    eps = float(jnp.finfo(dtype).eps)
    return min(eps**0.5, 4 * eps) if eps > 1e-6 else eps**0.5


def _has_numbers(x: jax.Array) -> bool:
    return x.size > 0 and not np.isnan(_numbers(x)).all()


def _numbers(x: jax.Array) -> np.ndarray:
    """Return an array as complex numbers; a PRNG key as its data."""
    if is_typed(x):
        x = jax.random.key_data(x)
    return np.asarray(x).astype(np.complex128)


def _difference(one: jax.Array, other: jax.Array) -> float:
    """Return the largest difference of two arrays relative to the largest entry."""
    if one.shape != other.shape:
        return math.inf
    a, b = _numbers(one), _numbers(other)
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    largest = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
    with np.errstate(invalid="ignore"):
        distance = np.max(np.abs(a - b), initial=0.0, where=differs)
    return float(distance / max(largest, float(jnp.finfo(jnp.float32).eps)))

"""Reading the learning rate of an optax transformation from its closures."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sparseopt_jax.tracing.transformation_links import Link, code_of, read, variables_of

# What a link of a chain multiplies updates by: a number, a schedule, or unknown.
_UNKNOWN = None

# Where two schedules are compared.
_STEPS = (0, 1, 10, 100, 1_000, 10_000, 100_000)


def check_learning_rate(
    learning_rate: optax.ScalarOrSchedule, inner: optax.GradientTransformation
) -> None:
    """Raise if a transformation uses a learning rate other than this one.

    Optax's optimizers are chains that somewhere scale by a negative number or
    schedule, held in a closure; adjacent factors in a chain are multiplied. The check
    passes if no rate can be found: inside any wrapper but ``chain`` and
    ``named_chain``, or if a rate is being traced.

    Args:
      learning_rate: a number or a schedule.
      inner: the transformation.

    Raises:
      ValueError: with both rates, and the step at which schedules differ.

    Examples:
      >>> import optax
      >>> check_learning_rate(0.1, optax.sgd(0.1, momentum=0.9))
      >>> check_learning_rate(0.2, optax.sgd(0.1, momentum=0.9))
      Traceback (most recent call last):
      ...
      ValueError: learning_rate is 0.2, but the inner optimizer steps by 0.1: ...
    """
    factors = _factors(read(inner))
    grouped = itertools.groupby(factors, lambda factor: factor is not _UNKNOWN)
    runs = [list(run) for known, run in grouped if known]
    # The usual case, for which no schedule has to be called.
    if any(len(run) == 1 and _schedule(run[0]) is learning_rate for run in runs):
        return
    negative = [run for run in runs if math.copysign(1, _product(run, 0)) < 0]
    if len(negative) != 1:
        return
    (rate,) = negative
    # A sign alone leaves the rate to a link that is not known, if there is one.
    if _product(rate, 0) == -1 and any(factor is _UNKNOWN for factor in factors):
        return
    compared = (learning_rate, *rate)
    scheduled = any(callable(factor) for factor in compared)
    if scheduled and any(isinstance(factor, jax.Array) for factor in compared):
        return  # what a schedule gave at one step, as `inject_hyperparams` hands it on
    for step in _STEPS if scheduled else _STEPS[:1]:
        given, inners = _product([learning_rate], step), -_product(rate, step)
        if math.isnan(given + inners):
            return
        if not math.isclose(given, inners, rel_tol=1e-5):
            at = f" at step {step}" if scheduled else ""
            raise ValueError(
                f"learning_rate is {given:.8g}{at}, but the inner optimizer steps by "
                f"{inners:.8g}: give both the same number or schedule"
            )


def _factors(link: Link) -> list[Any]:
    """Return what the links of a chain scale by, in order."""
    if link.in_turn:
        return [factor for part in link.parts for factor in _factors(part)]
    code = code_of(link.update)
    if code is _IDENTITY:
        return []
    for scaling, name in _SCALING:
        if code is scaling:
            return [link.variables[name]]
    return [_UNKNOWN]


def _schedule(factor: Any) -> Any:
    """Return the schedule that ``optax.scale_by_learning_rate`` wrapped as a factor."""
    if not callable(factor) or code_of(factor) is not _SIGNED:
        return None
    return variables_of(factor).get("learning_rate")


def _product(factors: list[Any], step: int) -> float:
    """Return the product of the factors at a step; NaN if it is not known yet."""
    product = 1.0
    for factor in factors:
        value: Any
        with jax.ensure_compile_time_eval():
            value = factor(jnp.int32(step)) if callable(factor) else factor
        if isinstance(value, Tracer) or np.size(value) != 1:
            return math.nan
        product *= np.asarray(value, np.float64).item()
    return product


_SCHEDULE = optax.constant_schedule(1.0)
_IDENTITY = code_of(optax.identity().update)
_SCALING = (
    (code_of(optax.scale(1.0).update), "step_size"),
    (code_of(optax.scale_by_schedule(_SCHEDULE).update), "step_size_fn"),
)
_SIGNED = code_of(
    variables_of(optax.scale_by_learning_rate(_SCHEDULE).update)["step_size_fn"]
)

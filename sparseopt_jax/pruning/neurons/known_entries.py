"""Entries of activations that are the same for every input of the model.

A neuron without incoming weights emits its bias, and a closed gate emits 0. Here the
model's own operations are evaluated entry by entry, to compute how norms and
activations transform these constants. The results of an operation that is not in this
file are unknown.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparseopt_jax.tracing import jaxprs
from sparseopt_jax.tracing.jaxprs import shape_of
from sparseopt_jax.tracing.primitives import (
    ELEMENTWISE,
    KEEPS,
    MOVES,
    PRODUCTS,
    REDUCTIONS,
    WINDOW_REDUCTIONS,
)

# Operations that only move entries: known entries stay known.
_REARRANGES = MOVES | {"concatenate", "rev", "slice", "split"}


class Entries(NamedTuple):
    """The known entries of an array.

    Attributes:
      value: the array, zero where it is unknown; None if no entry is known.
      known: which entries are known: a bool for each, or one for all of them.
    """

    value: jax.Array | None
    known: jax.Array | bool


UNKNOWN = Entries(None, False)


class Channels(NamedTuple):
    """The known slices of an array along one axis, as NumPy arrays.

    Attributes:
      known: (channels,), whether all entries of a slice are known and equal.
      value: (channels,), float64, that entry; 0 where it is unknown.
    """

    known: np.ndarray
    value: np.ndarray


def evaluate(eqn: core.JaxprEqn, operands: Sequence[Entries]) -> list[Entries]:
    """Return the known entries of an equation's results.

    Args:
      eqn: an equation that does not call a jaxpr.
      operands: the known entries of its operands.

    Returns:
      The known entries of each result.
    """
    name, results = eqn.primitive.name, len(eqn.outvars)
    if all(entries.known is True for entries in operands):
        values = jaxprs.evaluate(eqn, [entries.value for entries in operands])
        return [Entries(value, True) for value in values]
    if name in PRODUCTS:
        return [_product(eqn, operands)]
    if all(entries.known is False for entries in operands):
        return [UNKNOWN] * results
    if name in KEEPS and len(operands) == results > 1:
        return list(operands)
    rule: Callable[[core.JaxprEqn, list[Entries]], list[Entries]] | None = None
    if name in ELEMENTWISE | KEEPS:
        rule = _entrywise
    elif name in _REARRANGES:
        rule = _rearranged
    elif name == "pad":
        rule = _padded
    elif name in REDUCTIONS:
        rule = _reduced
    elif name in WINDOW_REDUCTIONS:
        rule = _pooled
    if rule is None:
        return [UNKNOWN] * results
    return rule(eqn, [_filled(e, a) for e, a in zip(operands, eqn.invars, strict=True)])


def channels(entries: Entries, axis: int, shape: Sequence[int]) -> Channels:
    """Return the known slices of an array along an axis.

    Args:
      entries: its known entries.
      axis: the axis.
      shape: the array's shape.

    Returns:
      The known slices. Entries in 32 bits or more that differ only by rounding count as
      equal; a unit in the last place of smaller types can be a dependence on position.
    """
    count = shape[axis]
    if entries.value is None:
        return Channels(np.zeros(count, bool), np.zeros(count))
    value, known = (
        np.moveaxis(np.broadcast_to(np.asarray(x), shape), axis, 0).reshape(count, -1)
        for x in entries
    )
    is_float = jnp.issubdtype(value.dtype, jnp.inexact)
    eps = float(jnp.finfo(value.dtype).eps) if is_float else 0.0
    tolerance = 16 * eps if eps <= jnp.finfo(jnp.float32).eps else 0.0
    value = value.astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = np.ptp(value, axis=1) <= tolerance * np.max(np.abs(value), axis=1)
    found = known.all(axis=1) & same
    return Channels(found, np.where(found, value[:, 0], 0.0))


def only_zeros(entries: Entries) -> Entries:
    """Return the same entries; all but zeros become unknown."""
    if entries.value is None:
        return UNKNOWN
    value = jnp.asarray(entries.value)
    return _settled(value, _is_zero(value) & jnp.asarray(entries.known))


def _filled(entries: Entries, atom: Any) -> Entries:
    """Return the same entries, with both arrays of full shape."""
    shape = shape_of(atom)
    if entries.value is None:
        value = jnp.zeros(shape, atom.aval.dtype)
        return Entries(value, jnp.zeros(shape, bool))
    return Entries(entries.value, jnp.broadcast_to(entries.known, shape))


def _is_zero(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x == jnp.zeros((), x.dtype)


def _settled(value: Any, known: Any) -> Entries:
    if not known.any():
        return UNKNOWN
    if known.all():
        return Entries(value, True)
    return Entries(jnp.where(known, value, jnp.zeros_like(value)), known)


def _entrywise(eqn: core.JaxprEqn, operands: list[Entries]) -> list[Entries]:
    known = jnp.ones(shape_of(eqn.outvars[0]), bool)
    for _, flag in operands:
        known &= flag
    if eqn.primitive.name == "mul":
        # 0 times an unknown entry is 0.
        for value, flag in operands:
            known |= flag & _is_zero(value)
    values = jaxprs.evaluate(eqn, [value for value, _ in operands])
    return [_settled(value, known) for value in values]


def _rearranged(eqn: core.JaxprEqn, operands: list[Entries]) -> list[Entries]:
    values, flags = zip(*operands, strict=True)
    found = zip(jaxprs.evaluate(eqn, values), jaxprs.evaluate(eqn, flags), strict=True)
    return [_settled(value, known) for value, known in found]


def _padded(eqn: core.JaxprEqn, operands: list[Entries]) -> list[Entries]:
    (value, known), (filling, filling_known) = operands
    (padded,) = jaxprs.evaluate(eqn, [value, filling])
    (flags,) = jaxprs.evaluate(eqn, [known, filling_known])
    return [_settled(padded, flags)]


def _reduced(eqn: core.JaxprEqn, operands: list[Entries]) -> list[Entries]:
    ((value, known),) = operands
    (reduced,) = jaxprs.evaluate(eqn, [value])
    return [_settled(reduced, jnp.all(known, eqn.params["axes"]))]


def _pooled(eqn: core.JaxprEqn, operands: list[Entries]) -> list[Entries]:
    ((value, known),) = operands
    params = eqn.params
    unknown = jax.lax.reduce_window(
        jnp.logical_not(known).astype(jnp.float32),
        -jnp.inf,
        jax.lax.max,
        window_dimensions=params["window_dimensions"],
        window_strides=params["window_strides"],
        padding=params["padding"],
        base_dilation=params["base_dilation"],
        window_dilation=params["window_dilation"],
    )
    (pooled,) = jaxprs.evaluate(eqn, [value])
    is_known = unknown <= 0.0
    if eqn.primitive.name == "reduce_window_sum" and np.any(params["padding"]):
        # Windows at the border hold fewer entries, depending on the image's size.
        is_known &= _is_zero(pooled)
    return [_settled(pooled, is_known)]


def _product(eqn: core.JaxprEqn, operands: Sequence[Entries]) -> Entries:
    """Return a product, which is known where all unknown entries meet zero weights."""
    sides = [side for side, entries in enumerate(operands) if entries.known is True]
    if not sides:
        return UNKNOWN
    weights = operands[sides[0]].value
    assert weights is not None
    is_used = ~_is_zero(weights)
    entries = operands[1 - sides[0]]
    if entries.value is None and _all_neurons_used(eqn, sides[0], is_used):
        return UNKNOWN
    value, known = _filled(entries, eqn.invars[1 - sides[0]])

    def ordered(inputs: Any, kernel: Any) -> list[Any]:
        return [kernel, inputs] if sides[0] == 0 else [inputs, kernel]

    (counts,) = jaxprs.evaluate(
        eqn,
        ordered(
            jnp.logical_not(known).astype(jnp.float32), is_used.astype(jnp.float32)
        ),
        preferred_element_type=jnp.dtype(jnp.float32),
        precision=None,
    )
    (product,) = jaxprs.evaluate(eqn, ordered(value, weights))
    return _settled(product, counts <= 0.0)


def _all_neurons_used(eqn: core.JaxprEqn, side: int, is_used: Any) -> bool:
    """Return whether every neuron of a product has a nonzero weight."""
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        summed = numbers[0][side]
    else:
        output = numbers.rhs_spec[0]
        summed = [axis for axis in range(is_used.ndim) if axis != output]
    return bool(jnp.all(jnp.any(is_used, tuple(summed))))

"""The variables of a model without the neurons that go."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.pruning.neurons.decisions import Decider
from sparseopt_jax.pruning.neurons.groups import Along


def smaller(leaf: Any, place: int, decider: Decider) -> Any:
    """A variable as the smaller model has it.

    Args:
      leaf: the variable.
      place: its place among the variables.
      decider: has decided.

    Returns:
      An array of its dtype; the variable itself where nothing changes.
    """
    leaf = _shifted(leaf, decider.decision.shifts.get(place))
    for axis, label in enumerate(decider.reader.axes[place]):
        stays = decider.stays(label, leaf.shape[axis])
        if not stays.all():
            leaf = jnp.take(leaf, np.flatnonzero(stays), axis)
    return leaf


def silenced(leaf: Any, place: int, decider: Decider) -> Any:
    """A variable in its own shape, zero where it reads neurons that go.

    A model with these variables computes what the smaller one does, so that any model
    can be asked whether its outputs stay what they are.
    """
    leaf = _shifted(leaf, decider.decision.shifts.get(place))
    read = {
        decider.groups.root(label).node
        for product in decider.reader.products
        if product.reads is not None and place in product.leaves
        for label in (product.axes[product.reads],)
        if isinstance(label, Along)
    }
    for axis, label in enumerate(decider.reader.axes[place]):
        if isinstance(label, Along) and decider.groups.root(label).node in read:
            shape = [1] * leaf.ndim
            shape[axis] = -1
            stays = decider.stays(label, leaf.shape[axis]).reshape(shape)
            leaf = jnp.where(stays, leaf, jnp.zeros_like(leaf))
    return leaf


def largest_difference(
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


def _shifted(leaf: Any, shift: np.ndarray | None) -> Any:
    if shift is None:
        return leaf
    array = np.asarray(leaf)
    moved = array.astype(np.float64) + shift.reshape(array.shape)
    return jnp.asarray(moved.astype(array.dtype))

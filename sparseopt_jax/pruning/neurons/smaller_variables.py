"""The variables of a model without its removed neurons."""

from typing import Any

import numpy as np

from sparseopt_jax.arrays.library import library
from sparseopt_jax.pruning.neurons.decisions import Decider
from sparseopt_jax.pruning.neurons.groups import Along


def smaller(leaf: Any, place: int, decider: Decider) -> Any:
    """Return a variable of the smaller model.

    Args:
      leaf: the variable.
      place: its index among the variables.
      decider: the decider, after ``decide``.

    Returns:
      An array of the same dtype and library; the variable itself if nothing changes.
    """
    leaf = _shifted(leaf, decider.decision.shifts.get(place))
    for axis, label in enumerate(decider.reader.axes[place]):
        stays = decider.stays(label, leaf.shape[axis])
        if not stays.all():
            leaf = library(leaf).take(leaf, np.flatnonzero(stays), axis)
    return leaf


def silenced(leaf: Any, place: int, decider: Decider) -> Any:
    """Return a variable in its old shape, zero where it reads removed neurons.

    A model with these variables computes the same as the smaller one, so the outputs of
    any model can be compared, even one that does not accept smaller arrays.
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
            xp = library(leaf)
            leaf = xp.where(stays, leaf, xp.zeros_like(leaf))
    return leaf


def _shifted(leaf: Any, shift: np.ndarray | None) -> Any:
    if shift is None:
        return leaf
    array = np.asarray(leaf)
    moved = array.astype(np.float64) + shift.reshape(array.shape)
    return library(leaf).asarray(moved.astype(array.dtype))

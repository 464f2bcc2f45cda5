"""The variables of a model without the neurons that go."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from sparseopt_jax.pruning.neurons.decisions import Decider
from sparseopt_jax.pruning.neurons.groups import Along


def smaller(leaf: Any, place: int, decider: Decider) -> Any:
    """Return a variable as the smaller model has it.

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
    """Return a variable in its own shape, zero where it reads neurons that go.

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


def _shifted(leaf: Any, shift: np.ndarray | None) -> Any:
    if shift is None:
        return leaf
    array = np.asarray(leaf)
    moved = array.astype(np.float64) + shift.reshape(array.shape)
    return jnp.asarray(moved.astype(array.dtype))

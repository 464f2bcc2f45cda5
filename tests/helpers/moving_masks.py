"""A small kernel whose masks move while an optimizer trains it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from tests.helpers.compilations import compilations

KEY = jax.random.key(0)
PARAMS = {
    "kernel": jax.random.normal(KEY, (12, 8)),
    "bias": jnp.linspace(-1, 1, 8),
}


class Step(NamedTuple):
    """A step, with the kernel and its mask before and after it."""

    index: int
    old: jax.Array
    before: np.ndarray
    kernel: jax.Array
    mask: np.ndarray
    state: Any


def gradients(step):
    keys = jax.random.split(jax.random.key(100 + step))
    return {
        "kernel": jax.random.normal(keys[0], (12, 8)),
        "bias": jax.random.normal(keys[1], (8,)),
    }


def ten_steps(tx):
    """Take ten steps, and yield each.

    Check that the mask moves, keeps its 24 weights and masks the kernel, in a program
    that is compiled once.
    """
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    masks = [np.asarray(so.get_masks(state)["kernel"])]
    update = jax.jit(tx.update)
    with compilations() as compiled:
        for index in range(10):
            old = params["kernel"]
            updates, state = update(gradients(index), state, params)
            params = optax.apply_updates(params, updates)
            masks.append(np.asarray(so.get_masks(state)["kernel"]))
            *_, before, mask = masks
            assert mask.sum() == 24
            np.testing.assert_array_equal(params["kernel"][~mask], 0.0)
            yield Step(index, old, before, params["kernel"], mask, state)
    assert (masks[-1] != masks[0]).any()
    assert compiled.count("update") == 1

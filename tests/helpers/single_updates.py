"""Masks of a single leaf, before and after one update."""

import jax
import jax.numpy as jnp

KEY = jax.random.key(0)
ALWAYS = {"every": 1, "stop": 100, "drop_fraction": 0.5, "decay": "constant"}


def array(*values):
    return jnp.array(values, jnp.float32)


def bits(*values):
    return jnp.array(values, bool)


def updated(topology, masks, params, grads, count=0):
    """Return the masks after one update."""
    _, state = topology.init(KEY, params)
    count = jnp.int32(count)
    state = topology.observe(count, state, grads)
    return topology.update(KEY, count, masks, state, params, grads)[0]


def changed(topology, mask, param, grad, count=0):
    """Return the mask of a single leaf after one update."""
    return updated(topology, {"w": mask}, {"w": param}, {"w": grad}, count)["w"]

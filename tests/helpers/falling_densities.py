"""Two layers, and their masks while a density decreases."""

import jax
import jax.numpy as jnp
import numpy as np

import sparseopt_jax as so

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(6, 10)), jnp.float32),
    "bias": jnp.ones(10),
}
SIZES = {"a": 48, "b": 60}


def still(topology, steps, *, params=PARAMS, grads=None):
    """Return the masks before each step and after the last, with constant weights."""
    masks, state = topology.init(KEY, params)
    params = so.apply_masks(params, masks)
    grads = params if grads is None else grads
    found, update = [kernels(masks)], jax.jit(topology.update)
    for step in range(steps):
        if topology.due(step):
            masks, state = update(KEY, jnp.int32(step), masks, state, params, grads)
            params = so.apply_masks(params, masks)
        found.append(kernels(masks))
    return found


def kernels(masks):
    return {name: np.asarray(masks[name]) for name in SIZES}


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def planned(topology):
    return {leaf.path: leaf.active for leaf in topology.leaves(PARAMS) if leaf.layer}

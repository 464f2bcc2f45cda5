"""Training of dense weights with masks in the forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {
    "k": jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32),
    "b": jnp.ones(6),
}
HALF = so.ste(0.5)


def array(*values):
    return jnp.array(values, jnp.float32)


def grads_at(step):
    rng = np.random.default_rng(100 + step)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS
    )


def momentum():
    return optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


@functools.cache
def trained(method, steps=6, *, packed=False, compiled=True):
    """Return parameters and states, initially and after each step."""
    tx = so.sparsify(momentum(), method, packed=packed)
    params, state = PARAMS, tx.init(PARAMS)
    update = jax.jit(tx.update) if compiled else tx.update
    history = [(params, state)]
    for step in range(steps):
        updates, state = update(grads_at(step), state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    return history


KAST = so.top_kast(0.75, trained_sparsity=0.5, every=3, penalty=0.0)

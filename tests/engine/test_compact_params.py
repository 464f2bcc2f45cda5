"""Compact parameters: the masked-dense run's results from active blocks alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from sparseopt_jax.masks.compact_kernel import is_compact

BLOCKS = so.Block((16, 16))
STATIC = so.static(0.5, structure=BLOCKS)


def weights(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {
        "first": {"kernel": (32, 48), "bias": (48,)},
        "second": {"kernel": (48, 32), "bias": (32,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape) / 7, dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def inputs(step):
    return jnp.asarray(np.random.default_rng(step).normal(size=(4, 32)), jnp.float32)


def loss(params, x):
    params = so.dense_params(params)
    x = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    x = x @ params["second"]["kernel"] + params["second"]["bias"]
    return jnp.mean((x - 1) ** 2)


def start(tx, params=None):
    params = weights() if params is None else params
    opt_state = tx.init(params)
    return so.apply_masks(params, opt_state), opt_state


def step_of(tx):
    @jax.jit
    def step(params, opt_state, x):
        grads = jax.grad(loss)(params, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def assert_close(compact, dense, rtol=1e-4, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol, atol),
        so.dense_params(compact),
        dense,
    )


def test_compact_is_the_dense_run_and_dense_params_its_inverse():
    tx = so.sparsify(optax.adamw(1e-2), STATIC)
    params, opt_state = start(tx)
    compact = so.compact_params(params, opt_state)
    jax.tree.map(np.testing.assert_array_equal, so.dense_params(compact[0]), params)
    assert is_compact(compact[0]["first"]["kernel"])
    step = step_of(tx)
    dense = params, opt_state
    for i in range(10):
        dense, compact = step(*dense, inputs(i)), step(*compact, inputs(i))
    assert_close(compact[0], dense[0])
    jax.tree.map(
        np.testing.assert_array_equal,
        so.get_masks(compact[1]),
        so.get_masks(dense[1]),
    )

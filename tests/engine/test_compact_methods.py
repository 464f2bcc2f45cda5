"""Methods on compact parameters: masks and weights equal those on dense arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.masks.compact_kernel import holds_compact

BLOCKS = so.Block((16, 16))
STEPS = 200
MOVES = {"every": 24, "drop_fraction": 0.9, "structure": BLOCKS}
GRADUAL = so.gradual_magnitude(
    0.75, initial_sparsity=0.25, every=20, stop=80, structure=BLOCKS
)
AFTER = so.set_(masks=so.PREVIOUS_MASKS, start=110, stop=190, **MOVES)
# The topology, and the step from which parameters are compact.
METHODS = {
    "mest": (so.mest(0.75, stop=190, **MOVES), 0),
    "gradual": (GRADUAL, 90),
    "phases": (
        so.phases(
            (0, so.set_(0.75, stop=90, **MOVES)),
            (100, so.mest(0.75, start=110, stop=190, **MOVES)),
        ),
        0,
    ),
    "phases, gradual first": (so.phases((0, GRADUAL), (100, AFTER)), 105),
}

SLOW = {"gradual", "phases"}


def loss(params, x):
    params = so.dense_params(params)
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return jnp.mean((hidden @ params["second"]["kernel"] - 1) ** 2)


def weights():
    keys = jax.random.split(jax.random.key(0))
    return {
        "first": {
            "kernel": jax.random.normal(keys[0], (64, 48)) / 8,
            "bias": jnp.zeros(48),
        },
        "second": {"kernel": jax.random.normal(keys[1], (48, 64)) / 7},
    }


def inputs(step):
    return jax.random.normal(jax.random.key(step), (4, 64))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in METHODS
    ],
)
def test_masks_and_weights_are_those_of_the_dense_run(name):
    topology, begin = METHODS[name]
    tx = so.sparsify(optax.adamw(1e-3), topology, host_updates=True)

    @jax.jit
    def step(params, opt_state, x):
        grads = jax.grad(loss)(params, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, grads

    def update(grads, opt_state, params):
        return so.update_topology(tx, grads, opt_state, params)

    compiled = jax.jit(update)

    def train(params, opt_state, steps):
        moved = set()
        for i in steps:
            params, opt_state, grads = step(params, opt_state, inputs(i))
            if not topology.due(i):
                continue
            # Numbers of active blocks that may change are inspected outside of jit.
            is_open = holds_compact(params) and not topology.keeps_counts
            grads = grads if topology.reads_gradients else None
            if grads is None and not holds_compact(params):
                grads = params  # not read
            change = update if is_open else compiled
            opt_state, params = change(grads, opt_state, params)
            moved.add(i)
        return params, opt_state, moved

    params = weights()
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)
    params, opt_state, _ = train(params, opt_state, range(begin))
    compact, state = so.compact_params(params, opt_state)
    params, opt_state, _ = train(params, opt_state, range(begin, STEPS))
    before = so.get_masks(state)
    compact, state, moved = train(compact, state, range(begin, STEPS))
    masks = so.get_masks(state)
    jax.tree.map(np.testing.assert_array_equal, masks, so.get_masks(opt_state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        so.dense_params(compact),
        params,
    )
    same = jax.tree.map(lambda a, b: bool((a == b).all()), masks, before)
    assert all(jax.tree.leaves(same)) == (not moved)
    assert bool(moved) == (name != "gradual")

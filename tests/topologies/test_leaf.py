"""Scores of active blocks equal those of dense arrays, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.compact_storage import CompactStorage
from sparseopt_jax.topologies.leaf import Demand
from sparseopt_jax.topologies.updates import collect
from tests.helpers.compact_kernels import compact

WHEN = {"every": 1, "stop": 100, "drop_fraction": 0.5}
LEAVES = {
    "matrix": ((64, 128), (16, 32), 5, None),
    "large": ((256, 192), (64, 64), 4, None),
    "stack": ((2, 32, 48), (16, 16), 3, so.NeuronDims((1,), (2,))),
    "heads": ((32, 4, 32), (16, 1, 16), 5, so.NeuronDims((0,), (1, 2))),
}
METHODS = {"set": so.set_, "rigl": so.rigl, "mest": so.mest}


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("method", METHODS)
def test_updates_by_blocks_are_those_of_dense_arrays(method, name):
    shape, block, active, dims = LEAVES[name]
    random = np.random.default_rng(0)
    weights = random.standard_normal(shape).astype(np.float32)
    weights.flat[7] = np.inf  # non-finite weights are not dropped
    grads = {"kernel": jnp.asarray(random.standard_normal(shape), jnp.float32)}
    kernel = compact(weights, block, active, dims=dims)
    params = {"kernel": kernel.dense()}
    indices = ActiveIndices.of({"kernel": kernel.index}, (("kernel", kernel.layout),))
    sparsity = 1 - active / kernel.layout.units.per_cell
    topology = METHODS[method](
        sparsity, structure=so.Block(block), dims=dims, first=None, **WHEN
    )
    assert topology.updates_blocks
    _, state = topology.init(jax.random.key(0), params)
    storage = CompactStorage()

    @jax.jit
    def dense(params, grads):
        masks = indices.masks()
        leaf = collect(topology, masks, params, grads, ())["kernel"]
        new, kept = topology.update(
            jax.random.key(1), jnp.int32(1), masks, state, params, grads
        )
        indices_of_new, _ = storage.move(indices, masks, new, kept)
        return _scores(leaf, topology), indices_of_new, kept

    @jax.jit
    def by_blocks(active, grads):
        leaf = collect(topology, indices, active, grads, ())["kernel"]
        new, kept = topology.update(
            jax.random.key(1), jnp.int32(1), indices, state, active, grads
        )
        return _scores(leaf, topology), new, kept

    expected = dense(params, grads)
    found = by_blocks({"kernel": kernel.active}, grads)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (found[1].tree["kernel"] != kernel.index).any()
    if method == "mest":  # reads only the gradients of active weights
        of_active = {"kernel": kernel.layout.take(grads["kernel"], kernel.index)}
        again = by_blocks({"kernel": kernel.active}, of_active)
        jax.tree.map(np.testing.assert_array_equal, again, expected)


def _scores(leaf, topology):
    """Return scores for dropping and growing, where each applies."""
    demand = Demand(jnp.float32(0.5), {}, False, {})
    draft = leaf.draft(topology, jax.random.split(jax.random.key(3)), demand)
    drop = jnp.where(draft.active, draft.drop, 0.0)
    return draft.active, draft.held, drop, draft.grow, draft.size

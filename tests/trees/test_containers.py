"""Any pytree of arrays may hold the parameters."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

import sparseopt_jax as so
from tests.helpers.optimizers import one_step, rigl, sparse_states, start

SHAPE = (6, 8)
KERNEL = jax.random.normal(jax.random.key(0), SHAPE)
BIAS = jnp.ones(SHAPE[1])


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """Like Equinox modules: a dataclass with absent and static parts."""

    weight: Any
    bias: Any
    state: Any
    name: str = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Opaque:
    """Registered without names for its parts."""

    parts: tuple

    def tree_flatten(self):
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(tuple(parts))


def linen_params(kernel_init):
    model = nn.Dense(SHAPE[1], kernel_init=kernel_init)
    return model.init(jax.random.key(0), jnp.ones((1, SHAPE[0])))["params"]


def nnx_model():
    return nnx.Linear(*SHAPE, rngs=nnx.Rngs(0))


CONTAINERS = {
    "dict": {"layer": {"kernel": KERNEL, "bias": BIAS}},
    "FrozenDict": freeze({"layer": {"kernel": KERNEL, "bias": BIAS}}),
    "linen": linen_params(nn.initializers.normal()),
    "linen_partitioned": linen_params(
        nn.with_partitioning(nn.initializers.normal(), ("model", None))
    ),
    "nnx_State": nnx.state(nnx_model(), nnx.Param),
    "nnx_pure": nnx.as_pure(nnx.state(nnx_model(), nnx.Param)),
    "dataclass": {"layer": Linear(KERNEL, BIAS, None, "first")},
    "opaque_node": Opaque((KERNEL, BIAS)),
    "tuple": (KERNEL, BIAS),
    "NamedTuple": Pair(KERNEL, BIAS),
    "list": [KERNEL, [BIAS]],
    "array": KERNEL,
}


@pytest.fixture(params=CONTAINERS)
def params(request):
    return CONTAINERS[request.param]


def gradients(params, seed):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(map(jax.random.normal, keys, [x.shape for x in leaves]))


def kernel_of(tree):
    (kernel,) = [x for x in jax.tree.leaves(tree) if x.shape == SHAPE]
    return np.asarray(kernel)


def assert_trees_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_sparse(params, state):
    mask = kernel_of(so.get_masks(state))
    assert mask.sum() == 24
    np.testing.assert_array_equal(kernel_of(params)[~mask], 0.0)
    # Momentum is also found inside the container.
    (sparse,) = sparse_states(getattr(state, "opt_state", state))
    np.testing.assert_array_equal(kernel_of(sparse.inner_state)[~mask], 0.0)
    return mask


def test_trains_sparse(params):
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), rigl())
    step = jax.jit(one_step(tx))
    now = start(tx, params)
    structures = jax.tree.structure(params), jax.tree.structure(now.state)
    first = assert_sparse(*now)
    for count in range(4):
        now = step(gradients(params, count), *now)
        last = assert_sparse(*now)
    assert (first != last).any()
    assert structures == tuple(map(jax.tree.structure, now))


def test_changes_from_the_host(params):
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), rigl(), host_updates=True)
    now = one_step(tx)(gradients(params, 0), *start(tx, params))
    before = assert_sparse(*now)
    state, changed = so.update_topology(tx, gradients(params, 1), now.state, now.params)
    assert (assert_sparse(changed, state) != before).any()
    assert jax.tree.structure(state) == jax.tree.structure(now.state)
    assert jax.tree.structure(changed) == jax.tree.structure(params)


def test_masks_go_round(params):
    state = so.sparsify(optax.adam(0.1), so.static(0.5)).init(params)
    masks = so.get_masks(state)
    assert_trees_equal(so.apply_masks(params, masks), so.apply_masks(params, state))
    again = so.sparsify(optax.adam(0.1), so.rigl(masks=masks, every=2, stop=9))
    assert_trees_equal(so.get_masks(again.init(params)), masks)


def test_masks_of_a_part_go_round():
    params = {"body": CONTAINERS["dict"], "head": CONTAINERS["dict"]}
    sparse = so.sparsify(optax.sgd(0.1), so.static(0.5))
    tx = optax.partition(
        {"sparse": sparse, "dense": optax.sgd(0.1)}, {"body": "sparse", "head": "dense"}
    )
    masks = so.get_masks(tx.init(params))
    again = so.sparsify(optax.sgd(0.1), so.static(masks=masks)).init(params)
    sparse_once, sparse_again = (
        so.apply_masks(params, masks),
        so.apply_masks(params, again),
    )
    assert_trees_equal(sparse_once, sparse_again)


def test_masks_go_round_through_a_linen_train_state():
    def made(topology):
        return so.linen.TrainState.create(
            apply_fn=None,
            params=CONTAINERS["linen_partitioned"],
            tx=so.sparse_sgd(0.1, topology, momentum=0.9, sparseopt=True),
        )

    state = made(so.static(0.5))
    again = made(so.static(masks=so.get_masks(state)))
    assert_trees_equal(again.params, state.params)
    assert_sparse(state.params, state)


def test_masks_go_round_through_an_nnx_optimizer():
    def made(topology):
        model = nnx_model()
        optimizer = nnx.Optimizer(
            model, so.sparse_sgd(0.1, topology, sparseopt=True), wrt=nnx.Param
        )
        so.nnx.mask_model(model, optimizer)
        return model, optimizer

    model, optimizer = made(so.static(0.5))
    again, _ = made(so.static(masks=so.get_masks(optimizer)))
    assert_trees_equal(nnx.state(again), nnx.state(model))
    assert jnp.sum(model.kernel[...] != 0) == 24

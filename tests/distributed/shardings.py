"""Shardings of the state, derived from those of the parameters.

Needs eight devices: ``tests/distributed/test_devices.py`` provides them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from tests.helpers.optimizers import ROWS, random_tree, tree_of_shapes

LAYOUTS = {
    "data_parallel": ((8,), ("data",), P(), P()),
    "fsdp": ((8,), ("fsdp",), P(None, None, None, "fsdp"), P(None, "fsdp")),
    "tensor_parallel": (
        *((2, 4), ("data", "model")),
        *(P(None, None, None, "model"), P(None, "model")),
    ),
    "both": (
        *((2, 4), ("fsdp", "model")),
        *(P(None, None, "fsdp", "model"), P("fsdp", "model")),
    ),
}


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def kind(request):
    return request.param


@pytest.fixture(params=LAYOUTS)
def shardings(request, kind):
    shape, names, conv, dense = LAYOUTS[request.param]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    specs = {
        "conv": {"kernel": conv, "bias": P()},
        "dense": {"kernel": dense, "bias": P()},
        "norm": {"scale": P()},
    }
    with jax.set_mesh(mesh):
        yield jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def equivalent(array, sharding):
    return array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_optimizer_has_some(row):
    mesh = jax.make_mesh((2, 4), ("fsdp", "model"))
    _, _, conv, dense = LAYOUTS["both"]
    sharding = NamedSharding(mesh, P("fsdp"))
    shardings = {
        "conv": {"kernel": NamedSharding(mesh, conv), "bias": sharding},
        "dense": {"kernel": NamedSharding(mesh, dense), "bias": sharding},
        "norm": {"scale": sharding},
    }
    tx = row.make()
    if "values" in row.needs:
        pytest.skip("its own init takes arrays only")
    if "compact" in row.id:
        with pytest.raises(ValueError, match=r"'conv/kernel' .* sharded along axis 2"):
            so.state_sharding(tx, tree_of_shapes(), shardings)
        return
    derived = so.state_sharding(tx, tree_of_shapes(), shardings)
    state = jax.eval_shape(tx.init, tree_of_shapes())
    assert jax.tree.structure(derived) == jax.tree.structure(state)
    by_shape = {
        leaf.shape: sharding.spec
        for leaf, sharding in zip(
            jax.tree.leaves(tree_of_shapes()), jax.tree.leaves(shardings), strict=True
        )
        if len(leaf.shape) > 1
    }
    for leaf, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(derived), strict=True
    ):
        assert sharding.mesh == mesh
        assert sharding.spec == by_shape.get(leaf.shape, sharding.spec)
        # Each is one that JAX takes for a leaf of that shape.
        sharding.shard_shape(leaf.shape)


def test_a_state_is_born_sharded(shardings):
    tx = so.sparse_sgd(0.1, so.set_(0.5, every=2, stop=9), momentum=0.9, sparseopt=True)
    params = jax.device_put(random_tree(0), shardings)
    derived = so.state_sharding(tx, params, shardings)
    state = jax.jit(tx.init, out_shardings=derived)(params)
    assert all(jax.tree.leaves(jax.tree.map(equivalent, state, derived)))
    masks = so.get_masks(state)
    for name in ("conv", "dense"):
        assert equivalent(masks[name]["kernel"], shardings[name]["kernel"])
    # The masks depend neither on the placement of parameters nor on when they are made.
    expected = so.get_masks(tx.init(random_tree(0)))
    jax.tree.map(np.testing.assert_array_equal, masks, expected)


def test_fan_ins_are_sharded_as_the_outputs_are():
    mesh = jax.make_mesh((2, 4), ("fsdp", "model"))
    params = {"kernel": jax.ShapeDtypeStruct((6, 8), jnp.float32)}
    sharding = NamedSharding(mesh, P("fsdp", "model"))
    tx = so.sparsify(optax.adafactor(0.1), so.rigl(0.5, every=2, stop=9))
    state = so.state_sharding(tx, params, {"kernel": sharding})
    assert state.topology_state.fan_ins["kernel"].spec == P(None, "model")
    assert state.masks["kernel"].spec == P("fsdp", "model")
    assert state.key.spec == state.count.spec == P()
    assert so.state_sharding(tx, params, sharding) == state


def test_bad_shardings_are_named():
    mesh, other = jax.make_mesh((8,), ("a",)), jax.make_mesh((4, 2), ("a", "b"))
    params = {"kernel": jnp.ones((8, 8)), "head": {"kernel": jnp.ones((8, 8))}}
    tx = optax.sgd(0.1)
    good = NamedSharding(mesh, P("a"))
    with pytest.raises(ValueError, match="must have the structure of the parameters"):
        so.state_sharding(tx, params, {"kernel": good})
    with pytest.raises(TypeError, match="'head/kernel' holds P"):
        so.state_sharding(tx, params, {"kernel": good, "head": {"kernel": P("a")}})
    with pytest.raises(ValueError, match=r"one mesh, got .*'head/kernel': Mesh"):
        elsewhere = {"kernel": NamedSharding(other, P("a"))}
        so.state_sharding(tx, params, {"kernel": good, "head": elsewhere})

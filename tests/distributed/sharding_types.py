"""Sharded over a mesh of 2x4 devices, with or without explicit axes in types.

Needs eight devices: ``tests/distributed/test_devices.py`` provides them.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from sparseopt_jax.arrays.selection import top_k_mask
from tests.helpers.optimizers import (
    KERNELS,
    METHODS,
    PACKAGE,
    gradients,
    one_step,
    random_tree,
    start,
    train,
)

SPECS = {
    "conv": {"kernel": P(None, None, "data", "model"), "bias": P("model")},
    "dense": {"kernel": P("data", "model"), "bias": P("model")},
    "norm": {"scale": P()},
}
# Active weights of a whole layer are refused on a mesh; `collectives.py` tests those
# that are accepted.
ROWS = {row.id: row for row in [*PACKAGE, *METHODS] if not row.id.endswith("_compact")}


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(request.param,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(params=ROWS)
def row(request):
    return ROWS[request.param]


def is_explicit(mesh):
    return AxisType.Explicit in mesh.axis_types


def sharded(tree, mesh):
    return jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, SPECS
    )


def types(tree):
    """Return shapes, dtypes and shardings as types show them, explicit axes only.

    Not the types themselves: without explicit axes, they forget their mesh.
    """

    def of_leaf(x):
        kind = jax.typeof(x)
        return kind.shape, kind.dtype, kind.weak_type, kind.sharding.spec

    return jax.tree.map(of_leaf, tree)


def moved(compiled):
    """Return the operations of a compiled program that move more than they reduce."""
    return set(
        re.findall(r"all-gather|all-to-all|collective-permute", compiled.as_text())
    )


def test_types_are_stable_in_a_compiled_step(row, mesh):
    tx = row.make()
    now = start(tx, sharded(random_tree(0), mesh))
    # Traced, not run: the types of shardings are known by then.
    new = jax.eval_shape(one_step(tx), sharded(gradients(0), mesh), *now)
    assert types(new) == types(now)


@pytest.mark.parametrize(
    "topology",
    [
        so.rigl(0.5, structure=so.Channel(), every=1, stop=9),
        so.rigl(0.5, structure=so.Channel(-2), every=1, stop=9),
        so.set_(0.5, structure=so.Block((2, 2)), every=1, stop=9),
        so.granet(0.5, initial_sparsity=0.0, every=1, stop=9),
        so.rigl(0.5, averaged_steps=2, min_fan_in=1, every=2, stop=9),
        so.top_kast(0.5, trained_sparsity=0.25),
    ],
    ids=["outputs", "inputs", "blocks", "granet", "averaged", "top_kast"],
)
def test_types_are_stable_whatever_is_switched(topology, mesh):
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), topology)
    now = start(tx, sharded(random_tree(0), mesh))
    new = jax.eval_shape(one_step(tx), sharded(gradients(0), mesh), *now)
    assert types(new) == types(now)


def test_masks_are_sharded_as_their_weights(row, mesh):
    params = sharded(random_tree(0), mesh)
    masks = so.get_masks(row.make().init(params))
    if "packed" in row.id:
        pytest.skip("bytes of eight weights are not split any further")
    for name in KERNELS:
        assert masks[name]["kernel"].sharding == params[name]["kernel"].sharding


@pytest.mark.parametrize("id", ["sparsify_static", "sparsify_set", "sparsify_rigl"])
def test_types_are_the_same_compiled_or_not(id, mesh):
    tx = ROWS[id].make()
    params, grads = (sharded(tree, mesh) for tree in (random_tree(0), gradients(0)))
    state = tx.init(params)
    assert types(jax.jit(tx.init)(params)) == types(state)
    assert types(tx.update(grads, state, params)[1]) == types(state)


@pytest.mark.parametrize("id", ["sparsify_set", "sparsify_rigl"])
def test_sharded_training_changes_the_same_masks(id, mesh):
    run = train(ROWS[id], steps=5, part=lambda tree: sharded(tree, mesh))
    with jax.set_mesh(jax.make_mesh((1,), ("one",), devices=jax.devices()[:1])):
        expected = train(ROWS[id], steps=5)
    assert (run.moments[0].masks["dense"] != run.moments[-1].masks["dense"]).any()
    for actual, alone in zip(run.moments, expected.moments, strict=True):
        jax.tree.map(np.testing.assert_array_equal, actual.masks, alone.masks)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            actual.params,
            alone.params,
        )
    last = run.moments[-1]
    (momentum,) = last.sparse.inner_state[0]
    for tree in (last.params, momentum, last.sparse.masks):
        for name in KERNELS:
            sharding = NamedSharding(mesh, SPECS[name]["kernel"])
            assert tree[name]["kernel"].sharding.is_equivalent_to(
                sharding, tree[name]["kernel"].ndim
            )


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_selection_moves_no_scores(axis, mesh):
    values = random_tree(0)["dense"]["kernel"]
    scores = jax.device_put(values, NamedSharding(mesh, P("data", "model")))
    select = jax.jit(lambda scores: top_k_mask(scores, 3, axis=axis))
    assert not moved(select.lower(scores).compile())
    np.testing.assert_array_equal(select(scores), top_k_mask(values, 3, axis=axis))


def test_a_sort_does_move_them(mesh):
    if is_explicit(mesh):
        pytest.skip("a type error there")
    scores = jax.device_put(jnp.ones((6, 8)), NamedSharding(mesh, P("data", "model")))
    assert moved(jax.jit(lambda x: jnp.argsort(x, axis=None)).lower(scores).compile())


@pytest.mark.parametrize("id", ["rigl_2_of_4", "snfs"])
def test_sharded_structures_change_the_same_masks(id):
    # Groups of four are split by a mesh of four: each device has a part of one.
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        run = train(ROWS[id], steps=4, part=lambda tree: sharded(tree, mesh))
    expected = train(ROWS[id], steps=4)
    assert (run.moments[0].masks["dense"] != run.moments[-1].masks["dense"]).any()
    for actual, alone in zip(run.moments, expected.moments, strict=True):
        jax.tree.map(np.testing.assert_array_equal, actual.masks, alone.masks)


@pytest.mark.parametrize("id", ["sparsify_set", "sparsify_rigl"])
def test_a_step_moves_no_weights(id, mesh):
    tx = ROWS[id].make()
    now = start(tx, sharded(random_tree(0), mesh))
    step = jax.jit(one_step(tx))
    assert not moved(step.lower(sharded(gradients(0), mesh), *now).compile())


@pytest.mark.parametrize("method", [so.set_, so.rigl])
def test_a_sharded_stack_of_layers_keeps_its_counts(method, mesh):
    dims = so.NeuronDims(reduction_axis=1, output_axis=2)
    topology = method(0.5, every=1, stop=9, dims=dims)
    tx = so.sparsify(optax.sgd(0.1), topology)
    stack = jax.random.normal(jax.random.key(0), (4, 6, 8))
    params = {"kernel": jax.device_put(stack, NamedSharding(mesh, P("model", "data")))}
    now = start(tx, params)
    new = jax.jit(one_step(tx))(params, *now)
    masks = [np.asarray(m.state.masks["kernel"]) for m in (now, new)]
    assert (masks[0] != masks[1]).any()
    for mask in masks:
        np.testing.assert_array_equal(mask.sum((1, 2)), 24)


STRUCTURES = {
    "N:M": so.NM(2, 4),
    "block": so.Block((4, 2)),
    "channel": so.Channel(),
    "inputs": so.Channel(axis=-2),
    "constant fan-in": so.ConstantFanIn(),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_choose_the_same_on_a_mesh(name, mesh):
    structure = STRUCTURES[name]
    sparsity = None if name == "N:M" else 0.5
    topology = so.rigl(sparsity, structure=structure, every=1, stop=9)
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), topology)
    values = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)

    def run(put):
        params = {"kernel": put(values)}
        now = start(tx, params)
        step = jax.jit(one_step(tx))
        for _ in range(3):
            now = step(params, *now)
        return np.asarray(now.state.masks["kernel"])

    with jax.set_mesh(jax.make_mesh((1,), ("one",), devices=jax.devices()[:1])):
        alone = run(jnp.asarray)
    spec = NamedSharding(mesh, P("data", "model"))
    np.testing.assert_array_equal(run(lambda x: jax.device_put(x, spec)), alone)

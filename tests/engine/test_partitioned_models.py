"""The statements of ``docs/partitioned_models.md``, and boxes in a state."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from sparseopt_jax.masks.state import stays_dense
from sparseopt_jax.trees.boxes import has_boxes
from tests.helpers.pages import block_names, read, run_block

PAGE = read("docs/partitioned_models.md")
SCHEDULE = {"every": 2, "stop": 9, "drop_fraction": 0.5}
TOPOLOGIES = {
    "static": lambda: so.static(0.5),
    "rigl": lambda: so.rigl(0.5, averaged_steps=2, track_explored=True, **SCHEDULE),
    "set": lambda: so.set_(0.5, **SCHEDULE),
    "srigl": lambda: so.srigl(0.5, **SCHEDULE),
    "snfs": lambda: so.snfs(0.5, **SCHEDULE),
    "granet": lambda: so.granet(0.5, every=2, stop=6),
    "ac_dc": lambda: so.ac_dc(0.5, compress=(2, 6), decompress=(4,)),
    "phases": lambda: so.phases(
        (0, so.static(0.5)),
        (3, so.rigl(masks=so.PREVIOUS_MASKS, every=2, start=4, stop=9)),
    ),
    "ste": lambda: so.ste(0.5, every=2),
    "top_kast": lambda: so.top_kast(0.6, trained_sparsity=0.3, every=2),
}
FORMS = {
    "plain": {},
    "packed": {"packed": True},
    "compact": {"compact": True},
    "host": {"host_updates": True},
}
SHAPE = (8, 16)


class Box(struct.PyTreeNode, nn.meta.AxisMetadata):
    """User-defined axis metadata, whose field is not called value."""

    content: Any
    axes: tuple = struct.field(pytree_node=False)

    def unbox(self):
        return self.content

    def replace_boxed(self, val):
        return self.replace(content=val)

    def add_axis(self, index, params):
        return self

    def remove_axis(self, index, params):
        return self


BOXES = {
    "partitioned": lambda x: nn.Partitioned(x, (None, "model")[-x.ndim :]),
    "logical": lambda x: nn.LogicallyPartitioned(x, ("embed", "mlp")[-x.ndim :]),
    "own": lambda x: Box(x, (None, "model")[-x.ndim :]),
    "nested": lambda x: Box(nn.Partitioned(x, (None, "model")[-x.ndim :]), ()),
}


def plain_params():
    keys = jax.random.split(jax.random.key(0))
    return {
        "dense": {"kernel": jax.random.normal(keys[0], SHAPE), "bias": jnp.ones(16)},
        "head": {"kernel": jax.random.normal(keys[1], (16, 12))},
    }


def boxed_params(box):
    return jax.tree.map(BOXES[box], plain_params())


def gradients(params, step):
    return jax.tree.map(
        lambda x: jnp.round(8 * jax.random.normal(jax.random.key(step), x.shape)) / 8,
        params,
    )


def train(tx, params, state, *, unbox=(), steps=4):
    """Return parameters and state after some steps, unboxing the named trees before."""
    if not stays_dense(state):
        params = so.apply_masks(params, state)
    params, state = (
        nn.meta.unbox(tree) if name in unbox else tree
        for name, tree in (("params", params), ("state", state))
    )
    update = jax.jit(tx.update)
    for step in range(steps):
        grads = gradients(params, step)
        grads = nn.meta.unbox(grads) if "grads" in unbox else grads
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@functools.cache
def trained_plain():
    tx = so.sparsify(optax.sgd(0.125, momentum=0.5), TOPOLOGIES["rigl"]())
    return train(tx, plain_params(), tx.init(plain_params()))


@functools.cache
def trained_boxed(form):
    """Return a transformation and a training with it in which all trees have boxes."""
    tx = so.sparsify(optax.adam(0.125), TOPOLOGIES["set"](), **FORMS[form])
    boxed = boxed_params("own")
    return tx, train(tx, boxed, tx.init(boxed))


def assert_equal(actual, expected):
    actual, expected = nn.meta.unbox((actual, expected))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def is_box(x):
    return isinstance(x, nn.meta.AxisMetadata)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_only_what_has_the_parameters_shape_is_boxed(name, form):
    if form == "compact" and name not in ("static", "rigl", "set"):
        pytest.skip("its number of active weights moves")
    tx = so.sparsify(optax.adam(1e-3), TOPOLOGIES[name](), **FORMS[form])
    params = boxed_params("own")
    state = jax.eval_shape(tx.init, params)
    shapes = {x.content.shape for x in jax.tree.leaves(params, is_leaf=is_box)}
    boxed = 0
    for leaf in jax.tree.leaves(state, is_leaf=is_box):
        if is_box(leaf):
            assert leaf.content.shape in shapes
            boxed += 1
        else:
            assert leaf.shape not in shapes
    assert boxed > 0
    specs = jax.tree.map(lambda x: x.axes if is_box(x) else (), state, is_leaf=is_box)
    if form in ("plain", "host"):
        assert specs.masks["dense"]["kernel"] == (None, "model")


@pytest.mark.parametrize(
    "box",
    ["own", *(pytest.param(x, marks=pytest.mark.slow) for x in BOXES if x != "own")],
)
def test_boxes_change_no_result(box):
    tx = so.sparsify(optax.sgd(0.125, momentum=0.5), TOPOLOGIES["rigl"]())
    boxed = boxed_params(box)
    params, state = train(tx, boxed, tx.init(boxed))
    assert_equal((params, state), trained_plain())
    assert jax.tree.structure(params) == jax.tree.structure(boxed)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(boxed))


UNBOXED = (
    ("params", "grads", "state"),
    ("params", "grads"),
    ("params",),
    ("grads",),
    ("state",),
)


@pytest.mark.parametrize(
    ("form", "unbox"),
    [
        pytest.param(
            *(form, unbox),
            marks=[] if form == "plain" or unbox == UNBOXED[0] else pytest.mark.slow,
            id="-".join((form, *unbox)),
        )
        for form in FORMS
        for unbox in UNBOXED
    ],
)
def test_some_trees_may_be_unboxed(form, unbox):
    tx, expected = trained_boxed(form)
    boxed = boxed_params("own")
    params, state = train(tx, boxed, tx.init(boxed), unbox=unbox)
    assert has_boxes(params) != ("params" in unbox)
    assert_equal((params, state), expected)
    if form == "host":
        grads = gradients(params, 9)
        new_state, new_params = so.update_topology(tx, grads, state, params)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        assert jax.tree.structure(new_params) == jax.tree.structure(params)


def test_a_state_of_plain_parameters_takes_boxed_ones():
    tx = so.sparsify(optax.adam(0.125), TOPOLOGIES["rigl"]())
    plain, boxed = plain_params(), boxed_params("logical")
    expected = train(tx, plain, tx.init(plain))
    params, state = train(tx, boxed, tx.init(plain))
    assert has_boxes(params) and not has_boxes(state)
    assert_equal((params, state), expected)


def test_plain_masks_of_a_chain_take_boxed_parameters():
    tx = optax.chain(so.sparseopt(so.rigl(0.5, **SCHEDULE)), optax.sgd(0.1))
    plain, boxed = plain_params(), boxed_params("own")
    updates, _ = tx.update(boxed, tx.init(plain), boxed)
    assert jax.tree.structure(updates) == jax.tree.structure(boxed)


def test_state_sharding_takes_boxed_shapes():
    mesh = jax.make_mesh((1,), ("model",))
    tx = so.sparsify(optax.adam(0.1), so.set_(0.5, **SCHEDULE), packed=True)
    boxed, plain = boxed_params("partitioned"), plain_params()
    shardings = nn.get_sharding(jax.eval_shape(lambda: boxed), mesh)
    expected = so.state_sharding(tx, plain, shardings)
    for given in (
        shardings,
        jax.tree.map(lambda s, x: x.replace(value=s), shardings, boxed),
    ):
        derived = so.state_sharding(tx, jax.eval_shape(lambda: boxed), given)
        assert jax.tree.leaves(derived) == jax.tree.leaves(expected)
        state = jax.jit(tx.init, out_shardings=derived)(boxed)
        assert jax.tree.structure(state) == jax.tree.structure(derived)
    moments = derived.inner_state[0].mu["dense"]["kernel"]
    assert moments.value.spec == P(None, "model")


@pytest.mark.parametrize(
    "form",
    [
        "compact",
        *(pytest.param(x, marks=pytest.mark.slow) for x in FORMS if x != "compact"),
    ],
)
def test_nnx_variables_keep_their_names_where_they_fit(form):
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    tx = so.sparsify(optax.adam(1e-3), TOPOLOGIES["rigl"](), **FORMS[form])

    @nnx.jit
    def create():
        kernel_init = nnx.with_partitioning(
            nnx.initializers.lecun_normal(), ("data", "model")
        )
        model = nnx.Linear(8, 16, kernel_init=kernel_init, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda module: (module(x) ** 2).mean())(model))

    with jax.set_mesh(mesh):
        model, optimizer = create()
        so.nnx.mask_model(model, optimizer)
        before = nnx.get_partition_spec(nnx.state(optimizer))
        for seed in range(3):
            step(model, optimizer, jax.random.normal(jax.random.key(seed), (4, 8)))
        specs = nnx.get_partition_spec(nnx.state(optimizer))
    assert jax.tree.leaves(specs) == jax.tree.leaves(before)
    kernel = np.asarray(model.kernel[...])
    mask = np.asarray(so.get_masks(optimizer)["kernel"])
    assert mask.sum() == 64 and not kernel[~mask].any()
    of_moments = specs["opt_state"]["inner_state"][0]["mu"]["kernel"].get_value()
    assert of_moments == (P() if form == "compact" else P("data", "model"))
    assert specs["opt_state"]["topology_state"]["grown"]["kernel"].get_value() == P()


def test_the_page_runs():
    names = block_names(PAGE)
    assert names == ["linen", "unboxed", "derived", "nnx"]
    given = {}
    for name in names:
        given = run_block(PAGE, name, **given)
        if name == "linen":
            assert has_boxes(given["state"].opt_state.masks)
            kernel_spec = given["shardings"].opt_state.masks["Dense_0"]["kernel"].spec
            assert kernel_spec == P(None, "model")
        if name in ("linen", "unboxed"):
            x, y = jnp.ones((4, 16)), jnp.zeros((4, 16))
            state = given["step"](given["state"], x, y)
            masks = so.get_masks(state)
            assert_equal(so.apply_masks(state.params, masks), state.params)
    assert not has_boxes(given["state"])
    assert (given["linear"].kernel[...] == 0).mean() > 0.8

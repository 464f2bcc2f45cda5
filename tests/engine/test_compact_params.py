"""Compact parameters: the masked-dense run's results from active blocks only."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from sparseopt_jax.checkpoint import Checkpoints
from sparseopt_jax.masks.compact_kernel import is_compact

BLOCKS = so.Block((16, 16))
STATIC = so.static(0.5, structure=BLOCKS)
OPTIMIZERS: dict[Any, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.05),
    "momentum": optax.sgd(0.02, momentum=0.9),
    "adamw": optax.adamw(1e-3),
    "lion": optax.lion(1e-4),
    "lamb": optax.lamb(1e-3),
}


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


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_compact_is_the_dense_run_and_dense_params_its_inverse():
    tx = so.sparsify(optax.adamw(1e-2), STATIC)
    params, opt_state = start(tx)
    compact = so.compact_params(params, opt_state)
    assert_same(so.dense_params(compact[0]), params)
    assert is_compact(compact[0]["first"]["kernel"])
    step = step_of(tx)
    dense = params, opt_state
    for i in range(10):
        dense, compact = step(*dense, inputs(i)), step(*compact, inputs(i))
    assert_close(compact[0], dense[0])
    assert_same(so.get_masks(compact[1]), so.get_masks(dense[1]))


def _labels(tree):
    def label(key_path, _):
        name = key_path[0].key
        return name if name in OPTIMIZERS else "other"

    return jax.tree.map_with_path(label, tree)


@pytest.mark.parametrize(
    "method", [pytest.param(so.set_, marks=pytest.mark.slow), so.rigl]
)
def test_masks_move_as_in_the_dense_run_under_every_optimizer(method):
    topology = method(0.5, every=24, stop=190, drop_fraction=0.9, structure=BLOCKS)
    params = {name: weights(i) for i, name in enumerate(OPTIMIZERS)}
    inner = optax.partition({**OPTIMIZERS, "other": optax.identity()}, _labels)
    tx = so.sparsify(inner, topology, host_updates=True)

    def loss_of_all(params, x):
        return sum(loss(params[name], x) for name in OPTIMIZERS)

    @jax.jit
    def step(params, opt_state, x):
        grads = jax.grad(loss_of_all)(params, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    update = jax.jit(lambda grads, *state: so.update_topology(tx, grads, *state))
    gradient = jax.jit(so.dense_gradient(loss_of_all))

    def train(params, opt_state):
        for i in range(200):
            due, x = topology.due(i), inputs(i)
            if due and topology.replaces_step:
                opt_state, params = update(gradient(params, x), opt_state, params)
            params, opt_state = step(params, opt_state, x)
            if due and not topology.replaces_step:
                grads = None if is_compact(params["sgd"]["first"]["kernel"]) else params
                opt_state, params = update(grads, opt_state, params)
        return params, opt_state

    begun = start(tx, params)
    dense, dense_state = train(*begun)
    compact, state = train(*so.compact_params(*begun))
    assert_same(so.get_masks(state), so.get_masks(dense_state))
    first = so.get_masks(begun[1])["adamw"]["first"]["kernel"]
    assert (so.get_masks(state)["adamw"]["first"]["kernel"] != first).any()
    assert_close(compact, dense)
    places = compact["lamb"]["first"]["kernel"].index
    expected = state.masks.tree["lamb"]["first"]["kernel"]
    np.testing.assert_array_equal(places, expected)


def _wrapped():
    def tx(inner=None):
        return so.sparsify(inner or optax.adamw(1e-2), STATIC)

    labels = {"first": "sparse", "second": "rest"}
    return {
        "multi_steps": optax.MultiSteps(
            tx(optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))), 2
        ),
        "apply_if_finite": optax.apply_if_finite(tx(), 2),
        "partition": optax.partition({"sparse": tx(), "rest": optax.sgd(0.1)}, labels),
        "inject_hyperparams": optax.inject_hyperparams(
            lambda learning_rate: tx(optax.lion(learning_rate))
        )(learning_rate=optax.linear_schedule(1e-3, 0, 9)),
        "packed": so.sparsify(optax.adam(1e-2), STATIC, packed=True),
        "compact": so.sparsify(optax.adam(1e-2), STATIC, compact=True),
        "corrected": tx(optax.chain(so.scale_by_sparseopt(), optax.sgd(0.1))),
        "mixed": so.sparsify(
            optax.adam(1e-2),
            so.static(0.5, structure={"first/*": BLOCKS}),
        ),
    }


@pytest.mark.parametrize("name", list(_wrapped()))
def test_whatever_is_around_sees_active_blocks_as_it_sees_weights(name):
    tx = _wrapped()[name]
    params, opt_state = start(tx)
    step = step_of(tx)
    dense = step(params, opt_state, inputs(0))
    compact = so.compact_params(*dense)  # in the middle of an accumulation, too
    is_sparse = {"first"} if name in ("partition", "mixed") else {"first", "second"}
    for layer in ("first", "second"):
        kernel = compact[0][layer]["kernel"]
        assert is_compact(kernel) == (layer in is_sparse)
    for i in range(1, 6):
        dense, compact = step(*dense, inputs(i)), step(*compact, inputs(i))
    assert_close(compact[0], dense[0])
    if name == "inject_hyperparams":  # which takes hyperparameters for arrays of now
        return
    back = so.convert_state(tx, so.dense_params(compact[0]), compact[1])
    assert jax.tree.structure(back) == jax.tree.structure(dense[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-5), back, dense[1]
    )


def _product(x, kernel):
    """Multiply inputs with a compact kernel, without a dense array."""
    rows, columns = (n // 16 for n in kernel.shape)
    row, column = jnp.divmod(kernel.index, columns)
    parts = jnp.reshape(x, (len(x), rows, 16))[:, row]
    parts = jnp.einsum("bnr,nrc->nbc", parts, kernel.blocks)
    summed = jax.ops.segment_sum(parts, column, columns)
    return jnp.reshape(jnp.swapaxes(summed, 0, 1), (len(x), kernel.shape[1]))


def test_the_compiled_step_holds_no_dense_array_and_no_condition():
    topology = so.rigl(0.75, every=10, stop=90, structure=BLOCKS)
    tx = so.sparsify(optax.adamw(1e-2), topology, host_updates=True)
    params = {"kernel": jnp.ones((128, 160)), "bias": jnp.zeros(160)}
    params, opt_state = so.compact_params(params, tx.init(params))
    active = params["kernel"].active.size

    @jax.jit
    def step(params, opt_state, x):
        def loss(params):
            return jnp.sum(_product(x, params["kernel"]) + params["bias"])

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    text = step.lower(params, opt_state, jnp.ones((2, 128))).compile().as_text() or ""
    shapes = re.findall(r"\b(?:f32|s32|u8|pred)\[([\d,]*)\]", text)
    sizes = [math.prod(map(int, filter(None, x.split(",")))) for x in shapes]
    assert max(sizes) == active == 128 * 160 // 4
    assert "conditional(" not in text


def test_seeds_side_by_side_scan_and_donation():
    tx = so.sparsify(optax.adamw(1e-2), STATIC)
    seeds = [weights(seed) for seed in range(2)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    opt_state = jax.vmap(tx.init)(params)
    params = jax.vmap(so.apply_masks)(params, opt_state)
    step = jax.vmap(step_of(tx), (0, 0, None))
    batches = jnp.stack([inputs(i) for i in range(4)])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, opt_state):
        def body(carry, x):
            return step(*carry, x), None

        return jax.lax.scan(body, (params, opt_state), batches)[0]

    compact = so.compact_params(params, opt_state)
    jax.tree.map(np.testing.assert_array_equal, so.dense_params(compact[0]), params)
    assert_same(so.get_masks(compact[1]), so.get_masks(opt_state))
    assert_close(
        train(*jax.tree.map(jnp.copy, compact))[0], train(params, opt_state)[0]
    )


@pytest.mark.parametrize(
    "how", [pytest.param("pmap", marks=pytest.mark.slow), "mesh", "bfloat16"]
)
def test_replicas_meshes_and_narrow_types(how):
    tx = so.sparsify(optax.adamw(1e-2), STATIC)
    dtype = jnp.bfloat16 if how == "bfloat16" else jnp.float32
    params, opt_state = start(tx, weights(dtype=dtype))
    step, x = step_of(tx), inputs(0).astype(dtype)
    if how == "pmap":
        params, opt_state, x = jax.tree.map(lambda x: x[None], (params, opt_state, x))
        step = jax.pmap(step)
    if how == "mesh":
        mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
        params, opt_state = jax.device_put(
            (params, opt_state), NamedSharding(mesh, P())
        )
        x = jax.device_put(x, NamedSharding(mesh, P("data")))
    compact = so.compact_params(params, opt_state)
    dense = params, opt_state
    for _ in range(2):
        dense, compact = step(*dense, x), step(*compact, x)
    assert_close(compact[0], dense[0], *((0.02, 0.02) if how == "bfloat16" else ()))
    assert compact[0]["first"]["kernel"].dtype == dtype


def test_reports_and_tools_take_both_forms():
    topology = so.set_(0.5, every=5, stop=90, track_explored=True, structure=BLOCKS)
    tx = so.sparsify(optax.adamw(1e-2), topology, host_updates=True)
    params, opt_state = step_of(tx)(*start(tx), inputs(0))
    compact, state = so.compact_params(params, opt_state)
    grads = jax.grad(loss)(params, inputs(1))
    assert_same(
        so.metrics(compact, state, grads=jax.grad(loss)(compact, inputs(1))),
        so.metrics(params, opt_state, grads=grads),
    )
    summary = so.summary(compact, state)
    assert summary.layers == so.summary(params, opt_state).layers
    assert "active blocks" in str(summary)
    assert str(so.plan(compact, topology)) == str(so.plan(params, topology))
    assert so.optimizer_bytes(state) < 0.7 * so.optimizer_bytes(opt_state)
    assert_same(so.apply_masks(compact, state), compact)
    assert_same(
        so.apply_updates(compact, jax.tree.map(jnp.zeros_like, compact), state), compact
    )
    fresh = so.reset_inner(tx, compact, state)
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    assert not jnp.any(fresh.inner_state[0].mu["first"]["kernel"])
    assert_same(fresh.masks, state.masks)


def test_a_checkpoint_moves_between_both_forms(tmp_path):
    tx = so.sparsify(optax.adamw(1e-2), STATIC)
    dense = step_of(tx)(*start(tx), inputs(0))
    compact = so.compact_params(*dense)
    for name, state in {"dense": dense, "compact": compact}.items():
        with Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save(1, state)
            begun = start(tx) if name == "dense" else so.compact_params(*start(tx))
            found = checkpoints.restore(begun)
        assert found is not None
        restored, _ = found
        assert_same(restored, state)
        if name == "dense":
            assert_same(so.compact_params(*restored), compact)
        else:
            params = so.dense_params(restored[0])
            back = params, so.convert_state(tx, params, restored[1])
            assert jax.tree.structure(back) == jax.tree.structure(dense)
            assert_same(so.compact_params(*back), compact)


def test_leaves_that_where_leaves_out_and_convolutions_stay_dense():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 16, 32))},
        "one": {"kernel": jnp.ones((1, 1, 32, 32))},
        "heads": {"kernel": jnp.ones((32, 4, 32))},
        "stack": {"kernel": jnp.ones((3, 32, 32))},
        "left": {"kernel": jnp.ones((32, 32))},
        "full": {"kernel": jnp.ones((32, 32))},
    }
    dims = {
        "stack/*": so.NeuronDims((1,), (2,)),
        "heads/*": so.NeuronDims((0,), (1, 2)),
    }
    topology = so.static(
        0.5,
        distribution={"full/*": 0.0, "*": 0.5},
        structure={"heads/*": so.Block((16, 1, 16)), "*": BLOCKS},
        dims=dims,
    )
    tx = so.sparsify(optax.adam(1e-2), topology)
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)
    compact, state = so.compact_params(
        params, opt_state, where=lambda path, leaf: "left" not in path
    )
    found = {name for name, x in compact.items() if is_compact(x["kernel"])}
    assert found == {"one", "heads", "stack"}
    assert_same(so.dense_params(compact), params)
    assert compact["stack"]["kernel"].index.shape[0] == 3  # one per layer
    updates, _ = jax.jit(tx.update)(compact, state, compact)
    moved = so.dense_params(optax.apply_updates(compact, updates))
    masks = so.get_masks(opt_state)
    for name in masks:
        np.testing.assert_array_equal(moved[name]["kernel"] != 0, masks[name]["kernel"])


def test_a_dense_leaf_with_the_name_of_a_sparse_one_above_stays_dense():
    params = {name: jnp.ones((32, 32)) for name in ("kernel", "bias")}
    params = {"kernel": jnp.ones((32, 32)), "head": params}
    topology = so.static(
        0.5, structure=BLOCKS, where=lambda path, leaf: path == "kernel"
    )
    tx = optax.MultiSteps(so.sparsify(optax.adam(1e-2), topology), 2)
    tx = tx.gradient_transformation()
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)
    compact, state = so.compact_params(params, opt_state)
    assert is_compact(compact["kernel"])
    assert not is_compact(compact["head"]["kernel"])
    assert not is_compact(state.acc_grads["head"]["kernel"])
    assert state.inner_opt_state.inner_state[0].mu["head"]["kernel"].shape == (32, 32)
    assert_same(so.dense_params(compact), params)
    back = so.convert_state(tx, params, state)
    jax.tree.map(np.testing.assert_array_equal, back, opt_state)


def test_what_does_not_go_says_what_to_do():
    params = weights()
    tx = so.sparsify(optax.adam(1e-2), STATIC)
    opt_state = tx.init(params)
    compact, state = so.compact_params(params, opt_state)
    grads = jax.tree.map(jnp.zeros_like, compact)

    def refuses(match, function, *args):
        with pytest.raises((TypeError, ValueError), match=match):
            function(*args)

    refuses("compact already", so.compact_params, compact, state)
    refuses("outside of jit", jax.jit(so.compact_params), params, opt_state)
    refuses("tx.init takes dense", tx.init, compact)
    refuses("but opt_state is not", tx.update, grads, opt_state, compact)
    refuses("params are dense", tx.update, grads, state, params)
    refuses("convert_state", tx.update, params, state, params)
    for structure, match in {
        so.Unstructured(): "'first/kernel', is a matrix of blocks: build .*Block",
        so.Block((8, 16)): "at least 16",
    }.items():
        other = so.sparsify(optax.sgd(0.1), so.static(0.5, structure=structure))
        refuses(match, so.compact_params, params, other.init(params))
    wider = {"first": {"kernel": jnp.ones((64, 48))}, "second": params["second"]}
    refuses("for 'first/kernel'", so.compact_params, wider, opt_state)
    smaller = so.sparsify(optax.adam(1e-2), so.static(0.7, structure=BLOCKS))
    _, foreign = so.compact_params(params, smaller.init(params))
    refuses("'first/kernel'.*other parameters", tx.update, grads, foreign, compact)
    muon = so.sparsify(optax.contrib.muon(0.1), STATIC)
    muon_state = so.compact_params(params, muon.init(params))[1]
    refuses("muon", muon.update, grads, muon_state, compact)
    link = optax.chain(so.sparseopt(STATIC), optax.sgd(0.1))
    link_state = so.compact_params(params, link.init(params))[1]
    refuses("put the optimizer inside", link.update, grads, link_state, compact)
    dense = so.sparsify(optax.sgd(0.1), so.ste(0.5, structure=BLOCKS))
    refuses("dense", so.compact_params, params, dense.init(params))
    averaged = so.sparsify(
        optax.sgd(0.1),
        so.rigl(0.5, every=5, stop=9, averaged_steps=2, structure=BLOCKS),
    )
    refuses("remembers", so.compact_params, params, averaged.init(params))
    mesh = jax.make_mesh((1,), ("model",))
    shardings = jax.tree.map(lambda _: NamedSharding(mesh, P(None, "model")), params)
    refuses("'first/kernel'.*along axis 1", so.state_sharding, tx, compact, shardings)


def test_updates_that_need_more_than_they_are_given():
    params = weights()

    def begin(topology):
        tx = so.sparsify(optax.sgd(0.1), topology, host_updates=True)
        return tx, *so.compact_params(params, tx.init(params))

    rigl, compact, state = begin(so.rigl(0.5, every=5, stop=9, structure=BLOCKS))
    grads = jax.tree.map(jnp.zeros_like, compact)
    with pytest.raises(ValueError, match="dense_gradient"):
        so.update_topology(rigl, grads, state, compact)
    mest, compact, state = begin(so.mest(0.5, every=5, stop=9, structure=BLOCKS))
    with pytest.raises(ValueError, match="grads is None"):
        so.update_topology(mest, None, state, compact)
    gradual = so.gradual_magnitude(
        0.5, initial_sparsity=0.1, every=5, stop=9, structure=BLOCKS
    )
    gradual, compact, state = begin(gradual)
    state = state._replace(count=state.count + 6)  # after the update's step
    with pytest.raises(ValueError, match=r"active blocks of .*so\.dense_params"):
        so.update_topology(gradual, None, state, compact)
    moving = so.sparsify(
        optax.sgd(0.1), so.set_(0.5, every=5, stop=9, structure=BLOCKS)
    )
    compact, state = so.compact_params(params, moving.init(params))
    with pytest.warns(UserWarning, match="host_updates=True"):
        moving.update(grads, state, compact)
    moving.update(grads, state, compact)  # warns once


@pytest.mark.parametrize("name", ["multi_steps", "partition", "compact", "mixed"])
def test_a_compact_state_is_sharded_as_its_parameters(name):
    tx = _wrapped()[name]
    params, opt_state = so.compact_params(*start(tx))
    mesh = jax.make_mesh((1,), ("data",))
    sharding = NamedSharding(mesh, P())
    found = so.state_sharding(tx, params, sharding)
    assert jax.tree.structure(found) == jax.tree.structure(opt_state)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(found))
    assert_same(jax.device_put(opt_state, found), opt_state)


def test_stacked_layers_are_sharded_along_their_stack():
    dims = so.NeuronDims((1,), (2,))
    topology = so.static(0.5, structure=BLOCKS, dims=dims)
    tx: Any = optax.MultiSteps(so.sparsify(optax.adam(1e-2), topology), 2)
    params = {"kernel": jnp.ones((3, 32, 32)), "bias": jnp.ones((3, 32))}
    params, opt_state = so.compact_params(params, tx.init(params))
    split = NamedSharding(jax.make_mesh((1,), ("stage",)), P("stage"))
    found = so.state_sharding(tx, params, split)
    assert jax.tree.structure(found) == jax.tree.structure(opt_state)
    owner = found.inner_opt_state
    for sharding in (
        owner.masks.tree["kernel"],
        owner.inner_state[0].mu["kernel"],
        found.acc_grads["kernel"].active,
        found.acc_grads["kernel"].places,
    ):
        assert sharding.spec[0] == "stage" and not any(sharding.spec[1:])
    assert owner.count.spec == P()


def test_nothing_is_promoted_silently():
    topology = so.set_(0.5, every=5, stop=90, drop_fraction=0.9, structure=BLOCKS)
    tx = so.sparsify(optax.sgd(0.125, momentum=0.5), topology, host_updates=True)
    with jax.numpy_dtype_promotion("strict"):
        params = weights(dtype=jnp.bfloat16)
        params, opt_state = so.compact_params(params, tx.init(params))
        grads = jax.tree.map(jnp.ones_like, params)
        updates, _ = jax.eval_shape(tx.update, grads, opt_state, params)
        jax.eval_shape(optax.apply_updates, params, updates)
        update = functools.partial(so.update_topology, tx, None)
        jax.eval_shape(update, opt_state, params)
        jax.eval_shape(so.metrics, params, opt_state)
        dense = so.dense_params(params)
        so.convert_state(tx, dense, opt_state)
    assert dense["first"]["kernel"].dtype == jnp.bfloat16

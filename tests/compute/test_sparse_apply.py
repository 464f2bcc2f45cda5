"""Unchanged models with compact kernels give the same results as with dense ones."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.masks.compact_kernel import is_compact
from tests.helpers.compact_kernels import (
    assert_same_gradients,
    compact,
    compacted,
    dense,
)

KEY = jax.random.key(0)
BLOCK = (16, 16)


def _draw(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def _assert_same(apply_fn, params, *args, by="block", rtol=2e-5):
    """Check outputs and gradients by block against the same parameters, dense."""

    @jax.jit
    def loss(params, *args):
        outputs = so.sparse_apply(apply_fn, by=by)(params, *args)
        return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(outputs)), outputs

    step = jax.value_and_grad(loss, has_aux=True)
    (_, found), grads = step(params, *args)
    (_, expected), dense_grads = step(dense(params), *args)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol),
        found,
        expected,
    )
    assert_same_gradients(grads, dense_grads, params, rtol, rtol)
    found, _ = jax.jit(so.dense_gradient(loss, has_aux=True))(params, *args)
    for actual, wanted in zip(*map(jax.tree.leaves, (found, dense_grads)), strict=True):
        np.testing.assert_allclose(
            np.asarray(actual, np.float32), np.asarray(wanted, np.float32), rtol, rtol
        )


def _dense_arrays_in(function, *args, shape):
    """Tell whether the compiled program holds a floating-point array of this shape."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return any(
        f"{kind}[{','.join(map(str, shape))}]" in text for kind in ("f32", "bf16")
    )


class Classifier(nn.Module):
    """With dropout, batch statistics and a flag."""

    @nn.compact
    def __call__(self, x, *, train, scale=None):
        x = nn.Dense(48, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(32, name="second")(x if scale is None else x * scale)


@pytest.fixture(scope="module")
def classifier():
    model, x = Classifier(), _draw(6, 32)
    variables = model.init(KEY, x, train=False)
    blocks = {"first/kernel": (BLOCK, 3), "second/kernel": (BLOCK, 2)}
    return model, compacted(variables["params"], blocks), variables["batch_stats"], x


def test_linen_with_dropout_batch_statistics_and_flags(classifier):
    model, params, batch_stats, x = classifier

    def call(apply_fn, params, x):
        return apply_fn(
            {"params": params, "batch_stats": batch_stats},
            x,
            train=True,
            rngs={"dropout": KEY},
            mutable=["batch_stats"],
        )

    found = call(so.sparse_apply(model.apply, by="block"), params, x)
    expected = call(model.apply, dense(params), x)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


def test_gradients_of_a_whole_model(classifier):
    model, params, batch_stats, x = classifier
    apply_fn = functools.partial(model.apply, train=False)
    _assert_same(
        lambda params, x: apply_fn({"params": params, "batch_stats": batch_stats}, x),
        params,
        x,
    )


def test_dense_parameters_go_through_the_model_itself(classifier):
    model, params, batch_stats, x = classifier
    calls = []

    def apply_fn(*args, **kwargs):
        calls.append(args)
        return model.apply(*args, **kwargs)

    variables = {"params": dense(params), "batch_stats": batch_stats}
    y = so.sparse_apply(apply_fn)(variables, x, train=False)
    assert calls[0][0] is variables
    np.testing.assert_array_equal(y, model.apply(variables, x, train=False))


def test_the_compiled_step_holds_no_dense_array():
    params = {"kernel": compact(_draw(64, 96), BLOCK, 5)}
    x = _draw(8, 64)

    def loss(by):
        apply_fn = so.sparse_apply(lambda params, x: x @ params["kernel"], by=by)
        return lambda params, x: jnp.sum(apply_fn(params, x) ** 2)

    step = jax.grad(loss("block"))
    assert not _dense_arrays_in(step, params, x, shape=(64, 96))
    # If the dense array is requested, the same test finds it.
    assert _dense_arrays_in(jax.grad(loss("dense")), params, x, shape=(64, 96))


def test_a_dense_gradient_has_one_dense_product_and_counts_penalties():
    params = {"kernel": compact(_draw(64, 96), BLOCK, 5)}
    x = _draw(8, 64)
    apply_fn = so.sparse_apply(lambda params, x: x @ params["kernel"], by="block")

    def loss(params, x):
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.sum(apply_fn(params, x) ** 2) + penalty

    gradient = jax.jit(so.dense_gradient(loss))
    expected = jax.grad(loss)(dense(params), x)["kernel"]
    np.testing.assert_allclose(
        gradient(params, x)["kernel"], expected, rtol=1e-5, atol=1e-4
    )
    text = gradient.lower(params, x).compile().as_text() or ""
    shapes = re.findall(r"= (f32\[[\d,]*\])\S* dot\(", text)
    assert shapes.count("f32[64,96]") + shapes.count("f32[96,64]") == 1
    with pytest.raises(TypeError, match="no dense gradient: evaluate the model"):
        so.dense_gradient(lambda params: jnp.sum(params["kernel"].blocks))(params)


def test_a_whole_training_step_holds_no_dense_array_and_is_the_dense_step():
    topology = so.static(0.75, structure=so.Block(BLOCK))
    tx = so.sparsify(optax.adamw(1e-3), topology)
    params = {"first": {"kernel": _draw(64, 96)}, "last": {"kernel": _draw(96, 48)}}
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)

    def step(params, opt_state, x):
        def loss(params):
            apply_fn = so.sparse_apply(
                lambda params, x: (
                    jnp.tanh(x @ params["first"]["kernel"]) @ params["last"]["kernel"]
                ),
                by="block",
            )
            return jnp.mean(apply_fn(params, x) ** 2)

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    x = _draw(8, 64)
    expected, _ = jax.jit(step)(params, opt_state, x)
    arguments = (*so.compact_params(params, opt_state), x)
    for shape in ((64, 96), (96, 48)):
        assert not _dense_arrays_in(step, *arguments, shape=shape)
    found = so.dense_params(jax.jit(step)(*arguments)[0])
    for name in params:
        np.testing.assert_allclose(
            found[name]["kernel"], expected[name]["kernel"], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("by", ["block", "dense"])
def test_a_kernel_on_the_left(by):
    params = {"weight": compact(_draw(48, 32), BLOCK, 2)}

    def apply_fn(params, x):
        return jnp.tanh(jax.vmap(lambda x: params["weight"] @ x)(x))

    _assert_same(apply_fn, params, _draw(5, 32), by=by)


def test_attention():
    model = nn.MultiHeadDotProductAttention(4)
    x = _draw(2, 6, 64)
    params = model.init(KEY, x)["params"]
    blocks = {"*out/kernel": (BLOCK, 5), "*/kernel": ((16, 1, 16), 5)}
    params = compacted(params, blocks)
    assert sum(map(is_compact, jax.tree.leaves(params, is_leaf=is_compact))) == 4
    _assert_same(lambda params, x: model.apply({"params": params}, x), params, x)


@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions_of_single_pixels(strides):
    model = nn.Conv(48, (1, 1), strides=strides)
    x = _draw(2, 5, 4, 32)
    params = compacted(model.init(KEY, x)["params"], {"kernel": (BLOCK, 3)})
    _assert_same(lambda params, x: model.apply({"params": params}, x), params, x)


def test_bfloat16_computation_of_float32_parameters():
    model = nn.Dense(48, dtype=jnp.bfloat16)
    x = _draw(4, 32)
    params = compacted(model.init(KEY, x)["params"], {"kernel": (BLOCK, 3)})
    apply_fn = functools.partial(lambda params, x: model.apply({"params": params}, x))
    _assert_same(apply_fn, params, x, rtol=2e-2)


class Block(nn.Module):
    """One of several layers that a loop runs over."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(32)(nn.tanh(nn.Dense(32)(x))), None


@pytest.mark.parametrize("is_rematerialized", [False, True])
def test_loops_over_stacked_layers(is_rematerialized):
    block = nn.remat(Block, prevent_cse=False) if is_rematerialized else Block
    model = nn.scan(
        block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )()
    x = _draw(4, 32)
    params = model.init(KEY, x, None)["params"]
    dims = so.NeuronDims(reduction_axis=(1,), output_axis=(2,))
    params = compacted(params, {"*/kernel": (BLOCK, 2)}, dims)
    _assert_same(
        lambda params, x: model.apply({"params": params}, x, None)[0], params, x
    )


def test_branches_loops_and_compiled_parts():
    params = {"kernel": compact(_draw(32, 32) / 6, BLOCK, 3)}

    def apply_fn(params, x):
        kernel = params["kernel"]
        x = jax.lax.cond(x[0, 0] > 100, lambda k, x: x, lambda k, x: x @ k, kernel, x)
        x = jax.jit(lambda k, x: x @ k.T)(kernel, x)

        def step(x, _):
            return jnp.tanh(x @ kernel), jnp.sum(x)

        x, sums = jax.lax.scan(step, x, None, length=2)
        return jnp.reshape(x, (2, -1, 32)) @ jnp.reshape(kernel, (1, 32, 32))[0], sums

    _assert_same(apply_fn, params, _draw(4, 32))


def test_a_loop_without_gradients():
    params = {"kernel": compact(_draw(32, 32), BLOCK, 3)}

    def apply_fn(params, x):
        def step(carry):
            return carry[0] + 1, jnp.tanh(carry[1] @ params["kernel"])

        return jax.lax.while_loop(lambda carry: carry[0] < 3, step, (0, x))[1]

    x = _draw(4, 32)
    y = so.sparse_apply(apply_fn, by="block")(params, x)
    np.testing.assert_allclose(y, apply_fn(dense(params), x), rtol=1e-5, atol=1e-5)


def test_parameters_are_returned_as_they_came():
    params = {"kernel": compact(_draw(32, 32), BLOCK, 3), "name": "dense"}
    returned = so.sparse_apply(lambda params: (params, None, "text"))(params)
    assert returned[0]["kernel"] is params["kernel"]
    assert returned[0]["name"] == "dense" and returned[1:] == (None, "text")


REFUSED = {
    "passes through mul": lambda k, x: x @ (2 * k),
    "passes through reduce_sum": lambda k, x: x + jnp.sum(k),
    "passes through slice": lambda k, x: x[:, :16] @ k[:16],
    "multiplied with another compact kernel": lambda k, x: x @ (k @ k),
    "reshaped to": lambda k, x: x[:, :16] @ jnp.reshape(k, (16, 64)),
    "function with a custom derivative": lambda k, x: x @ jax.nn.relu(k),
    "carried between the steps": lambda k, x: jax.lax.scan(
        lambda c, _: (jnp.sin(c), None), k, None, length=2
    )[0],
    "returned by a branch or a loop": lambda k, x: jax.lax.cond(
        x[0, 0] > 0, lambda k: k.T, lambda k: k, k
    ),
    "sliced along its first axis": lambda k, x: jax.lax.scan(
        lambda c, row: (c + row, None), x[0], k
    )[0],
    "cast or transposed": lambda k, x: k.T,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_blocks_cannot_give_is_refused(reason):
    params = {"layer": {"kernel": compact(_draw(32, 32), BLOCK, 3)}}
    apply_fn = so.sparse_apply(
        lambda params, x: REFUSED[reason](params["layer"]["kernel"], x)
    )
    with pytest.raises(ValueError, match=reason) as raised:
        jax.eval_shape(apply_fn, params, _draw(4, 32))
    assert "'layer/kernel'" in str(raised.value)


def test_windows_and_groups_are_refused():
    for model, reason in (
        (nn.Conv(32, (3, 3)), "window of 3x3"),
        (nn.Conv(64, (1, 1), feature_group_count=2), "in groups"),
        (nn.Conv(32, (1, 1), padding=1), "padded"),
    ):
        x = _draw(1, 4, 4, 32)
        params = compacted(model.init(KEY, x)["params"], {"kernel": (BLOCK, 2)})
        with pytest.raises(ValueError, match=reason):
            so.sparse_apply(model.apply)({"params": params}, x)


def test_one_leaf_can_be_dense_within_the_step():
    params = {
        "a": {"kernel": compact(_draw(32, 32), BLOCK, 3)},
        "b": {"kernel": compact(_draw(32, 32, seed=2), BLOCK, 3)},
    }

    def apply_fn(params, x):
        return (x @ jnp.tril(params["a"]["kernel"])) @ params["b"]["kernel"]

    x = _draw(4, 32)
    _assert_same(apply_fn, params, x, by={"a/*": "dense"})
    with pytest.raises(ValueError, match=r"by: the pattern .* matches no leaf"):
        so.sparse_apply(apply_fn, by={"c/*": "dense"})(params, x)


def test_what_is_asked_for_is_checked():
    with pytest.raises(TypeError, match="apply_fn must be a function"):
        so.sparse_apply({})  # pyright: ignore
    with pytest.raises(ValueError, match="by must be"):
        so.sparse_apply(jnp.sin, by="fast")  # pyright: ignore
    with pytest.raises(ValueError, match="omit one"):
        so.sparse_apply(jnp.sin, by="dense", measure=True)


def test_seeds_side_by_side():
    kernels = [compact(_draw(32, 32, seed=seed), BLOCK, 3) for seed in range(2)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *kernels)
    x = _draw(4, 32)
    apply_fn = so.sparse_apply(lambda kernel, x: x @ kernel, by="block")
    y = jax.vmap(apply_fn, (0, None))(params, x)
    np.testing.assert_allclose(y, x @ params.dense(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="wrap the call in"):
        apply_fn(params, x)

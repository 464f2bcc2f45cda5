"""Statistics of inputs, compared with NumPy and with the layers' outputs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparseopt_jax as so
from sparseopt_jax.pruning.calibration import Calibration

KEY = jax.random.key(0)


def draw(shape, seed=0):
    # Means differ from zero, so that centring would be noticed.
    return jax.random.normal(jax.random.key(seed), shape) + 0.5


def assert_statistics(inputs, rows):
    """Check all statistics against those of rows (..., samples, fan_in) by NumPy."""
    rows = np.asarray(rows, np.float64)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-4)
    assert float(inputs.count) == rows.shape[-2]
    close(inputs.mean, rows.mean(-2))
    close(inputs.variance, rows.var(-2))
    close(inputs.norm, np.sqrt((rows**2).sum(-2)))
    close(inputs.gram, np.swapaxes(rows, -1, -2) @ rows)
    assert inputs.mean.dtype == inputs.gram.dtype == jnp.float32


def patches(x, window, strides, padding, dilation):
    """Return all patches of NHWC images, each flattened as (height, width, channel)."""
    x = np.pad(np.asarray(x), [(0, 0), *padding, (0, 0)])
    reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    rows = [
        image[i : i + reach[0] : dilation[0], j : j + reach[1] : dilation[1]].ravel()
        for image in x
        for i in range(0, x.shape[1] - reach[0] + 1, strides[0])
        for j in range(0, x.shape[2] - reach[1] + 1, strides[1])
    ]
    return np.stack(rows)


def test_dense_over_several_batches_of_two_shapes():
    x = draw((3, 5, 4)), draw((3, 5, 4), 1), draw((2, 5, 4), 2)
    model = nn.Dense(6)
    variables = model.init(KEY, x[0])
    calls = []

    def apply(variables, x):
        calls.append(x.shape)
        return model.apply(variables, x)

    calibration = so.calibrate(apply, variables, x)
    assert_statistics(calibration["kernel"], jnp.concatenate(x).reshape(-1, 4))
    assert calibration["kernel"].axes == ((), (0,), (1,))
    # Once for each shape of a batch.
    assert calls == [(3, 5, 4), (2, 5, 4)]


@pytest.mark.parametrize(
    ("padding", "strides", "dilation", "amounts"),
    [
        ("VALID", (1, 1), (1, 1), [(0, 0), (0, 0)]),
        ("SAME", (1, 1), (1, 1), [(1, 1), (0, 1)]),
        ("SAME", (2, 1), (1, 1), [(1, 1), (0, 1)]),
        (((2, 0), (1, 3)), (2, 3), (1, 1), [(2, 0), (1, 3)]),
        ("VALID", (1, 2), (2, 3), [(0, 0), (0, 0)]),
    ],
)
def test_convolutions(padding, strides, dilation, amounts):
    x = draw((2, 7, 8, 3))
    model = nn.Conv(
        4, (3, 2), padding=padding, strides=strides, kernel_dilation=dilation
    )
    variables = model.init(KEY, x)
    calibration = so.calibrate(model.apply, variables, [x])
    expected = patches(x, (3, 2), strides, amounts, dilation)
    assert_statistics(calibration["kernel"], expected)
    assert calibration["kernel"].axes == ((), (0, 1, 2), (3,))


def test_grouped_and_depthwise_convolutions_have_inputs_for_each_group():
    x = draw((2, 5, 5, 6))
    for groups in (3, 6):
        model = nn.Conv(12, (3, 3), padding="VALID", feature_group_count=groups)
        variables = model.init(KEY, x)
        inputs = so.calibrate(model.apply, variables, [x])["kernel"]
        per_group = [
            patches(part, (3, 3), (1, 1), [(0, 0), (0, 0)], (1, 1))
            for part in np.split(np.asarray(x), groups, -1)
        ]
        assert_statistics(inputs, np.stack(per_group))
        assert inputs.groups == groups and inputs.mean.shape == (groups, 54 // groups)
        kernel = variables["params"]["kernel"]
        matrices = inputs.matrices(kernel)
        assert matrices.shape == (groups, 54 // groups, 12 // groups)
        np.testing.assert_array_equal(inputs.from_matrices(matrices), kernel)
        out = model.apply(variables, x).reshape(-1, groups, 12 // groups)
        by_hand = np.einsum("gnf,gfo->ngo", np.stack(per_group), matrices)
        np.testing.assert_allclose(out, by_hand, rtol=1e-4, atol=1e-5)
        spread = np.asarray(inputs.per_weight(inputs.norm)) * np.ones(kernel.shape)
        np.testing.assert_array_equal(
            inputs.matrices(spread), inputs.norm[..., None] * np.ones(matrices.shape)
        )


def test_one_dimension_and_transposed_convolutions():
    x = draw((2, 9, 3))
    for layer in (nn.Conv, nn.ConvTranspose):
        model = layer(4, (3,), strides=(2,), use_bias=False)
        variables = model.init(KEY, x)
        inputs = so.calibrate(model.apply, variables, [x])["kernel"]
        assert_gives_outputs(
            inputs,
            variables["params"]["kernel"],
            model.apply(variables, x).reshape(1, -1, 4),
        )


def assert_gives_outputs(inputs, kernel, outputs):
    """Check mean and Gram matrix by outputs of shape (sets, samples, neurons)."""
    w, outputs = np.asarray(inputs.matrices(kernel)), np.asarray(outputs)
    assert float(inputs.count) == outputs.shape[1]
    mean, gram = inputs.flat(inputs.mean), inputs.flat(inputs.gram, 2)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    close(np.einsum("sf,sfn->sn", mean, w), outputs.mean(1))
    close(
        np.einsum("sfn,sfg,sgm->snm", w, gram, w),
        np.einsum("sin,sim->snm", outputs, outputs),
    )


def test_attention_sums_over_what_it_does_not_name():
    x = draw((2, 5, 8))
    model = nn.MultiHeadDotProductAttention(2, qkv_features=6, use_bias=False)
    variables = model.init(KEY, x)
    calibration = so.calibrate(model.apply, variables, [x])
    _, kept = model.apply(variables, x, capture_intermediates=True)
    params = variables["params"]
    for name in ("query", "key", "value", "out"):
        (outputs,) = kept["intermediates"][name]["__call__"]
        inputs = calibration[f"{name}/kernel"]
        neurons = 8 if name == "out" else 6
        assert_gives_outputs(
            inputs, params[name]["kernel"], outputs.reshape(1, -1, neurons)
        )
    assert calibration["query/kernel"].axes == ((), (0,), (1, 2))
    assert calibration["out/kernel"].axes == ((), (0, 1), (2,))
    assert_statistics(calibration["key/kernel"], x.reshape(-1, 8))


@pytest.mark.parametrize(
    ("subscripts", "shape"),
    [
        ("bi,io->bo", (4, 6)),
        ("bi,oi->bo", (6, 4)),
        ("bi,hoi->bho", (2, 3, 4)),
        ("bi,hio->bho", (2, 4, 3)),
    ],
)
def test_einsum_in_any_order_of_axes(subscripts, shape):
    x, params = draw((7, 4)), {"w": draw(shape, 1).astype(jnp.bfloat16)}

    def apply(params, x):
        return jnp.einsum(subscripts, x, params["w"].astype(jnp.float32))

    calibration = so.calibrate(apply, params, [x])
    assert_statistics(calibration["w"], x)
    outputs = apply(params, x).reshape(1, 7, -1)
    w = params["w"].astype(jnp.float32)
    assert_gives_outputs(calibration["w"], w, outputs)


def test_reshaped_and_broadcast_kernels():
    x, params = draw((7, 6)), {"w": draw((6, 2, 5), 1), "v": draw((2, 3, 4), 2)}

    def apply(params, x):
        flat = x @ params["w"].reshape(6, 10)
        # Merged, transposed, repeated for every sample.
        v = jnp.broadcast_to(params["v"].reshape(6, 4).T, (7, 4, 6))
        return flat, jnp.einsum("bi,boi->bo", x, v)

    calibration = so.calibrate(apply, params, [x])
    flat, out = apply(params, x)
    assert_gives_outputs(calibration["w"], params["w"], flat[None])
    assert_gives_outputs(calibration["v"], params["v"], out[None])
    assert calibration["v"].axes == ((), (0, 1), (2,))
    assert_statistics(calibration["w"], x)


def test_stacked_layers_under_vmap_and_scan():
    x = draw((3, 7, 4))
    params = {"dense": draw((3, 4, 5), 1), "conv": draw((3, 2, 4, 6), 2)}

    def vmapped(params, x):
        conv = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(1,),
            padding="VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        dense = jax.vmap(jnp.dot)(x, params["dense"])
        return dense, jax.vmap(lambda x, w: conv(x[None], w)[0])(x, params["conv"])

    def scanned(params, x):
        def layer(carry, scanned):
            x, w = scanned
            return carry, (x @ w["dense"], jnp.zeros(()))

        return jax.lax.scan(jax.checkpoint(layer), 0.0, (x, params))[1]

    dense, conv = vmapped(params, x)
    calibration = so.calibrate(vmapped, params, [x])
    assert_gives_outputs(calibration["dense"], params["dense"], dense)
    assert_gives_outputs(calibration["conv"], params["conv"], conv)
    assert_statistics(calibration["dense"], x)
    assert calibration["conv"].axes == ((0,), (1, 2), (3,))
    in_loop = so.calibrate(scanned, params, [x])
    assert_statistics(in_loop["dense"], x)
    assert in_loop.undecided == {"conv": "not used by apply_fn"}


def test_linen_scan_over_layers_and_recurrent_cells():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(4, use_bias=False)(x)), x

    x = draw((6, 4))
    model = nn.scan(
        nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}
    )()
    none = jnp.zeros(3)
    variables = model.init(KEY, x, none)
    inputs = so.calibrate(model.apply, variables, [(x, none)])["Dense_0/kernel"]
    _, carries = model.apply(variables, x, none)
    assert_statistics(inputs, carries)
    assert inputs.axes == ((0,), (1,), (2,))

    sequence = draw((2, 5, 3))
    rnn = nn.RNN(nn.SimpleCell(4))
    variables = rnn.init(KEY, sequence)
    calibration = so.calibrate(rnn.apply, variables, [sequence])
    hidden = rnn.apply(variables, sequence)
    before = jnp.concatenate([jnp.zeros((2, 1, 4)), hidden[:, :-1]], 1)
    assert_statistics(calibration["cell/i/kernel"], sequence.reshape(-1, 3))
    assert_statistics(calibration["cell/h/kernel"], before.reshape(-1, 4))


def test_nested_loops_put_stack_axes_in_order():
    x, params = draw((5, 4)), {"w": draw((2, 3, 4, 6), 1)}

    def apply(params, x):
        def outer(carry, w):
            scale, w = w

            def inner(carry, w):
                return carry, (x * carry) @ w

            return carry, jax.lax.scan(inner, scale, w)[1]

        # The outer loop runs along the second axis, the inner one along the first.
        stacked = jnp.swapaxes(params["w"], 0, 1)
        return jax.lax.scan(outer, 0.0, (jnp.array([1.0, 2.0, 3.0]), stacked))[1]

    inputs = so.calibrate(apply, params, [x])["w"]
    one = [[scale * x for scale in (1, 2, 3)]]
    assert_statistics(inputs, np.asarray(one * 2))
    assert inputs.axes == ((0, 1), (2,), (3,))


def test_shared_kernels_add_up():
    x, params = draw((5, 4)), {"w": draw((4, 4), 1)}

    def apply(params, x):
        return jnp.tanh(x @ params["w"]) @ params["w"]

    inputs = so.calibrate(apply, params, [x])["w"]
    both = jnp.concatenate([x, jnp.tanh(x @ params["w"])])
    assert_statistics(inputs, both)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.heads = nnx.LinearGeneral(4, (2, 3), rngs=rngs)

    def __call__(self, x):
        return self.heads(self.drop(nnx.relu(self.norm(self.conv(x)))))


def test_nnx():
    model = Net(nnx.Rngs(0))
    model.eval()
    graphdef, state = nnx.split(model)
    x = draw((2, 5, 5, 3))
    calibration = so.calibrate(lambda s, x: nnx.merge(graphdef, s)(x), state, [x, x])
    assert list(calibration) == ["conv/kernel", "heads/kernel"]
    rows = patches(x, (3, 3), (1, 1), [(0, 0), (0, 0)], (1, 1))
    assert_statistics(calibration["conv/kernel"], np.concatenate([rows, rows]))
    hidden = nnx.relu(model.norm(model.conv(x))).reshape(-1, 4)
    assert_statistics(calibration["heads/kernel"], jnp.concatenate([hidden, hidden]))
    assert calibration["heads/kernel"].axes == ((), (0,), (1, 2))


def test_half_precision_is_summed_in_single():
    x = draw((512, 3)).astype(jnp.bfloat16)
    params = {"w": jnp.ones((3, 2), jnp.bfloat16)}
    inputs = so.calibrate(lambda p, x: x @ p["w"], params, [x])["w"]
    assert_statistics(inputs, x.astype(jnp.float32))


def test_variance_survives_a_large_mean():
    x = 1e4 + draw((4096, 2))
    params = {"w": jnp.ones((2, 2))}
    halves = jnp.split(x, 2)
    inputs = so.calibrate(lambda p, x: x @ p["w"], params, halves, gram=False)["w"]
    expected = np.asarray(x, np.float64).var(0)
    np.testing.assert_allclose(inputs.variance, expected, rtol=1e-2)
    assert inputs.gram is None


def test_what_cannot_be_followed_is_named():
    x = draw((5, 4))
    shapes = {"good": (4, 3), "scaled": (4, 3), "cut": (4, 6), "looped": (4, 4)}
    shapes |= {"chosen": (4, 3), "left": (4, 4), "right": (4, 4), "unused": (2, 2)}
    params = {name: draw(shape, 1) for name, shape in shapes.items()}
    params |= {"bias": jnp.ones((1, 3)), "table": jnp.ones((9, 4))}

    def apply(p, x):
        def step(_, x):
            return jnp.tanh(x @ p["looped"])

        loop = jax.lax.while_loop(lambda x: x.sum() > 1e9, lambda x: step(0, x), x)
        chosen = jax.lax.cond(
            x.sum() > 0, lambda w: x @ w, lambda w: -x @ w, p["chosen"]
        )
        product = x @ (p["left"] @ p["right"])
        half = x @ p["cut"][:, :3]
        return (
            x @ p["good"] + p["bias"] + x @ (p["scaled"] * 2) + half + chosen,
            loop + product + p["table"][jnp.arange(5)],
        )

    calibration = so.calibrate(apply, params, [x])
    assert list(calibration) == ["good"]
    assert calibration.undecided == {
        "chosen": "goes into cond",
        "cut": "passes through slice",
        "left": "multiplied with another kernel",
        "looped": "goes into while",
        "right": "multiplied with another kernel",
        "scaled": "passes through mul",
        "table": calibration.undecided["table"],
        "unused": "not used by apply_fn",
    }
    with pytest.raises(KeyError, match=r"through mul; statistics exist for good"):
        calibration["scaled"]


def test_a_kernel_with_uses_out_of_sight_has_no_statistics():
    x, params = draw((5, 4)), {"w": draw((4, 4), 1)}

    def apply(p, x):
        return jax.lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: x, p["w"]) @ p["w"]

    with pytest.raises(ValueError, match=r"no kernel multiplies .*w: goes into cond"):
        so.calibrate(apply, params, [x])


def test_empty_batches_and_loops_without_steps_add_nothing():
    x, params = draw((5, 4)), {"w": draw((4, 3), 1), "v": draw((4, 3), 2)}

    def apply(p, x, steps):
        product = x @ p["v"]
        return product, jax.lax.scan(lambda c, x: (c, x @ p["w"]), 0.0, steps)[1]

    empty, steps = (x[:0], jnp.ones((0, 5, 4))), x[None]
    calibration = so.calibrate(apply, params, [empty, (x, steps), empty])
    assert_statistics(calibration["v"], x)
    assert_statistics(calibration["w"], x)
    nothing = so.calibrate(apply, params, [empty])["w"]
    assert float(nothing.count) == float(nothing.norm.max()) == 0.0


def test_squares_that_overflow_are_infinite():
    x = draw((5, 4)).at[0, 2].set(3e20)
    norm = so.calibrate(lambda p, x: x @ p["w"], {"w": draw((4, 3))}, [x, x])["w"].norm
    np.testing.assert_array_equal(np.isinf(norm), [False, False, True, False])


def scaled(p, x):
    return (x * 100) @ (p["w"] * 0.5)


def sliced(p, x):
    return x @ p["w"][:, :2]


def chosen(p, x):
    return jnp.where(x.sum() > 0, p["w"], 0.0) @ x.T


def by_entries(p, x):
    return (x[:, :, None] * p["w"]).sum(1)


def sorted_rows(p, x):
    return jnp.sort(p["w"])


def on_the_host(p, x):
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.dot, like, x, 2 * p["w"])


def in_branch(p, x):
    return jax.lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: x, 2 * p["w"])


def by_expert(p, x):
    return x[0] @ jnp.take(p["w"], x[0].astype(int), 0)


def with_a_kernel(p, x):
    return x @ ((2 * p["w"]) @ p["v"])


def in_loop(p, x):
    def step(w, _):
        return w, (x @ w, w.sum())

    return jax.lax.scan(step, jnp.tanh(p["w"]), None, length=2)


def from_step_to_step(p, x):
    def step(carry, _):
        matrix, number = carry
        return (jnp.eye(4) * number, p["w"].sum()), x @ matrix

    return jax.lax.scan(step, (jnp.eye(4), 0.0), None, length=3)[1]


UNSEEN = [scaled, sliced, chosen, by_entries, sorted_rows, on_the_host, in_branch]
UNSEEN += [by_expert, with_a_kernel, in_loop, from_step_to_step]


@pytest.mark.parametrize("use", UNSEEN, ids=lambda use: use.__name__)
def test_a_kernel_with_another_use_out_of_sight_has_no_statistics(use):
    x, params = draw((4, 4)), {name: draw((4, 4), 1) for name in "wuv"}

    def apply(p, x):
        return x @ p["w"], x @ p["u"], use(p, x)

    calibration = so.calibrate(apply, params, [x], gram=False)
    assert list(calibration) == ["u"]
    assert calibration.undecided["w"] != "not used by apply_fn"


def test_uses_that_multiply_no_inputs_leave_the_statistics_complete():
    """Penalties, which may cross a loop, and a table that is also a kernel."""
    ids, params = jnp.arange(5) % 4, {name: draw((4, 4), 1) for name in "wuv"}

    def penalty(total, w):
        return total + jnp.square(w).sum(), None

    def apply(p, ids):
        looked_up = jax.nn.relu(p["w"][ids] * 2.0)
        # Queries that are learned, as rows of the same table.
        queries = jnp.take(p["w"], jnp.arange(3), 0) @ p["u"]
        logits = looked_up @ p["v"] @ p["w"].T, queries
        total = jax.lax.scan(penalty, 0.0, p["w"])[0] + jnp.abs(p["v"]).max()
        return logits, total

    calibration = so.calibrate(apply, params, [ids], gram=False)
    assert calibration.undecided == {}
    looked_up = jax.nn.relu(params["w"][ids] * 2.0)
    rows_of = {"v": looked_up, "w": looked_up @ params["v"], "u": params["w"][:3]}
    for name, rows in rows_of.items():
        np.testing.assert_allclose(calibration[name].mean, rows.mean(0), rtol=1e-5)


def test_used_in_ways_that_differ():
    x, params = draw((5, 4)), {"w": draw((4, 4), 1), "v": draw((4, 4), 1)}

    def apply(p, x):
        return x @ p["w"] + x @ p["w"].T + x @ p["v"]

    calibration = so.calibrate(apply, params, [x])
    assert calibration.undecided == {"w": "used in several different ways"}


def test_options():
    model = nn.Sequential([nn.Dense(4), nn.Dropout(0.5), nn.Dense(2)])

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))
            return nn.Dense(2)(x)

    model, x = Model(), draw((5, 3))
    variables = model.init(KEY, x, train=False)
    calibration = so.calibrate(
        model.apply,
        variables,
        iter([x]),
        train=False,
        gram=False,
        where=lambda path, leaf: path == "Dense_0/kernel",
    )
    assert list(calibration) == ["Dense_0/kernel"]
    assert calibration["Dense_0/kernel"].gram is None


def test_the_result_is_a_pytree():
    x, params = draw((5, 4)), {"w": draw((4, 4), 1), "unused": jnp.ones((2, 2))}
    calibration = so.calibrate(lambda p, x: x @ p["w"], params, [x])
    doubled = jax.jit(lambda c: jax.tree.map(lambda leaf: 2 * leaf, c))(calibration)
    assert isinstance(doubled, Calibration)
    assert doubled.undecided == calibration.undecided
    np.testing.assert_array_equal(doubled["w"].gram, 2 * calibration["w"].gram)
    assert doubled["w"].axes == calibration["w"].axes


def test_what_it_refuses():
    x, params = draw((5, 4)), {"w": draw((4, 4), 1)}

    def apply(params, x):
        return x @ params["w"]

    with pytest.raises(TypeError, match=r"iterable of batches, got an array of shape"):
        so.calibrate(apply, params, x)
    with pytest.raises(ValueError, match="at least one batch"):
        so.calibrate(apply, params, [])
    with pytest.raises(ValueError, match="model's arrays"):
        so.calibrate(apply, {}, [x])

    def fickle(params, x):
        return x @ params["w"] if len(x) == 5 else x @ params["v"]

    with pytest.raises(ValueError, match="same kernels, got v after w"):
        so.calibrate(fickle, params | {"v": params["w"]}, [x, x[:3]])

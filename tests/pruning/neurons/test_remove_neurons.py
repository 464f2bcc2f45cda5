"""Dead neurons are removed, outputs stay, and anything unproven is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so


def arrays(seed, **shapes):
    """Return normal numbers in these shapes."""
    draw = np.random.default_rng(seed)
    return {
        name: jnp.asarray(draw.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def without(params, name, entries, axis=-1):
    """Return the same with some slices of an array set to zero."""
    array = np.array(params[name])
    np.moveaxis(array, axis, 0)[entries] = 0.0
    return {**params, name: jnp.asarray(array)}


def mlp(params, x, activation=jax.nn.relu):
    hidden = activation(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def mlp_params(inputs=3, hidden=6, outputs=2):
    return arrays(
        0, w1=(inputs, hidden), b1=(hidden,), w2=(hidden, outputs), b2=(outputs,)
    )


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def removed(apply_fn, params, *args, **options):
    """Return the smaller parameters and the report, after comparing outputs again."""
    small, report = so.remove_neurons(apply_fn, params, *args, **options)
    for now, before in zip(
        jax.tree.leaves(jax.jit(apply_fn)(small, *args)),
        jax.tree.leaves(jax.jit(apply_fn)(params, *args)),
        strict=True,
    ):
        np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-5)
    return small, report


def reason(apply_fn, params, *args, name="w1"):
    """Return why a kernel with dead neurons is not changed."""
    small, report = so.remove_neurons(apply_fn, params, *args)
    (layer,) = (layer for layer in report.layers if layer.path == name)
    assert layer.neurons_left == layer.neurons
    assert shapes(small) == shapes(params)
    return layer.why


def test_a_constant_goes_into_the_next_bias():
    params = {
        "w1": jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]]),
        "b1": jnp.array([0.5, 3.0, -0.5]),
        "w2": jnp.array([[1.0, 2.0], [10.0, 20.0], [5.0, 6.0]]),
        "b2": jnp.array([1.0, 2.0]),
    }
    small, report = so.remove_neurons(mlp, params, jnp.ones((1, 2)))
    np.testing.assert_array_equal(small["w1"], [[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(small["b1"], [0.5, -0.5])
    np.testing.assert_array_equal(small["w2"], [[1.0, 2.0], [5.0, 6.0]])
    np.testing.assert_array_equal(small["b2"], [31.0, 62.0])  # 1 + 3 * 10, 2 + 3 * 20
    assert report.widths == {"w1": 2, "w2": 2}
    assert (report.parameters, report.parameters_left) == (17, 12)
    assert (report.flops, report.flops_left) == (24, 16)
    assert report.verified == "Outputs of the smaller model agree for the given inputs."
    # The output of the activation counts: relu(-0.5) is 0.
    negative = {**params, "b1": -params["b1"]}
    small, _ = so.remove_neurons(mlp, negative, jnp.ones((1, 2)))
    np.testing.assert_array_equal(small["b2"], [1.0, 2.0])


def test_a_neuron_that_nothing_reads_goes_and_what_feeds_it_alone():
    """Backwards through two layers, in one call."""

    def deep(params, x):
        x = jnp.tanh(x @ params["w0"])
        return jnp.tanh(x @ params["w1"]) @ params["w2"]

    params = arrays(0, w0=(3, 4), w1=(4, 5), w2=(5, 2))
    params = without(params, "w2", [1], axis=0)
    w1 = np.array(params["w1"])
    w1[2] = [0, 7.0, 0, 0, 0]  # neuron 2 of the first layer feeds only neuron 1
    small, report = removed(deep, {**params, "w1": jnp.asarray(w1)}, jnp.ones((2, 3)))
    assert shapes(small) == {"w0": (3, 3), "w1": (3, 4), "w2": (4, 2)}
    assert report.layers[0].why == ""


def test_the_layers_behind_a_dead_neuron_are_dead_too():
    def deep(params, x):
        x = jax.nn.relu(x @ params["w1"] + params["b1"])
        x = jax.nn.sigmoid(x @ params["w2"] + params["b2"])
        return x @ params["w3"] + params["b3"]

    params = arrays(0, w1=(3, 4), b1=(4,), w2=(4, 5), b2=(5,), w3=(5, 2), b3=(2,))
    params = without(params, "w1", [0, 3])
    w2 = np.array(params["w2"])
    w2[[1, 2], 4] = 0.0  # reads only neurons 0 and 3
    small, _ = removed(deep, {**params, "w2": jnp.asarray(w2)}, jnp.ones((2, 3)))
    assert shapes(small)["w2"] == (2, 4)
    assert shapes(small)["w3"] == (4, 2)


def test_without_a_bias_only_constants_of_zero_go():
    def unbiased(params, x):
        return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]

    params = without(mlp_params(), "w1", [0, 1, 4])
    params = {**params, "b1": jnp.array([-1.0, 2.0, 1.0, 1.0, -3.0, 1.0])}
    del params["b2"]
    _, report = removed(unbiased, params, jnp.ones((2, 3)))
    assert report.layers[0].neurons_left == 4
    assert report.layers[0].why == (
        "1 of them emit constants other than 0, but no bias of its own follows w2"
    )


def test_a_bias_that_is_used_twice_takes_nothing_over():
    def twice(params, x):
        return mlp(params, x) * params["b2"]

    params = without(mlp_params(), "w1", [1])
    assert "no bias of its own" in reason(twice, params, jnp.ones((2, 3)))


def test_what_comes_between_a_product_and_its_bias_counts():
    def scaled(params, x):
        return 2.0 * (jnp.tanh(x @ params["w1"] + 1.0) @ params["w2"]) + params["b2"]

    params = without(mlp_params(), "w1", [1])
    del params["b1"]
    assert "no bias of its own" in reason(scaled, params, jnp.ones((2, 3)))


def test_a_layer_keeps_some_neurons():
    params = without(mlp_params(), "w1", slice(None))
    small, report = removed(mlp, params, jnp.ones((2, 3)))
    assert shapes(small)["w1"] == (3, 1)
    assert report.layers[0].why == "min_neurons=1: a layer may not be empty"
    small, _ = removed(mlp, params, jnp.ones((2, 3)), min_neurons=4)
    assert shapes(small)["w1"] == (3, 4)
    small, _ = removed(mlp, params, jnp.ones((2, 3)), min_neurons=99)
    assert shapes(small) == shapes(params)


def test_a_dense_model_stays_what_it_is():
    params = mlp_params()
    small, report = removed(mlp, params, jnp.ones((2, 3)))
    assert all(small[name] is params[name] for name in params)
    assert [layer.why for layer in report.layers] == [
        "none is dead",
        "outputs of the model",
    ]
    assert report.verified == ""  # there is nothing to compare


def test_gates_are_cut_together():
    """A gated unit is dead if either factor is always 0."""

    def gated(params, x):
        return (jax.nn.silu(x @ params["gate"]) * (x @ params["up"])) @ params["down"]

    params = arrays(0, gate=(3, 6), up=(3, 6), down=(6, 3))
    params = without(without(params, "gate", [1, 2]), "up", [2, 5])
    small, report = removed(gated, params, jnp.ones((2, 4, 3)))
    assert shapes(small) == {"gate": (3, 3), "up": (3, 3), "down": (3, 3)}
    assert report.flops_left * 2 == report.flops == 2 * 8 * 3 * 18


def conv(x, kernel, padding="SAME", groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def convolutions(params, x, padding="SAME"):
    x = jax.nn.relu(conv(x, params["w1"]) + params["b1"])
    x = conv(x, params["w2"], padding) + params["b2"]
    return jnp.tanh(x).mean((1, 2))


IMAGE = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 5, 2)), jnp.float32)


def convolution_params():
    params = arrays(0, w1=(3, 3, 2, 6), b1=(6,), w2=(3, 3, 6, 2), b2=(2,))
    params = without(params, "w1", [0, 1, 2])
    return {**params, "b1": jnp.array([-1.0, 2.0, -1.0, 1.0, 1.0, 1.0])}


def test_padded_convolutions_keep_constants_other_than_zero():
    with jax.numpy_dtype_promotion("strict"):
        small, report = removed(convolutions, convolution_params(), IMAGE)
    assert shapes(small)["w1"] == (3, 3, 2, 4)
    assert report.layers[0].why == (
        "1 of them emit constants other than 0, but w2 pads with zeros, and they "
        "would be missing at its border"
    )
    valid = functools.partial(convolutions, padding="VALID")
    small, report = removed(valid, convolution_params(), IMAGE)
    assert shapes(small)["w1"] == (3, 3, 2, 3)
    assert shapes(small)["w2"] == (3, 3, 3, 2)
    assert report.layers[0].why == ""
    # 25 places of the first, 9 of the second.
    assert report.flops == 2 * 2 * (25 * 9 * 2 * 6 + 9 * 9 * 6 * 2)


@pytest.mark.parametrize("pool", ["max", pytest.param("mean", marks=pytest.mark.slow)])
def test_flattened_channels_take_their_rows_along(pool):
    def net(params, x):
        x = jax.nn.relu(conv(x, params["w1"], "VALID") + params["b1"])
        if pool == "max":
            x = jax.lax.reduce_window(
                x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME"
            )
        else:
            x = x.mean(1)
        return x.reshape(2, -1) @ params["w2"] + params["b2"]

    places = 9 if pool == "max" else 3
    params = arrays(0, w1=(3, 3, 2, 4), b1=(4,), w2=(4 * places, 2), b2=(2,))
    params = without(params, "w1", [0, 2])
    small, _ = removed(net, {**params, "b1": jnp.ones(4)}, IMAGE)
    assert shapes(small)["w2"] == (2 * places, 2)
    rows = np.reshape(params["w2"], (places, 4, 2))
    np.testing.assert_array_equal(
        np.reshape(small["w2"], (places, 2, 2)), rows[:, [1, 3]]
    )


def test_pooling_that_counts_the_border_keeps_constants():
    def net(params, x):
        x = conv(x, params["w1"]) + params["b1"]
        x = jax.lax.reduce_window(
            x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
        )
        return x.mean((1, 2)) @ params["w2"] + params["b2"]

    params = arrays(0, w1=(3, 3, 2, 4), b1=(4,), w2=(4, 2), b2=(2,))
    params = without(params, "w1", [0, 1])
    params = {**params, "b1": jnp.array([0.0, 1.0, 1.0, 1.0])}
    small, _ = removed(net, params, IMAGE)
    assert shapes(small)["w1"] == (3, 3, 2, 3)


def test_a_scale_of_zero_is_a_dead_channel():
    def net(params, x):
        x = conv(x, params["w1"])
        scale = params["scale"] / jnp.sqrt(params["var"] + 1e-5)
        x = jax.nn.relu((x - params["mean"]) * scale + params["bias"])
        return x.mean((1, 2)) @ params["w2"] + params["b2"]

    params = arrays(0, w1=(3, 3, 2, 4), mean=(4,), bias=(4,), w2=(4, 2), b2=(2,))
    params |= {"scale": jnp.array([0.0, 1.0, 0.0, 1.0]), "var": jnp.ones(4)}
    small, report = removed(net, params, IMAGE)
    assert {name: len(small[name]) for name in ("scale", "mean", "var", "bias")} == {
        "scale": 2,
        "mean": 2,
        "var": 2,
        "bias": 2,
    }
    assert report.widths == {"w1": 2, "w2": 2}


def test_a_running_mean_takes_the_place_of_a_bias():
    def net(params, x):
        x = jax.nn.sigmoid(conv(x, params["w1"]))
        x = conv(x, params["w2"]) - params["mean"]
        return x.mean((1, 2))

    params = arrays(0, w1=(3, 3, 2, 4), w2=(1, 1, 4, 2), mean=(2,))
    params = without(params, "w1", [1, 2])
    small, _ = removed(net, params, IMAGE)
    kernel = np.asarray(params["w2"])[0, 0]
    expected = params["mean"] - 0.5 * (kernel[1] + kernel[2])
    np.testing.assert_allclose(small["mean"], expected, rtol=1e-6)


def residual(params, x):
    hidden = jax.nn.relu(x @ params["w1"])
    return (hidden + x @ params["w3"]) @ params["w2"]


def to_inputs(params, x):
    return (jax.nn.relu(x @ params["w1"]) + x[..., :1] * jnp.ones(6)) @ params["w2"]


def layer_norm(params, x):
    hidden = x @ params["w1"]
    hidden = hidden - hidden.mean(-1, keepdims=True)
    return hidden @ params["w2"]


def rms_norm(params, x):
    hidden = x @ params["w1"]
    return hidden / jnp.sqrt(jnp.square(hidden).mean(-1, keepdims=True)) @ params["w2"]


def group_norm(params, x):
    hidden = (x @ params["w1"]).reshape(*x.shape[:-1], 3, 2)
    hidden = hidden / jnp.abs(hidden).max(-1, keepdims=True)
    return hidden.reshape(*x.shape[:-1], 6) @ params["w2"]


def softmax(params, x):
    return jax.nn.softmax(x @ params["w1"]) @ params["w2"]


def concatenated(params, x):
    hidden = jnp.concatenate([x @ params["w1"], x @ params["w3"]], -1)
    return hidden[..., :6] @ params["w2"]


def split(params, x):
    one, other = jnp.split(x @ params["w1"], 2, -1)
    return one * jax.nn.sigmoid(other) @ params["w2"][:3]


def attention(params, x):
    queries = x @ params["w1"]
    return jnp.einsum("...td,...sd->...ts", queries, x @ params["w3"])


def values(params, x):
    weights = jax.nn.softmax(jnp.einsum("...td,...sd->...ts", x, x))
    return jnp.einsum("...ts,...sd->...td", weights, x @ params["w1"])


def shared(params, x):
    first, second = (jax.nn.relu(y @ params["w1"]) for y in (x, x + 1))
    return first @ params["w2"], second @ params["w2"]


def scanned(params, x):
    def step(carry, w):
        return jnp.tanh(carry @ w), None

    hidden, _ = jax.lax.scan(step, x @ params["w1"], params["w4"])
    return hidden @ params["w2"]


def branched(params, x):
    return jax.lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, x @ params["w1"]) @ params["w2"]


def returned(params, x):
    hidden = x @ params["w1"]
    return hidden @ params["w2"], hidden


def ordered(params, x):
    return jnp.sort(x @ params["w1"]) @ params["w2"]


def accumulated(params, x):
    return jnp.cumsum(x @ params["w1"], -1) @ params["w2"]


def positioned(params, x):
    return (x @ params["w1"] + jnp.arange(6.0)) @ params["w2"]


def fixed_matrix(params, x):
    return (x @ params["w1"]) @ jnp.ones((6, 2)) + params["w2"][0]


def penalised(params, x):
    return x @ params["w1"] @ params["w2"] + jnp.linalg.norm(params["w2"])


def weight_normalised(params, x):
    kernel = params["w2"] / jnp.linalg.norm(params["w2"], axis=0)
    return x @ params["w1"] @ kernel


def reversed_features(params, x):
    return (x @ params["w1"])[..., ::-1] @ params["w2"]


def padded_features(params, x):
    hidden = jnp.pad(x @ params["w1"], ((0, 0), (0, 0), (1, 0)))
    return hidden[..., 1:] @ params["w2"]


def stacked(params, x):
    hidden = jnp.tanh(x @ params["w1"]).reshape(4, 3, 6)
    return jnp.einsum("bth,thj->btj", hidden, params["w4"][:3])


def slow_channels(params, x):
    hidden = jnp.swapaxes(x @ params["w1"], -1, -2)
    return hidden.reshape(4, -1) @ jnp.tile(params["w2"], (3, 1))


def two_axes(params, x):
    hidden = jnp.einsum("btc,ch,cd->bthd", x, params["w1"], params["w3"])
    return jnp.einsum("bthd,hdj->btj", hidden, params["w4"])


REFUSALS = {
    residual: "added to another branch",
    to_inputs: "added to another branch",
    layer_norm: "reduce_sum runs over them",
    rms_norm: "reduce_sum runs over them",
    group_norm: "split by a reshape",
    softmax: "reduce_max runs over them",
    concatenated: "concatenated with other features",
    split: "cut into parts",
    attention: "multiplied with other activations",
    values: "outputs of the model",
    shared: "w1 is used 2 times",
    scanned: "goes into scan",
    branched: "goes into cond",
    returned: "outputs of the model",
    ordered: "goes into sort",
    accumulated: "goes into cumsum",
    positioned: "combined with an array that has no such neurons",
    fixed_matrix: "summed over by weights that are all the same",
    penalised: "reduce_sum runs over them",
    weight_normalised: "reduce_sum runs over them",
    reversed_features: "reversed",
    padded_features: "padded",
    stacked: "a stack of separate layers",
    slow_channels: "flattened with an axis that varies faster",
}


@pytest.mark.parametrize("apply_fn", REFUSALS, ids=lambda f: f.__name__)
def test_what_mixes_neurons_is_refused_by_name(apply_fn):
    params = arrays(0, w1=(4, 6), w2=(6, 2), w3=(4, 6), w4=(6, 6, 6))
    params = without(params, "w1", [1, 4])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 4)), jnp.float32)
    assert REFUSALS[apply_fn] in reason(apply_fn, params, x)


def test_grouped_convolutions_are_refused():
    def depthwise(params, x):
        x = conv(x, params["w1"])
        return conv(x, params["w2"], groups=6).mean((1, 2))

    params = arrays(0, w1=(3, 3, 2, 6), w2=(3, 3, 1, 6))
    params = without(params, "w1", [1])
    assert reason(depthwise, params, IMAGE) == "a grouped convolution"


def test_kernels_in_loops_are_named():
    def net(params, x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["w4"])[0]

    params = arrays(0, w1=(4, 4), w4=(2, 4, 4))
    _, report = so.remove_neurons(
        lambda p, x: net(p, x) @ p["w1"], params, jnp.ones((2, 4))
    )
    found = {layer.path: layer.why for layer in report.layers}
    assert found["w4"] == "goes into scan"


def test_a_product_of_kernels_is_cut_as_one():
    """A low-rank update of a kernel: its own axes shrink, its rank stays."""

    def lora(params, x):
        kernel = params["w2"] + params["a"] @ params["b"]
        return jax.nn.relu(x @ params["w1"] + params["b1"]) @ kernel + params["b2"]

    params = without(mlp_params() | arrays(1, a=(6, 2), b=(2, 2)), "w1", [0, 3])
    small, _ = removed(lora, params, jnp.ones((2, 3)))
    assert shapes(small)["w2"] == (4, 2)
    assert shapes(small)["a"] == (4, 2)
    assert shapes(small)["b"] == (2, 2)


ACTIVATIONS = (jax.nn.relu, jax.nn.gelu, jax.nn.silu, jnp.tanh, jax.nn.softplus)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_random_chains_stay_what_they_are(seed):
    draw = np.random.default_rng(seed)
    widths = [3, *draw.integers(4, 12, size=3), 2]
    params = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layer = arrays(
            seed + number, w=(inputs, outputs), b=(outputs,), mean=(outputs,)
        )
        if number < 3:
            layer = without(layer, "w", draw.permutation(outputs)[: outputs // 2])
        if number > 0:
            gone = draw.permutation(inputs)[:1]
            layer = without(layer, "w", gone, axis=0)
        params[f"layer_{number}"] = layer
    kinds = [ACTIVATIONS[i] for i in draw.integers(len(ACTIVATIONS), size=3)]

    def chain(params, x):
        for number, layer in enumerate(params.values()):
            x = x @ layer["w"] + layer["b"] - 0.5 * layer["mean"]
            x = kinds[number](x) if number < 3 else x
        return x

    x = jnp.asarray(draw.normal(size=(5, 3)), jnp.float32)
    _, report = removed(chain, params, x)
    wanted = [layer.neurons - layer.neurons // 2 for layer in report.layers[:-1]]
    for layer, most in zip(report.layers, wanted, strict=False):
        assert 1 <= layer.neurons_left <= most


def test_bfloat16_parameters_keep_their_type_and_doubles_are_accepted():
    params = without(mlp_params(), "w1", [0, 1])
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    with jax.numpy_dtype_promotion("strict"):
        small, _ = so.remove_neurons(mlp, params, jnp.ones((2, 3), jnp.bfloat16))
    assert {x.dtype for x in small.values()} == {jnp.dtype(jnp.bfloat16)}
    assert small["b2"].shape == (2,)
    doubles = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    small, _ = so.remove_neurons(mlp, doubles, jnp.ones((2, 3)))
    assert shapes(small)["w1"] == (3, 4)


def test_numpy_arrays_stay():
    draw = np.random.default_rng(0)
    params = {
        "w1": draw.normal(size=(3, 6)),
        "b1": np.ones(6),
        "w2": draw.normal(size=(6, 2)),
        "b2": np.ones(2) / 3,
    }
    params["w1"][:, :2] = 0
    small, _ = so.remove_neurons(mlp, params, np.ones((2, 3), np.float32))
    for leaf in small.values():
        assert isinstance(leaf, np.ndarray) and leaf.dtype == np.float64
    np.testing.assert_array_equal(small["w1"], params["w1"][:, 2:])
    np.testing.assert_allclose(small["b2"], 1 / 3 + params["w2"][:2].sum(0), rtol=1e-6)


def test_shapes_of_inputs_are_enough():
    params = without(mlp_params(), "w1", [0, 1])
    x = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    small, report = so.remove_neurons(mlp, params, x)
    assert shapes(small)["w1"] == (3, 4)
    assert report.verified == ""


def test_numbers_made_of_widths_are_found_out():
    def averaged(params, x):
        hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
        return hidden @ params["w2"] / hidden.shape[-1] + params["b2"]

    params = without(mlp_params(), "w2", [0, 1], axis=0)
    with pytest.raises(ValueError, match="no numbers from the widths of layers"):
        so.remove_neurons(averaged, params, jnp.ones((2, 3)))
    small, report = so.remove_neurons(averaged, params, jnp.ones((2, 3)), verify=False)
    assert shapes(small)["w1"] == (3, 4)
    assert report.verified == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_constants_that_depend_on_the_position_are_not_folded(dtype):
    """Even where the positions are neighbours in a small type."""

    def net(params, x):
        return jax.nn.relu(x @ params["w1"] + params["table"]) @ params["w2"] + 1.0

    eps = float(jnp.finfo(dtype).eps)
    table = np.ones((8, 3))
    table[:, 1] += np.arange(8) * (eps if eps > 1e-6 else 32 * eps)
    params = without(arrays(0, w1=(4, 3), w2=(3, 1)), "w1", [1])
    params = {**params, "table": jnp.asarray(table)}
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    assert "none is dead" in reason(net, params, jnp.ones((2, 8, 4), dtype))


POOLS = {
    "sum": lambda x: x.sum(1),
    "half of the sum": lambda x: x.sum(1) / 2,
    "softmax": lambda x: jax.nn.softmax(x, 1).max(1),
    "mean": lambda x: x.mean(1),
    "mean by a factor": lambda x: jnp.sum(x, 1) * (1 / x.shape[1]),
    "max": lambda x: x.max(1),
}


@pytest.mark.parametrize("pool", POOLS)
def test_constants_that_depend_on_the_number_of_positions_are_not_folded(pool):
    def net(params, x):
        hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
        return POOLS[pool](hidden) @ params["w2"] + params["b2"]

    params = without(mlp_params(), "w1", [1, 4])
    params = {**params, "b1": jnp.array([1.0, 2.0, 1.0, 1.0, -1.0, 1.0])}
    small, _ = removed(net, params, jnp.ones((2, 5, 3)))
    # relu(-1) is 0, and the sum of zeros for any number of positions.
    left = {"sum": 5, "half of the sum": 5, "softmax": 6}.get(pool, 4)
    assert shapes(small)["w1"] == (3, left)
    longer = jnp.ones((2, 7, 3))
    np.testing.assert_allclose(net(small, longer), net(params, longer), rtol=1e-5)


POSITIONS = {
    "slice": lambda params, length: params["table"][:length],
    "dynamic_slice": lambda params, length: jax.lax.dynamic_slice_in_dim(
        params["table"], 0, length
    ),
    "iota": lambda params, length: jnp.arange(float(length))[:, None] * params["b1"],
}


@pytest.mark.parametrize("table", POSITIONS)
def test_one_position_says_nothing_about_the_others(table):
    def net(params, x):
        hidden = x @ params["w1"] + POSITIONS[table](params, x.shape[1])
        return jax.nn.relu(hidden) @ params["w2"] + params["b2"]

    params = without(mlp_params() | arrays(1, table=(8, 6)), "w1", [1, 4])
    small, report = removed(net, params, jnp.ones((2, 1, 3)))
    assert shapes(small) == shapes(params)
    assert report.layers[0].why == "none is dead"


def test_a_layer_of_a_stack_of_biases_is_the_same_at_all_positions():
    def net(params, x):
        hidden = jax.nn.relu(x @ params["w1"] + params["table"][1])
        return hidden @ params["w2"] + params["b2"]

    params = without(mlp_params() | arrays(1, table=(3, 6)), "w1", [1, 4])
    small, _ = removed(net, params, jnp.ones((2, 1, 3)))
    assert shapes(small)["w1"] == (3, 4)


def test_errors_that_exceed_the_rounding_of_small_types_are_found():
    def net(params, x):
        return mlp(params, x) * (1 + params["w1"].shape[1] / 100)

    params = without(mlp_params(), "w1", [1, 2, 3, 4])
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    with pytest.raises(ValueError, match=r"differ by 4\.3e-02 of the largest"):
        so.remove_neurons(net, params, jnp.ones((2, 3), jnp.bfloat16))


def test_integers_and_bools_must_be_equal():
    def is_large(params, x):
        hidden = jax.nn.relu(x @ params["w1"])
        return (hidden @ params["w2"] / hidden.shape[-1] > 5.0), jax.random.key(0)

    params = {
        "w1": jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]]),
        "w2": jnp.array([[1.0, -1.0], [1.0, 1.0], [1.0, 2.0]]),
    }
    x = jnp.array([[1.0, 2.0], [2.0, 1.0]])
    for dtype in (bool, jnp.int32):
        with pytest.raises(ValueError, match="integers and bools must be equal"):
            so.remove_neurons(
                lambda p, x, d=dtype: is_large(p, x)[0].astype(d), params, x
            )

    def sign(params, x):
        large, key = is_large(params, x)
        return large & False, key

    _, report = so.remove_neurons(sign, params, x)
    assert report.widths["w1"] == 2 and "agree" in report.verified


def test_agreement_is_claimed_only_of_numbers():
    params = without(mlp_params(), "w1", [1])
    for number in (jnp.nan, ()):

        def net(params, x, number=number):
            product = mlp(params, x)
            return product * number if number else product[:0]

        _, report = so.remove_neurons(net, params, jnp.ones((2, 3)))
        assert report.widths["w1"] == 5 and report.verified == ""


def test_a_conversion_to_integers_comes_between_a_product_and_its_bias():
    def rounded(params, x):
        product = jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]
        return product.astype(jnp.int32) + params["b2"]

    def of_integers(params, x):
        product = jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]
        return product + params["b2"].astype(jnp.float32)

    params = without(mlp_params(), "w1", [1])
    params |= {"b1": jnp.full(6, 0.5), "b2": jnp.zeros(2, jnp.int32)}
    for net in (rounded, of_integers):
        small, report = so.remove_neurons(net, params, jnp.ones((2, 3)), verify=False)
        assert shapes(small) == shapes(params)
        assert "no bias of its own follows w2" in report.layers[0].why


def test_bad_arguments():
    params, x = mlp_params(), jnp.ones((2, 3))
    with pytest.raises(TypeError, match="apply_fn must be a function"):
        so.remove_neurons(params, mlp, x)
    with pytest.raises(ValueError, match="min_neurons must be at least 1, got 0"):
        so.remove_neurons(mlp, params, x, min_neurons=0)
    with pytest.raises(TypeError, match="'b1' has only a shape"):
        so.remove_neurons(mlp, jax.eval_shape(lambda: params), x)
    with pytest.raises(TypeError, match="remove_neurons reads values"):
        jax.jit(lambda p: so.remove_neurons(mlp, p, x)[0])(params)
    with pytest.raises(ValueError, match="no kernel multiplies any inputs"):
        so.remove_neurons(lambda p, x: x + p["b1"][0], params, x)

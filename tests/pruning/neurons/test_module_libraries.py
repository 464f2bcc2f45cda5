"""Models of every library: the smaller variables belong to a narrower model."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparseopt_jax as so

IMAGE = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 5, 4)), jnp.float32)


def random_like(tree, seed=0):
    """Return normal kernels and positive vectors, variances among them."""
    draw = np.random.default_rng(seed)

    def fill(x):
        values = draw.normal(size=x.shape)
        values = np.abs(values) + 0.1 if len(x.shape) == 1 else 0.4 * values
        return jnp.asarray(values, x.dtype)

    return jax.tree.map(fill, tree)


def without_neurons(params, neurons, *modules):
    """Return kernels of modules with some outputs set to zero."""
    params = dict(params)
    for module in modules:
        first, *rest = module.split("/")
        if rest:
            params[first] = without_neurons(params[first], neurons, "/".join(rest))
        else:
            kernel = params[first]["kernel"].at[..., np.array(neurons)].set(0.0)
            params[first] = {**params[first], "kernel": kernel}
    return params


def dead(model, inputs, neurons, *modules):
    """Return random variables of a linen model with dead neurons."""
    variables = random_like(jax.eval_shape(model.init, jax.random.key(0), inputs))
    params = without_neurons(variables["params"], neurons, *modules)
    return {**variables, "params": params}


def assert_same(narrow, small, model, variables, x):
    """Check that the outputs of both models agree."""
    outputs, others = jax.jit(narrow)(small, x), jax.jit(model)(variables, x)
    np.testing.assert_allclose(outputs, others, rtol=1e-4, atol=1e-4)


class Perceptron(nn.Module):
    widths: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(width)(x))
            x = nn.gelu(x)
        return nn.Dense(3)(x)


def test_linen_dense_layers_with_batch_norm():
    x = jnp.ones((2, 4))
    model = Perceptron((8, 6))
    variables = dead(model, x, [1, 3, 5], "Dense_0", "Dense_1")
    small, report = so.remove_neurons(model.apply, variables, x)
    widths = report.widths["Dense_0/kernel"], report.widths["Dense_1/kernel"]
    assert widths == (5, 3)
    assert small["batch_stats"]["BatchNorm_1"]["var"].shape == (3,)
    narrow = Perceptron(widths)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(
        jnp.shape, jax.eval_shape(narrow.init, jax.random.key(0), x)
    )
    assert_same(narrow.apply, small, model.apply, variables, x)
    assert "old shapes; apply_fn does not accept the smaller ones: Scope" in str(report)
    # The output is far off if a constant is dropped instead of folded.
    bare = jax.tree.map(jnp.zeros_like, variables["params"]["Dense_2"]["bias"])
    assert not np.allclose(bare, small["params"]["Dense_2"]["bias"], atol=0.1)


class Block(nn.Module):
    """A bottleneck of a residual network, with its inner channels."""

    inner: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        y = x
        for width, window in zip(self.inner, (3, 1), strict=True):
            y = nn.Conv(width, (window, window), use_bias=False)(y)
            y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.Conv(x.shape[-1], (1, 1), use_bias=False)(y)
        return nn.relu(x + nn.BatchNorm(use_running_average=True)(y))


class ResNet(nn.Module):
    inner: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, x):
        for widths in self.inner:
            x = Block(widths)(x)
        return nn.Dense(2)(x.mean((1, 2)))


def test_linen_residual_blocks_lose_inner_channels():
    model = ResNet(((6, 6), (6, 6)))
    blocks = ("Block_0/Conv_0", "Block_0/Conv_1", "Block_1/Conv_1", "Block_1/Conv_2")
    variables = dead(model, IMAGE, [0, 3], *blocks)
    small, report = so.remove_neurons(model.apply, variables, IMAGE)
    inner = tuple(
        tuple(report.widths[f"Block_{b}/Conv_{c}/kernel"] for c in (0, 1))
        for b in (0, 1)
    )
    assert inner == ((4, 4), (6, 4))
    reasons = {layer.path: layer.why for layer in report.layers}
    assert "residual stream" in reasons["Block_1/Conv_2/kernel"]
    narrow = ResNet(inner)
    assert_same(narrow.apply, small, model.apply, variables, IMAGE)


class Transformer(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(y, y)
        y = nn.RMSNorm()(x)
        y = nn.silu(nn.Dense(self.hidden)(y)) * nn.Dense(self.hidden, use_bias=False)(y)
        x = x + nn.Dense(x.shape[-1], use_bias=False)(y)
        return nn.Dense(3)(nn.LayerNorm()(x))


def test_linen_gated_mlp_of_a_transformer():
    x = IMAGE[:, 0]
    model = Transformer(8)
    attention = "MultiHeadDotProductAttention_0"
    modules = ("Dense_1", "Dense_2", f"{attention}/value", f"{attention}/query")
    variables = dead(model, x, [1], *modules)
    small, report = so.remove_neurons(model.apply, variables, x)
    widths = report.widths
    assert widths["Dense_0/kernel"] == widths["Dense_1/kernel"] == 7
    whys = {layer.path: layer.why for layer in report.layers}
    assert "as in attention" in whys[f"{attention}/query/kernel"]
    assert whys[f"{attention}/value/kernel"]
    assert "residual stream" in whys["Dense_2/kernel"]
    assert_same(Transformer(7).apply, small, model.apply, variables, x)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 6, (3, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(54, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(x.reshape(x.shape[0], -1))


def test_nnx_modules_take_the_smaller_state():
    model = Network(nnx.Rngs(0))
    model.conv.kernel[...] = model.conv.kernel[...].at[..., jnp.array([1, 4])].set(0.0)
    model.norm.bias[...] = jnp.ones(6)
    outputs = model(IMAGE)
    graph, state = nnx.split(model)

    def apply_fn(state, x):
        return nnx.merge(graph, state)(x)

    small, report = so.remove_neurons(apply_fn, state, IMAGE)
    assert report.verified == "Outputs of the smaller model agree for the given inputs."
    assert jax.tree.structure(small) == jax.tree.structure(state)
    nnx.update(model, small)
    assert model.head.kernel[...].shape == (36, 3)
    assert model.norm.mean[...].shape == (4,)
    np.testing.assert_allclose(model(IMAGE), outputs, rtol=1e-4, atol=1e-4)


def test_equinox_modules_take_the_smaller_arrays():
    model = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    weight = model.layers[1].weight.at[jnp.array([0, 5])].set(0.0)
    model = eqx.tree_at(lambda m: m.layers[1].weight, model, weight)
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)

    def apply_fn(arrays, x):
        return jax.vmap(eqx.combine(arrays, rest))(x)

    x = IMAGE[0, 0]
    small, report = so.remove_neurons(apply_fn, arrays, x)
    assert small.layers[1].weight.shape == (6, 8)
    assert small.layers[2].weight.shape == (3, 6)
    assert_same(apply_fn, small, apply_fn, arrays, x)
    assert report.verified.startswith("Outputs of the smaller model")


def test_haiku_functions_are_built_again():
    def net(width):
        return hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([width, 3])(x)))

    x = IMAGE[0, 0]
    params = random_like(jax.eval_shape(net(8).init, jax.random.key(0), x))
    first, *_ = params
    params[first]["w"] = params[first]["w"].at[:, 2].set(0.0)
    small, report = so.remove_neurons(net(8).apply, params, x)
    assert report.widths[f"{first}/w"] == 7
    assert_same(net(7).apply, small, net(8).apply, params, x)


def test_boxes_keep_the_names_of_their_axes():
    class Boxed(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
            x = nn.relu(nn.Dense(self.width, kernel_init=init)(x))
            return nn.Dense(2)(x)

    x = jnp.ones((1, 3))
    variables = Boxed(6).init(jax.random.key(0), x)
    box = variables["params"]["Dense_0"]["kernel"]
    zeroed = box.replace_boxed(box.unbox().at[:, :2].set(0.0))
    variables["params"]["Dense_0"]["kernel"] = zeroed
    small, _ = so.remove_neurons(Boxed(6).apply, variables, x)
    assert small["params"]["Dense_0"]["kernel"].names == (None, "model")
    assert small["params"]["Dense_0"]["kernel"].unbox().shape == (3, 4)
    assert_same(Boxed(4).apply, small, Boxed(6).apply, variables, x)


@pytest.mark.parametrize("train", [False, True])
def test_returned_statistics_keep_their_size(train):
    """Batch statistics among the outputs keep the size of their layer."""
    model = nn.Sequential([nn.Dense(6), nn.BatchNorm(), nn.relu, nn.Dense(2)])

    def apply_fn(variables, x):
        x = model.layers[0].apply({"params": variables["params"]["a"]}, x)
        norm = {"params": variables["params"]["b"], "batch_stats": variables["stats"]}
        x, stats = model.layers[1].apply(
            norm, x, use_running_average=not train, mutable=["batch_stats"]
        )
        head = {"params": variables["params"]["c"]}
        return model.layers[3].apply(head, nn.relu(x)), stats

    x = jnp.ones((2, 3))
    draw = np.random.default_rng(0)
    kernel = jnp.asarray(draw.normal(size=(3, 6)), jnp.float32).at[:, 0].set(0.0)
    vector = jnp.ones(6)
    variables = {
        "params": {
            "a": {"kernel": kernel, "bias": vector},
            "b": {"scale": vector, "bias": vector},
            "c": {"kernel": jnp.ones((6, 2)), "bias": jnp.ones(2)},
        },
        "stats": {"mean": vector, "var": vector},
    }
    small, report = so.remove_neurons(apply_fn, variables, x)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, variables)
    assert report.layers[0].why == "outputs of the model"

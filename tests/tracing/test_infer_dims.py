"""The axes of kernels, inferred from models of all kinds."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import sparseopt_jax as so

KEY = jax.random.key(0)
DENSE, TRANSPOSED = so.NeuronDims(0, 1), so.NeuronDims(1, 0)
QUERY, OUT = so.NeuronDims(0, (1, 2)), so.NeuronDims((0, 1), 2)
STACK = so.NeuronDims(1, 2)
FLAX_ATTENTION = {
    "key/kernel": QUERY,
    "out/kernel": OUT,
    "query/kernel": QUERY,
    "value/kernel": QUERY,
}


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


X = array(2, 8, 64)


def of_linen(module, *args, **kwargs):
    variables = jax.eval_shape(module.init, KEY, *args)
    return so.infer_dims(module.apply, variables, *args, **kwargs)


def of_nnx(make, *args):
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return so.infer_dims(lambda state, x: nnx.merge(graphdef, state)(x), state, *args)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(4, use_bias=False, name="attn")(
            nn.LayerNorm()(x)
        )
        return x + nn.Dense(64)(nn.relu(nn.Dense(128)(x))), None


class Scanned(nn.Module):
    axis: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.scan(
            nn.remat(Block) if self.remat else Block,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        return block(name="layers")(x, None)[0]


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiHeadDotProductAttention(4),
        nn.MultiHeadDotProductAttention(1, use_bias=False),
    ],
)
def test_the_default_of_linen_attention_is_that_of_the_model(module):
    dims = of_linen(module, X)
    assert dict(dims) == FLAX_ATTENTION and not dims.undecided
    assert_default(dims, jax.eval_shape(module.init, KEY, X)["params"])


def test_the_default_of_nnx_attention_is_that_of_the_model():
    def make():
        return nnx.MultiHeadAttention(4, 64, decode=False, rngs=nnx.Rngs(0))

    assert dict(of_nnx(make, X)) == FLAX_ATTENTION
    params = nnx.state(nnx.eval_shape(make), nnx.Param)
    assert_default(of_nnx(make, X), params)


def assert_default(dims, params):
    """Check that the convention agrees with the inferred axes."""
    inferred, default = (so.static(0.5, dims=dims) for dims in (dims, None))
    assert [plan.axes for plan in inferred.leaves(params) if plan.layer] == [
        plan.axes for plan in default.leaves(params) if plan.layer
    ]
    assert not so.plan(params, default, dims=dims).disagreements


@pytest.mark.parametrize(
    ("module", "x", "dims"),
    [
        (nn.DenseGeneral((3, 4, 16)), X, so.NeuronDims(0, (1, 2, 3))),
        (nn.DenseGeneral(64, axis=(-2, -1)), array(2, 4, 16), OUT),
        (nn.DenseGeneral(16, batch_dims=(0,)), array(3, 8, 4), STACK),
        (nn.Conv(8, (3, 3)), array(1, 8, 8, 4), so.NeuronDims((0, 1, 2), 3)),
        (
            nn.Conv(8, (3, 3), feature_group_count=4),
            array(1, 8, 8, 4),
            so.NeuronDims((0, 1, 2), 3),
        ),
        (
            nn.ConvTranspose(8, (3, 3), transpose_kernel=True),
            array(1, 8, 8, 4),
            so.NeuronDims((0, 1, 3), 2),
        ),
        (nn.ConvLocal(8, (3, 3)), array(1, 8, 8, 4), so.NeuronDims(2, 3)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_single_linen_modules(module, x, dims):
    assert of_linen(module, x)["kernel"] == dims


@pytest.mark.parametrize("remat", [False, True])
def test_layers_of_a_scan_are_a_stack_along_either_axis(remat):
    dims = of_linen(Scanned(remat=remat), X)
    assert dims["layers/Dense_0/kernel"] == STACK
    assert dims["layers/attn/query/kernel"] == so.NeuronDims(1, (2, 3))
    assert dims["layers/attn/out/kernel"] == so.NeuronDims((1, 2), 3)
    dims = of_linen(Scanned(1, remat), X)
    assert dims["layers/Dense_0/kernel"] == so.NeuronDims(0, 2)
    assert dims["layers/attn/query/kernel"] == so.NeuronDims(0, (2, 3))
    assert dims["layers/attn/out/kernel"] == so.NeuronDims((0, 2), 3)


def test_experts_are_a_stack_even_if_some_inputs_are_shared():
    def model(params, x):
        gates = jax.nn.softmax(x @ params["router"])
        routed = jnp.einsum("bte,btd->ebtd", gates, x)
        hidden = jnp.einsum("ebtd,edf->ebtf", routed, params["in"])
        hidden += jnp.einsum("btd,edf->ebtf", x, params["in"])
        return jnp.einsum("ebtf,efd->ebtd", hidden, params["out"])

    params = {
        "router": array(64, 4),
        "in": array(4, 64, 128),
        "out": array(4, 128, 64),
    }
    expected = {"in": STACK, "out": STACK, "router": DENSE}
    assert dict(so.infer_dims(model, params, X)) == expected

    def ragged(params, x, sizes):
        return jax.lax.ragged_dot(x, params["in"], sizes)

    sizes = array(4, dtype=jnp.int32)
    experts = {"in": params["in"]}
    assert so.infer_dims(ragged, experts, array(16, 64), sizes)["in"] == STACK


def test_tied_embeddings_and_tables_of_positions():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(100, 64)
            table = self.param("table", nn.initializers.normal(), (1, 8, 64))
            return embed.attend(nn.Dense(64)(embed(tokens) + table))

    dims = of_linen(Tied(), array(2, 8, dtype=jnp.int32))
    assert dict(dims) == {"Embed_0/embedding": TRANSPOSED, "Dense_0/kernel": DENSE}
    assert dims.undecided == {"table": "passes through add"}


def test_kernels_that_are_normalised_masked_or_quantised_before_they_multiply():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.SpectralNorm(nn.Dense(32))(x, update_stats=True)
            return nn.WeightNorm(nn.Dense(16))(x)

    dims = of_linen(Normalised(), X, mutable=["batch_stats"])
    assert dict(dims) == {"Dense_0/kernel": DENSE, "Dense_1/kernel": DENSE}

    def quantised(params, x):
        scale = jnp.max(jnp.abs(params["w"]), 0, keepdims=True)
        kernel = jnp.round(params["w"] / scale) * scale
        return x @ jnp.where(kernel > 0, kernel, 0)

    assert so.infer_dims(quantised, {"w": array(64, 32)}, X)["w"] == DENSE

    def low_rank(params, x):
        return x @ (params["w"] + params["a"] @ params["b"])

    params = {"w": array(64, 32), "a": array(64, 4), "b": array(4, 32)}
    dims = so.infer_dims(low_rank, params, X)
    assert dict(dims) == {"w": DENSE} and set(dims.undecided) == {"a", "b"}


def test_layers_taken_out_of_a_stack_and_parts_of_a_fused_kernel():
    def unrolled(params, x):
        for layer in range(3):
            x = x @ params["w"][layer]
        query, key, value = jnp.split(params["qkv"], 3, -1)
        return (x @ query) * (x @ key) + x @ value

    params = {"w": array(3, 64, 64), "qkv": array(64, 192)}
    assert dict(so.infer_dims(unrolled, params, X)) == {"qkv": DENSE, "w": STACK}

    def loop(params, x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ params["w"][i]), x)

    assert so.infer_dims(loop, params, X)["w"] == STACK

    def branches(params, x):
        one, other = (lambda x, kernel=kernel: x @ kernel for kernel in params["w"][:2])
        return jax.lax.cond(x.sum() > 0, one, other, x)

    assert so.infer_dims(branches, params, X)["w"] == STACK


def test_kernels_inside_shard_map():
    auto = jax.sharding.AxisType.Auto
    mesh = jax.sharding.AbstractMesh((2,), ("a",), axis_types=(auto,))
    columns = PartitionSpec(None, "a")

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(columns, PartitionSpec()),
        out_specs=columns,
    )
    def product(w, x):
        return x @ w

    dims = so.infer_dims(
        lambda params, x: product(params["w"], x), {"w": array(64, 32)}, array(16, 64)
    )
    assert dims["w"] == DENSE


def test_equinox_has_outputs_first():
    attention = eqx.nn.MultiheadAttention(4, 64, key=KEY)
    dims = so.infer_dims(
        lambda model, x: jax.vmap(model)(x, x, x), attention, array(2, 8, 64)
    )
    names = ("query", "key", "value", "output")
    assert dict(dims) == {f"{name}_proj/weight": TRANSPOSED for name in names}

    keys = jax.random.split(KEY, 3)
    network = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, 3, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(288, 10, key=keys[1]),
        ]
    )
    images = array(2, 3, 8, 8)
    dims = so.infer_dims(lambda model, x: jax.vmap(model)(x), network, images)
    assert dict(dims) == {
        "layers/0/weight": so.NeuronDims((1, 2, 3), 0),
        "layers/3/weight": TRANSPOSED,
    }
    # The paths are those of the trained leaves.
    params, static = eqx.partition(network, eqx.is_inexact_array)
    assert dims == so.infer_dims(
        lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, images
    )
    state = so.sparsify(optax.sgd(0.1), so.static(0.5, dims=dims)).init(params)
    assert state.topology_state.fan_ins.layers[3].weight.shape == (10, 1)


def test_haiku():
    network = hk.transform(
        lambda x: hk.Sequential([hk.Conv2D(8, 3), hk.Flatten(), hk.Linear(4)])(x)
    )
    images = array(1, 8, 8, 3)
    params = jax.eval_shape(network.init, KEY, images)
    assert dict(so.infer_dims(network.apply, params, None, images)) == {
        "conv2_d/w": so.NeuronDims((0, 1, 2), 3),
        "linear/w": DENSE,
    }


def test_paths_are_exact_and_boxes_have_no_part_in_them():
    def product(params, x):
        return x @ params["a[0]"]["w"] + x @ params["*"]["w"].T

    params = {"a[0]": {"w": array(64, 32)}, "*": {"w": array(32, 64)}}
    dims = so.infer_dims(product, params, X)
    assert dims["a[0]/w"] == DENSE and dims["*/w"] == TRANSPOSED
    plans = so.static(0.5, dims=dims).leaves(params)
    assert [plan.axes.output for plan in plans] == [(0,), (1,)]

    boxed = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
    assert dict(of_linen(nn.Dense(8, kernel_init=boxed), X)) == {"kernel": DENSE}


def test_nothing_is_computed_and_arguments_of_all_kinds_are_passed():
    def model(params, x, scale, *, mask, train):
        assert train is True and scale == 2 and isinstance(x, jax.core.Tracer)
        return jnp.where(mask, x * scale, 0) @ params["w"]

    dims = so.infer_dims(
        model, {"w": array(64, 32)}, X, 2, mask=array(64, dtype=bool), train=True
    )
    assert dims["w"] == DENSE
    # An array too large for any memory: only its shape is read.
    assert so.infer_dims(lambda w, x: x @ w, array(2**20, 2**20), array(1, 2**20))


def test_what_cannot_be_told_has_a_reason():
    def model(params, x):
        pooled = jnp.sort(params["sorted"], 0)
        both = (x @ params["both"]) @ params["both"].T
        return both @ pooled @ params["w"]

    names = ("sorted", "both", "w", "spare")
    params = {name: array(64, 64) for name in names}
    dims = so.infer_dims(model, params, X)
    assert dict(dims) == {"w": DENSE}
    assert dims.undecided == {
        "both": "used in several ways: it sums over axes (0,), and over (1,)",
        "sorted": "passes through sort",
        "spare": "not used by apply_fn",
    }
    with pytest.raises(ValueError, match=r"no kernel multiplies any inputs \(w: not"):
        so.infer_dims(lambda params, x: x, {"w": params["w"]}, X)
    with pytest.raises(ValueError, match="variables must hold the model's arrays"):
        so.infer_dims(lambda params, x: x, {}, X)


def test_dims_go_wherever_a_topology_goes():
    variables = jax.jit(Scanned().init)(KEY, jnp.ones(X.shape))
    params = variables["params"]
    dims = so.infer_dims(Scanned().apply, variables, X)
    topology = so.static(0.9, dims=dims)
    assert topology == so.static(0.9, dims=so.infer_dims(Scanned().apply, variables, X))
    tx = so.sparsify(so.scale_by_sparseopt(), topology)
    state = jax.jit(tx.init)(params)
    params = so.apply_masks(params, state)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = jax.jit(tx.update)(grads, state, params)
    fan_ins = state.topology_state.fan_ins["layers"]["attn"]["query"]["kernel"]
    assert fan_ins.shape == (3, 1, 4, 16)
    update = updates["layers"]["Dense_0"]["kernel"]
    mask = so.get_masks(state)["layers"]["Dense_0"]["kernel"]
    counts = np.asarray(mask).sum(1, keepdims=True)
    factors = np.sqrt(counts / counts.mean(2, keepdims=True))
    np.testing.assert_allclose(update, np.where(mask, factors, 0), rtol=1e-5)
    numbers = so.metrics(params, state, dims=dims)
    np.testing.assert_allclose(numbers["density"], 0.1, atol=1e-3)
    layers = {
        layer.path: layer for layer in so.summary(params, state, dims=dims).layers
    }
    assert layers["layers/Dense_0/kernel"].copies == 3
    with pytest.raises(ValueError, match="dims were inferred for other parameters"):
        so.static(0.5, dims=dims).leaves({"other": jnp.ones((4, 4))})

"""Modules of Haiku, Equinox, Flax linen and NNX, and how each leaf is treated.

The same network four times, with the special features of each library.
"""

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

import sparseopt_jax as so
from sparseopt_jax.layers.eligibility import decay_mask

KEY = jax.random.key(0)
X = jnp.ones((2, 8, 8, 3))


def sparse_paths(params, topology=None, **options):
    topology = topology or so.static(0.5, distribution={}, **options)
    return {leaf.path for leaf in topology.leaves(params) if leaf.layer}


def reasons(params):
    leaves = so.static(0.5, distribution={}).leaves(params)
    return {leaf.path: leaf.why_dense for leaf in leaves}


@functools.cache
def linen_network():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3), name="conv")(x)
            x = nn.BatchNorm(use_running_average=True, name="norm")(x)
            x = nn.Conv(8, (1, 1), name="pointwise")(x).reshape(len(x), -1, 8)
            cls = self.param("cls", nn.initializers.zeros, (1, 1, 8))
            x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], 1)
            x = x + self.param("pos", nn.initializers.zeros, (1, 65, 8))
            x = nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x))
            x = x + nn.Embed(10, 8, name="tokens")(jnp.arange(65) % 10)
            return nn.Dense(1, name="value")(x)

    return jax.jit(Network().init)(KEY, X)["params"]


@functools.cache
def nnx_network():
    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.pointwise = nnx.Conv(8, 8, (1, 1), rngs=rngs)
            self.cls = nnx.Param(jnp.zeros((1, 1, 8)))
            self.pos = nnx.Param(jnp.zeros((1, 65, 8)))
            self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
            self.LayerNorm_0 = nnx.LayerNorm(8, rngs=rngs)
            self.tokens = nnx.Embed(10, 8, rngs=rngs)
            self.value = nnx.Linear(8, 1, rngs=rngs)

    return nnx.state(Network(), nnx.Param)


@functools.cache
def haiku_network():
    def forward(x):
        x = hk.Conv2D(8, 3, name="conv")(x)
        x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=True)
        x = hk.Conv2D(8, 1, name="pointwise")(x).reshape(len(x), -1, 8)
        x = x + hk.get_parameter("pos", (1, 64, 8), init=jnp.zeros)
        x = hk.LayerNorm(-1, True, True)(x)
        x = hk.MultiHeadAttention(
            2, 4, model_size=8, w_init=hk.initializers.Constant(1)
        )(x, x, x)
        x = x + hk.Embed(10, 8, name="tokens")(jnp.arange(64) % 10)
        return hk.Linear(1, name="value")(hk.Bias(bias_dims=[-1])(x))

    return jax.jit(hk.transform_with_state(forward).init)(KEY, X)[0]


class Network(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    pointwise: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    cls: jax.Array
    pos: jax.Array
    attention: eqx.nn.MultiheadAttention
    tokens: eqx.nn.Embedding
    cell: eqx.nn.GRUCell
    embed: eqx.nn.Linear
    mlp: eqx.nn.MLP
    stack: eqx.nn.Linear
    scales: eqx.nn.RMSNorm
    value: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    option: None = None
    name: str = "network"
    steps: int = 3

    def __init__(self):
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=KEY)
        self.norm = eqx.nn.LayerNorm((8, 8))
        self.pointwise = eqx.nn.Conv2d(8, 1, 1, use_bias=False, key=KEY)
        self.depthwise = eqx.nn.Conv2d(8, 8, 1, groups=8, key=KEY)
        self.cls = jnp.zeros((1, 1, 8))
        self.pos = jnp.zeros((65, 8))
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=KEY)
        self.tokens = eqx.nn.Embedding(10, 8, key=KEY)
        self.cell = eqx.nn.GRUCell(8, 8, key=KEY)
        self.embed = eqx.nn.Linear(8, 8, use_bias=False, key=KEY)
        self.mlp = eqx.nn.MLP(8, 8, 8, 1, key=KEY)
        self.stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, key=key))(
            jax.random.split(KEY, 4)
        )
        self.scales = eqx.filter_vmap(
            lambda _: eqx.nn.RMSNorm(8, use_bias=False), axis_size=4
        )(None)
        self.value = eqx.nn.Linear(8, 1, key=KEY)
        self.dropout = eqx.nn.Dropout()


@functools.cache
def equinox_network():
    return eqx.filter(Network(), eqx.is_inexact_array)


ATTENTION = {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")}
FLAX = {"conv/kernel", "pointwise/kernel", "value/kernel"} | ATTENTION
LIBRARIES = {
    "linen": (linen_network, FLAX),
    "nnx": (nnx_network, FLAX),
    "haiku": (
        haiku_network,
        {"conv/w", "pointwise/w", "value/w"}
        | {
            f"multi_head_attention/{name}/w"
            for name in ("query", "key", "value", "linear")
        },
    ),
    "equinox": (
        equinox_network,
        {
            *("conv/weight", "pointwise/weight", "depthwise/weight", "value/weight"),
            *(
                f"attention/{name}_proj/weight"
                for name in ("query", "key", "value", "output")
            ),
            *("cell/weight_ih", "cell/weight_hh", "embed/weight", "stack/weight"),
            *("mlp/layers/0/weight", "mlp/layers/1/weight"),
        },
    ),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_kernels_alone_are_sparse(library):
    build, kernels = LIBRARIES[library]
    params = build()
    assert sparse_paths(params) == kernels
    state = so.sparsify(optax.sgd(0.1), so.static(0.5, distribution={})).init(params)
    masks = so.get_masks(state)
    assert len(jax.tree.leaves(masks)) == len(kernels)
    pruned = so.prune(params, sparsity=0.5)
    assert len(jax.tree.leaves(pruned.masks)) == len(kernels)
    thresholds = so.str_().init(params)
    assert len(jax.tree.leaves(thresholds)) == len(kernels)


@pytest.mark.parametrize("library", LIBRARIES)
def test_reasons_name_what_a_leaf_is(library):
    found = reasons(LIBRARIES[library][0]())
    tokens = "embeddings" if library == "haiku" else "embedding"
    tokens = "weight" if library == "equinox" else tokens
    assert found[f"tokens/{tokens}"] == "embedding"
    assert found["pos"] == "position table" if "pos" in found else library == "haiku"
    if "cls" in found:
        assert found["cls"] == "token"


def test_stacked_leaves_of_equinox_are_told_by_neighbours_and_classes():
    found = reasons(equinox_network())
    assert found["norm/weight"] == found["scales/weight"] == "scale"
    assert (
        found["norm/bias"] == found["stack/bias"] == found["depthwise/bias"] == "bias"
    )
    assert found["cell/bias_n"] == "fewer than two dimensions"


def test_modules_as_dictionaries_keep_their_kinds():
    shape = jax.ShapeDtypeStruct
    found = reasons(
        {
            "a": {"weight": shape((4, 4), "float32"), "bias": shape((4, 4), "float32")},
            "norm": {"weight": shape((6, 4), "float32")},
            "patch_embed": {
                "weight": shape((8, 4), "float32"),
                "bias": shape((8,), "float32"),
            },
        }
    )
    assert found == {
        "a/weight": "scale",
        "a/bias": "bias",
        "norm/weight": "scale",
        "patch_embed/weight": "",
        "patch_embed/bias": "fewer than two dimensions",
    }


@pytest.mark.parametrize(
    "call",
    [
        lambda model: so.plan(model, so.static(0.5)),
        lambda model: so.sparsify(optax.sgd(0.1), so.static(0.5)).init(model),
        lambda model: so.sparse_adamw(0.1, so.ste(0.5)).init(model),
        lambda model: so.prune(model, sparsity=0.5),
        lambda model: so.str_().init(model),
        lambda model: so.calibrate(lambda m, x: m(x), model, [X]),
    ],
)
def test_what_is_not_an_array_is_told_with_the_remedy(call):
    remedy = r"eqx\.filter\(model, eqx\.is_inexact_array\)"
    with pytest.raises(TypeError, match=f"'activation' holds .*{remedy}"):
        call(eqx.nn.MLP(4, 4, 8, 1, activation=jnp.tanh, key=KEY))
    for other in ("a name", jax.nn.relu):
        with pytest.raises(TypeError, match=f"'option' holds .*{remedy}"):
            call({"kernel": jnp.ones((4, 4)), "option": other})


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compact": True}])
def test_equinox_trains_whole_modules(options):
    model = eqx.nn.MLP(8, 4, 16, 2, key=KEY)
    tx = so.sparsify(optax.adamw(1e-2), so.rigl(0.5, every=2, stop=9), **options)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    state = tx.init(params)
    model = so.apply_masks(model, state)  # with its functions
    x = jax.random.normal(KEY, (8,))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda model: (model(x) ** 2).sum())(model)
        updates, state = tx.update(
            grads, state, eqx.filter(model, eqx.is_inexact_array)
        )
        return eqx.apply_updates(model, updates), state

    before = model.layers[0].weight
    for _ in range(4):
        model, state = step(model, state)
    masks = so.get_masks(state)
    for layer, mask in zip(model.layers, masks.layers, strict=True):
        assert not np.asarray(layer.weight)[~np.asarray(mask.weight)].any()
    assert (model.layers[0].weight != before).any()
    params = eqx.filter(model, eqx.is_inexact_array)
    filled = so.sparse_init(model, state, KEY)
    assert filled.activation is model.activation
    assert jax.tree.structure(so.apply_masks(params, state)) == jax.tree.structure(
        params
    )
    assert eqx.combine(params, static)(x).shape == (4,)


def test_decay_follows_the_kinds():
    shape = jax.ShapeDtypeStruct
    mask = decay_mask(
        {
            "linear": {"w": shape((6, 4, 4), "float32"), "b": shape((6, 4), "float32")},
            "gate": shape((1, 1, 8), "float32"),
            "hole": optax.MaskedNode(),
        }
    )
    assert mask["linear"] == {"w": True, "b": False} and mask["gate"] is False
    assert mask["hole"] is False

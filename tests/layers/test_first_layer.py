"""The layer that ``uniform`` keeps dense: the network's first, or an error."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import sparseopt_jax as so

KEY = jax.random.key(0)
ASKS = r"first=.*first=None"


def kernels(**shapes):
    return {
        name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
        for name, shape in shapes.items()
    }


def dense_of(params, **options):
    """Return paths that stay dense; None if the first layer cannot be determined."""
    topology = so.static(0.75, distribution="uniform", **options)
    try:
        leaves = topology.leaves(params)
    except ValueError as error:
        assert "names and shapes do not show" in str(error)
        return None
    full = [leaf for leaf in leaves if leaf.layer and leaf.active == leaf.leaf.size]
    assert [leaf.note for leaf in full] == ["dense: first layer"] * len(full)
    assert not any(leaf.note for leaf in leaves if leaf not in full)
    return [leaf.path for leaf in full]


PPO = dict(
    conv1=(8, 8, 4, 32),
    conv2=(4, 4, 32, 64),
    conv3=(3, 3, 64, 64),
    hidden=(7744, 512),
    logits=(512, 4),
    value=(512, 1),
)
TOLD = {
    "an image's channels are no head's outputs": (PPO, "conv1"),
    "frames, all widths equal": (
        dict(stem=(8, 8, 4, 32), body=(4, 4, 32, 32), out=(1568, 4)),
        "stem",
    ),
    "grey images": (
        dict(conv=(3, 3, 1, 32), conv2=(3, 3, 32, 32), out=(1568, 1)),
        "conv",
    ),
    "an MLP": (dict(hidden=(784, 300), middle=(300, 100), out=(100, 10)), "hidden"),
    "equal widths, numbered": (
        dict(Dense_0=(8, 8), Dense_1=(8, 8), Dense_10=(8, 8), Dense_2=(8, 8)),
        "Dense_0",
    ),
    "a bottleneck": (
        dict(Dense_0=(784, 32), Dense_1=(32, 8), Dense_2=(8, 784)),
        "Dense_0",
    ),
    "shortcut convolutions, three classes": (
        dict(
            block_0_conv=(3, 3, 16, 32),
            block_0_proj=(1, 1, 16, 32),
            block_1_conv=(3, 3, 32, 32),
            conv_init=(3, 3, 3, 16),
            head=(32, 3),
        ),
        "conv_init",
    ),
    "depthwise convolutions": (
        dict(
            a_depthwise=(3, 3, 1, 32),
            a_pointwise=(1, 1, 32, 64),
            b_depthwise=(3, 3, 1, 64),
            b_pointwise=(1, 1, 64, 64),
            stem=(3, 3, 3, 32),
        ),
        "stem",
    ),
    "ConvNeXt": (
        dict(
            downsample=(2, 2, 96, 192),
            large=(7, 7, 1, 96),
            narrow=(384, 96),
            stem=(4, 4, 3, 96),
            wide=(96, 384),
        ),
        "stem",
    ),
    "groups of channels": (
        dict(
            expand=(1, 1, 128, 256),
            grouped=(3, 3, 4, 128),
            reduce=(1, 1, 64, 128),
            stem=(7, 7, 3, 64),
        ),
        "stem",
    ),
    "few features": (
        dict(
            block=(3, 3, 4, 8),
            block_out=(3, 3, 8, 8),
            shortcut=(1, 1, 4, 8),
            stem=(3, 3, 1, 4),
            head=(16, 4),
        ),
        "stem",
    ),
    "concatenations": (
        dict(a=(3, 3, 64, 32), b=(3, 3, 96, 32), c=(3, 3, 128, 32), z=(3, 3, 3, 64)),
        "z",
    ),
    "image to image": (
        dict(down=(3, 3, 16, 32), in_conv=(3, 3, 3, 16), out=(3, 3, 48, 3)),
        "in_conv",
    ),
    "the raw input again": (
        dict(Dense_0=(63, 256), Dense_1=(256, 256), Dense_2=(319, 256), out=(256, 4)),
        "Dense_0",
    ),
    "patches": (
        dict(
            embedding=(16, 16, 3, 64),
            key=(64, 4, 16),
            out=(4, 16, 64),
            query=(64, 4, 16),
            value=(64, 4, 16),
            wi=(64, 256),
            wo=(256, 64),
        ),
        "embedding",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_the_first_layer_is_told(name):
    shapes, first = TOLD[name]
    assert dense_of(kernels(**shapes)) == [f"{first}/kernel"]


UNTOLD = {
    "equal widths": dict(a=(8, 8), b=(8, 8), c=(8, 8)),
    "an autoencoder": dict(decoder=(32, 784), encoder=(784, 32)),
    "as many outputs as inputs": dict(hidden=(8, 64), middle=(64, 64), out=(64, 8)),
    "towers": dict(actor=(17, 64), actor_out=(64, 6), critic=(17, 64), value=(64, 1)),
    "numbered towers": dict(Dense_0=(17, 64), Dense_1=(64, 6), Dense_2=(17, 64)),
    "two inputs": dict(action=(6, 64), observation=(17, 64), out=(128, 1)),
    "a transformer without patches": dict(
        query=(64, 4, 16), key=(64, 4, 16), value=(64, 4, 16), out=(4, 16, 64)
    ),
    "a gated unit": dict(
        query=(64, 64), key=(64, 64), value=(64, 64), wi=(64, 512), wo=(256, 64)
    ),
    "names of widths": dict(fc16=(32, 16), fc32=(16, 32), fc8=(32, 8)),
    "numbers against widths": dict(layer_0=(16, 4), layer_1=(99, 16)),
    "a generator": dict(latent=(32, 6272), up1=(4, 4, 128, 32), up2=(4, 4, 32, 1)),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_what_cannot_be_told_is_asked_for(name):
    params = kernels(**UNTOLD[name])
    assert dense_of(params) is None
    with pytest.raises(ValueError, match=ASKS):
        so.prune(
            jax.tree.map(lambda x: jnp.ones(x.shape), params),
            sparsity=0.5,
            distribution="uniform",
        )
    path = f"{next(iter(params))}/kernel"
    assert dense_of(params, first=path) == [path]
    assert dense_of(params, first=None) == dense_of(params, first=False) == []


def test_an_embedding_before_the_kernels_is_nothing_to_guess_by():
    params = kernels(wi=(64, 256), wo=(256, 64), flat=(325, 10))
    assert dense_of(params) == ["flat/kernel"]
    tokens = {"tokens": {"embedding": jax.ShapeDtypeStruct((99, 64), jnp.float32)}}
    assert dense_of(params | tokens) is None
    assert dense_of(params | tokens, first="tokens/*") == []
    position = {"pos_embedding": jax.ShapeDtypeStruct((1, 5, 64), jnp.float32)}
    assert dense_of(params | position) == ["flat/kernel"]
    # A requested leaf is sparse, first or not.
    options = {"include": "tokens/*", "first": "tokens/*"}
    assert dense_of(params | tokens, **options) == []


def test_layers_that_stay_dense_have_their_places_too():
    where = lambda path, leaf: not path.startswith("conv1")  # noqa: E731
    assert dense_of(kernels(**PPO), where=where) == []
    only = lambda path, leaf: path.startswith("hidden")  # noqa: E731
    assert dense_of(kernels(**PPO), where=only) == []
    halves = {"conv1/*": so.NM(2, 4, axis=-1)}
    assert dense_of(kernels(**PPO), structure=halves) == []


def test_lists_have_an_order():
    mlp = eqx.nn.MLP(16, 16, 16, 12, key=KEY)
    params = eqx.filter(mlp, eqx.is_inexact_array)
    assert dense_of(params) == ["layers/0/weight"]
    weights = {"layers": [jnp.ones((8, 8)) for _ in range(11)], "z": jnp.ones((8, 8))}
    assert dense_of(weights) is None
    assert dense_of(weights["layers"]) == ["0"]
    model = nnx.Sequential(*(nnx.Linear(8, 8, rngs=nnx.Rngs(0)) for _ in range(3)))
    assert dense_of(nnx.state(model)) == ["layers/0/kernel"]


class Convolutions(eqx.Module):
    """Neither lists nor numbers: outputs come first in the shapes."""

    stem: eqx.nn.Conv2d
    body: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __init__(self, use_bias):
        options = {"use_bias": use_bias, "key": KEY}
        self.stem = eqx.nn.Conv2d(3, 16, 3, **options)
        self.body = eqx.nn.Conv2d(16, 32, 3, **options)
        self.out = eqx.nn.Linear(32 * 25, 10, **options)


class Perceptron(eqx.Module):
    hidden: eqx.nn.Linear
    middle: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, use_bias):
        options = {"use_bias": use_bias, "key": KEY}
        self.hidden = eqx.nn.Linear(30, 20, **options)
        self.middle = eqx.nn.Linear(20, 16, **options)
        self.out = eqx.nn.Linear(16, 10, **options)


@pytest.mark.parametrize("use_bias", [True, False])
def test_weights_of_equinox_have_their_outputs_first(use_bias):
    options = {"use_bias": use_bias}
    params = eqx.filter(Convolutions(**options), eqx.is_inexact_array)
    assert dense_of(params) == ["stem/weight"]
    params = eqx.filter(Perceptron(**options), eqx.is_inexact_array)
    assert dense_of(params) == ["hidden/weight"]
    assert dense_of(params, dims=so.NeuronDims(1, 0)) == ["hidden/weight"]


def test_haiku_numbers_all_but_the_first():
    def forward(x):
        for _ in range(3):
            x = jax.nn.relu(hk.Linear(16)(x))
        return hk.nets.MLP([16, 16])(x)

    params = hk.transform(forward).init(KEY, jnp.ones((2, 16)))
    assert dense_of(params) is None  # the library's network has numbers, too
    del params["mlp/~/linear_0"], params["mlp/~/linear_1"]
    assert dense_of(params) == ["linear/w"]


def test_flax_numbers_each_kind_of_module():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features in (32, 32):
                x = nn.relu(nn.BatchNorm(True)(nn.Conv(features, (3, 3))(x)))
            x = nn.Dense(32)(x.reshape(len(x), -1))
            return nn.Dense(1)(x)

    variables = Network().init(KEY, jnp.ones((1, 6, 6, 1)))
    assert dense_of(variables["params"]) == ["Conv_0/kernel"]


def test_stacks_count_as_layers():
    params = {
        "stack": {"w": jnp.ones((6, 16, 16)), "b": jnp.ones((6, 16))},
        "entry": {"w": jnp.ones((10, 16))},
        "out": {"w": jnp.ones((16, 10))},
    }
    dims = {"stack/w": so.NeuronDims(1, 2)}
    assert dense_of(params, dims=dims) is None
    params["entry"]["w"] = jnp.ones((12, 16))
    assert dense_of(params, dims=dims) == dense_of(params) == ["entry/w"]


def test_a_single_layer_is_sparse():
    assert dense_of(kernels(a=(8, 4))) == []
    assert dense_of(kernels(a=(8, 4)), first="a/*") == ["a/kernel"]


TOPOLOGIES = {
    "rigl": lambda **options: so.rigl(0.5, every=1, stop=9, **options),
    "set_": lambda **options: so.set_(0.5, every=1, stop=9, **options),
    "srigl": lambda **options: so.srigl(0.5, every=1, stop=9, **options),
    "mest": lambda **options: so.mest(0.5, every=1, stop=9, **options),
    "snfs": lambda **options: so.snfs(0.5, every=1, stop=9, **options),
    "rigl_itop": lambda **options: so.rigl_itop(0.5, stop=9000, **options),
    "set_smet": lambda **options: so.set_smet(0.5, stop=9000, **options),
    "one_shot": lambda **options: so.one_shot(0.5, at=3, **options),
    "granet": lambda **options: so.granet(0.5, every=1, stop=9, **options),
    "ste": lambda **options: so.ste(0.5, **options),
    "top_kast": lambda **options: so.top_kast(0.5, trained_sparsity=0.25, **options),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_first_goes_through_all_methods(name):
    params = kernels(a=(8, 8), b=(8, 8))
    options = {"distribution": "uniform", "first": ["b/*"]}
    leaves = TOPOLOGIES[name](**options).leaves(params)
    assert [leaf.active for leaf in leaves] == [32, 64]
    tx = so.sparsify(optax.sgd(0.1), TOPOLOGIES[name](**options))
    assert so.get_masks(tx.init(params))["b"]["kernel"].all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first": "c/*"}, ValueError, r"first: the pattern 'c/\*' matches no leaf"),
        ({"first": 3}, TypeError, "first must be a glob over paths, .*got 3"),
        ({"first": [1]}, TypeError, "first must be a glob over paths"),
        (
            {"first": "a/*", "distribution": "erdos_renyi"},
            *(ValueError, "first='a/.*needs distribution='uniform'.*'erdos_renyi'"),
        ),
    ],
)
def test_a_first_that_means_nothing_is_told(options, error, message):
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    options = {"distribution": "uniform", **options}
    with pytest.raises(error, match=message):
        so.static(0.5, **options).leaves(params)
    with pytest.raises(error, match=message):
        so.prune(params, sparsity=0.5, **options)


def test_plan_says_which_layer_is_dense_and_why():
    plan = so.plan(kernels(**PPO), so.static(0.9, distribution="uniform"))
    [row] = [row for row in str(plan).splitlines() if row.startswith("conv1")]
    assert row.endswith("dense: first layer") and "100.00%" in row
    options = {"distribution": "uniform"}
    lists = so.static(0.5, first=["a"], **options)
    assert lists == so.static(0.5, first=("a",), **options)

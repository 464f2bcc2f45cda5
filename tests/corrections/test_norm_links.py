"""Links inferred from models are compared with what the models compute, one by one."""

import copy
import functools
import pickle

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

import sparseopt_jax as so
from sparseopt_jax.corrections.norm_links import NormLinks, infer_norm_links

IMAGE = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
VECTOR = jax.ShapeDtypeStruct((2, 3), jnp.float32)

Norm = functools.partial(nn.BatchNorm, use_running_average=True)
Conv = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False)


def variables_of(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def links_of(forward, x=VECTOR):
    """Return the links of an inline linen model, given as a function of its input."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return forward(x)

    model = Model()
    return infer_norm_links(model.apply, variables_of(model, x), x)


def nnx_links_of(build, x):
    model = nnx.eval_shape(build)
    model.eval()
    graphdef, state = nnx.split(model)
    return infer_norm_links(lambda state, x: nnx.merge(graphdef, state)(x), state, x)


# Residual networks, linen.


class BlockV1(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        y = nn.relu(norm()(Conv(self.features)(x)))
        y = norm()(Conv(self.features)(y))
        if x.shape != y.shape:
            x = norm(name="norm_proj")(nn.Conv(self.features, (1, 1), name="proj")(x))
        return nn.relu(x + y)


class ResNetV1(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(use_running_average=not train, name="norm_stem")
        x = nn.relu(norm(Conv(4, name="stem")(x)))
        x = BlockV1(4)(x, train)
        x = BlockV1(8)(x, train)
        return nn.Dense(2)(x.mean((1, 2)))


V1_LINKS = {
    "BlockV1_0/Conv_0/kernel": "BlockV1_0/BatchNorm_0",
    "BlockV1_0/Conv_1/kernel": "BlockV1_0/BatchNorm_1",
    "BlockV1_1/Conv_0/kernel": "BlockV1_1/BatchNorm_0",
    "BlockV1_1/Conv_1/kernel": "BlockV1_1/BatchNorm_1",
    "BlockV1_1/proj/kernel": "BlockV1_1/norm_proj",
    "stem/kernel": "norm_stem",
}


def test_post_activation_resnet_is_linked_everywhere_but_in_the_classifier():
    model = ResNetV1()
    links = infer_norm_links(
        model.apply, variables_of(model, IMAGE), IMAGE, train=False
    )
    assert dict(links) == V1_LINKS
    assert links.undecided == {"Dense_0/kernel": "no normalisation follows"}


class BlockV2(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = Conv(4)(nn.relu(Norm()(x)))
        return x + Conv(4)(nn.relu(Norm()(y)))


class ResNetV2(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Conv(4, name="stem")(x)
        x = BlockV2()(x)
        x = BlockV2()(x)
        return nn.Dense(2)(nn.relu(Norm(name="norm_last")(x)).mean((1, 2)))


def test_pre_activation_resnet_links_only_the_inner_convolutions():
    model = ResNetV2()
    links = infer_norm_links(model.apply, variables_of(model, IMAGE), IMAGE)
    # By name, Conv_0 belongs to BatchNorm_0; in fact it feeds BatchNorm_1.
    assert dict(links) == {
        "BlockV2_0/Conv_0/kernel": "BlockV2_0/BatchNorm_1",
        "BlockV2_1/Conv_0/kernel": "BlockV2_1/BatchNorm_1",
    }
    assert links.undecided == {
        "BlockV2_0/Conv_1/kernel": "added to another branch (stem/kernel) before "
        "BlockV2_1/BatchNorm_0 normalises it",
        "BlockV2_1/Conv_1/kernel": "added to another branch (stem/kernel, "
        "BlockV2_0/Conv_1/kernel) before norm_last normalises it",
        "Dense_0/kernel": "no normalisation follows",
        "stem/kernel": "BlockV2_0/BatchNorm_0 normalises it, but on another path: "
        "added to another branch (BlockV2_0/Conv_1/kernel) before "
        "BlockV2_1/BatchNorm_0 normalises it",
    }


@pytest.mark.parametrize("model", [BlockV1(8), ResNetV2()])
def test_neurons_rescaled_together_with_their_norms_give_the_same_network(model):
    rng = np.random.default_rng(0)
    shapes = flatten_dict(variables_of(model, IMAGE), sep="/")
    # Biases of kernels would have to be rescaled too.
    variables = {
        path: rng.uniform(0.5, 1, leaf.shape) * (not path.endswith("proj/bias"))
        for path, leaf in shapes.items()
    }
    x = rng.normal(size=IMAGE.shape)
    apply_fn = jax.jit(lambda flat: model.apply(unflatten_dict(flat, sep="/"), x))
    links = infer_norm_links(model.apply, variables_of(model, IMAGE), IMAGE)

    def rescaled(links):
        changed = dict(variables)
        for kernel, norm in links.items():
            mean, var = f"batch_stats/{norm}/mean", f"batch_stats/{norm}/var"
            factor = rng.uniform(0.5, 2, changed[mean].shape)
            changed[f"params/{kernel}"] = changed[f"params/{kernel}"] * factor
            changed[mean] = changed[mean] * factor
            changed[var] = (changed[var] + 1e-5) * factor**2 - 1e-5
        return changed

    output = apply_fn(variables)
    np.testing.assert_allclose(apply_fn(rescaled(links)), output, rtol=1e-3)
    norms = [*links.values()]
    wrong = dict(zip(links, norms[1:] + norms[:1], strict=True))
    assert not np.allclose(apply_fn(rescaled(wrong)), output, rtol=1e-2)


# Between a kernel and its norm.


def test_bias_layout_dtype_and_scalar_factors_keep_the_link():
    def forward(x):
        y = nn.Dense(8)(x)
        y = -(2.0 * y.astype(jnp.bfloat16)) / 3.0 - 1.0
        y = lax.stop_gradient(y.reshape(1, 2, 8).transpose(1, 0, 2))
        return Norm()(jnp.linspace(0.0, 1.0, 8) - y * jnp.full((1, 1, 1), 0.5))

    assert links_of(forward) == {"Dense_0/kernel": "BatchNorm_0"}


@pytest.mark.parametrize(
    ("between", "obstacle"),
    [
        (nn.relu, "passes through max"),
        (nn.silu, "passes through logistic"),
        (lambda y: nn.sigmoid(y) * y, "passes through logistic"),
        (lambda y: nn.avg_pool(y, (2, 2)), "passes through reduce_window_sum"),
        (lambda y: nn.max_pool(y, (2, 2)), "passes through reduce_window_max"),
        (lambda y: jnp.pad(y, ((0, 0), (1, 1), (0, 0), (0, 0))), "passes through pad"),
        (lambda y: y[:, 1:], "passes through slice"),
        (lambda y: y * jnp.arange(4.0), "passes through mul"),
        (lambda y: 1.0 / y, "passes through div"),
        (lambda y: y @ jnp.eye(4), "passes through dot_general"),
        (lambda y: y.reshape(2, -1), "regrouped into 64 features"),
        (lambda y: jnp.concatenate([y, y], -1), "concatenated with another branch"),
        (lambda y: y + y[::-1], "passes through rev"),
        (
            lambda y: lax.cond(y.sum() > 0, lambda y: y, lambda y: 2 * y, y),
            "passes through cond",
        ),
        (
            lambda y: lax.reduce(y, 0.0, lambda a, b: a + 2 * b, (1,)),
            "passes through reduce",
        ),
    ],
)
def test_an_obstacle_before_the_norm_undoes_the_link(between, obstacle):
    links = links_of(lambda x: Norm()(between(Conv(4)(x))), IMAGE)
    reason = f"{obstacle} before BatchNorm_0 normalises it"
    assert dict(links) == {}
    assert links.undecided == {"Conv_0/kernel": reason}


def test_a_scale_per_feature_undoes_the_link_but_a_scalar_parameter_does_not():
    class Scaled(nn.Module):
        shape: tuple[int, ...]

        @nn.compact
        def __call__(self, x):
            return Norm()(
                nn.Dense(4)(x) * self.param("alpha", nn.initializers.ones, self.shape)
            )

    one, four = Scaled(()), Scaled((4,))
    assert infer_norm_links(one.apply, variables_of(one, VECTOR), VECTOR)
    assert infer_norm_links(
        four.apply, variables_of(four, VECTOR), VECTOR
    ).undecided == {
        "Dense_0/kernel": "scaled by alpha before BatchNorm_0 normalises it"
    }


def test_layers_without_batch_norm_are_reported_in_a_model_that_has_one():
    def forward(x):
        x = nn.relu(Norm()(nn.Dense(4)(x)))
        x = nn.Dense(4)(x)
        x = nn.relu(nn.LayerNorm()(nn.Dense(4)(x)))
        return nn.softmax(nn.Dense(4)(x))

    links = links_of(forward)
    assert dict(links) == {"Dense_0/kernel": "BatchNorm_0"}
    assert links.undecided == {
        "Dense_1/kernel": "feeds Dense_2/kernel without a normalisation",
        "Dense_2/kernel": "passes through reduce_sum before it feeds Dense_3/kernel",
        "Dense_3/kernel": "passes through reduce_max before the output; "
        "no normalisation follows",
    }


def test_dense_net_links_bottlenecks_but_not_what_is_concatenated():
    def forward(x):
        for _ in range(2):
            y = nn.relu(Norm()(x))
            y = nn.relu(Norm()(nn.Conv(8, (1, 1))(y)))
            x = jnp.concatenate([x, Conv(4)(y)], -1)
        return Norm()(x)

    links = links_of(forward, IMAGE)
    assert dict(links) == {
        "Conv_0/kernel": "BatchNorm_1",
        "Conv_2/kernel": "BatchNorm_3",
    }
    assert links.undecided == {
        "Conv_1/kernel": "concatenated with another branch before BatchNorm_2 "
        "normalises it",
        "Conv_3/kernel": "concatenated with another branch (Conv_1/kernel) before "
        "BatchNorm_4 normalises it",
    }


# Several paths, several uses.


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("layer", ["Dense", "Conv"])
def test_a_norm_over_another_axis_as_wide_as_the_features_is_no_link(
    layer, channels_first
):
    def forward(x, axis):
        x = nn.Dense(4)(x) if layer == "Dense" else nn.Conv(4, (3, 3))(x)
        if channels_first:
            x = jnp.moveaxis(x, -1, 1).reshape(2, 1, 4, 16).reshape(2, 4, 4, 4)
        return Norm(axis=axis)(x)

    features = 1 if channels_first else -1
    kernel = f"{layer}_0/kernel"
    assert links_of(lambda x: forward(x, features), IMAGE) == {kernel: "BatchNorm_0"}
    links = links_of(lambda x: forward(x, 2), IMAGE)
    assert not links
    assert links.undecided == {kernel: "BatchNorm_0 normalises another of its axes"}


def test_an_output_that_also_goes_around_its_norm_is_undecided():
    def forward(x):
        y = nn.Dense(4)(x)
        return nn.relu(Norm()(y)), y

    links = links_of(forward)
    assert dict(links) == {}
    assert links.undecided == {
        "Dense_0/kernel": "BatchNorm_0 normalises it, but on another path: "
        "no normalisation follows"
    }


def test_an_output_with_two_norms_is_undecided():
    def forward(x):
        y = nn.Dense(4)(x)
        return Norm()(y) + Norm()(y)

    links = links_of(forward)
    assert links.undecided == {
        "Dense_0/kernel": "normalised by BatchNorm_0 and BatchNorm_1"
    }


def test_a_dead_use_of_an_output_does_not_count():
    def forward(x):
        y = nn.Dense(4)(x)
        jnp.tanh(y)
        nn.Dense(4)(x)
        return Norm()(y)

    links = links_of(forward)
    assert dict(links) == {"Dense_0/kernel": "BatchNorm_0"}
    assert links.undecided == {"Dense_1/kernel": "its output is not used"}


def test_a_shared_kernel_and_a_shared_norm_are_undecided():
    def shared_kernel(x):
        dense = nn.Dense(3)
        return Norm()(dense(nn.relu(Norm()(dense(x)))))

    def shared_norm(x):
        norm = Norm()
        return norm(nn.Dense(4)(nn.relu(norm(nn.Dense(4)(x)))))

    assert links_of(shared_kernel).undecided == {"Dense_0/kernel": "used 2 times"}
    links = links_of(shared_norm)
    assert dict(links) == {}
    assert links.undecided == {
        "Dense_0/kernel": "BatchNorm_0 is used 2 times",
        "Dense_1/kernel": "BatchNorm_0 is used 2 times",
    }


def test_embeddings_are_no_kernels_unless_they_are_multiplied():
    def looked_up(tokens):
        return Norm()(nn.Dense(4)(nn.Embed(5, 3)(tokens)))

    def tied(tokens):
        embed = nn.Embed(5, 3)
        return embed.attend(Norm()(nn.Dense(3)(embed(tokens))))

    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    links = links_of(looked_up, tokens)
    assert (dict(links), links.undecided) == ({"Dense_0/kernel": "BatchNorm_0"}, {})
    links = links_of(tied, tokens)
    assert dict(links) == {"Dense_0/kernel": "BatchNorm_0"}
    assert links.undecided == {"Embed_0/embedding": "used 2 times"}


# Kinds of linear layers.


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv(6, (3, 3), feature_group_count=3),
        lambda: nn.ConvTranspose(6, (2, 2), strides=(2, 2)),
        lambda: nn.ConvLocal(6, (2, 2)),
        lambda: nn.DenseGeneral(6, axis=(-2, -1)),
        lambda: nn.Einsum((3, 6), "...i,io->...o"),
        lambda: nn.WeightNorm(nn.Dense(6), feature_axes=-1),
        lambda: nn.Conv(6, (3, 3), dtype=jnp.bfloat16),
    ],
)
def test_every_linear_layer_is_linked(layer):
    links = links_of(lambda x: Norm()(layer()(x)), IMAGE)
    assert list(links.values()) == ["BatchNorm_0"]
    assert links.undecided == {}


def test_heads_are_linked_to_the_norm_of_all_of_them():
    def forward(x):
        y = nn.DenseGeneral((2, 4))(x)
        return Norm(axis=(-2, -1))(y), Norm()(nn.DenseGeneral((2, 4))(x).reshape(2, 8))

    links = links_of(forward)
    assert links == {
        "DenseGeneral_0/kernel": "BatchNorm_0",
        "DenseGeneral_1/kernel": "BatchNorm_1",
    }


def test_a_standardised_kernel_is_a_kernel_and_a_sum_of_kernels_is_not():
    params = {
        "kernel": jnp.ones((3, 4)),
        "gain": jnp.ones(4),
        "delta": jnp.ones((3, 4)),
    }
    stats = {"mean": jnp.ones(4), "var": jnp.ones(4)}
    variables = {"params": params, "stats": {"norm": stats}}

    def apply(kernel_of):
        def apply_fn(variables, x):
            p, s = variables["params"], variables["stats"]["norm"]
            return (x @ kernel_of(p) - s["mean"]) / jnp.sqrt(s["var"])

        return infer_norm_links(apply_fn, variables, VECTOR)

    links = apply(lambda p: (p["kernel"] - p["kernel"].mean(0)) * p["gain"])
    assert dict(links) == {"kernel": "norm"}
    assert links.undecided == {"delta": "not used by apply_fn"}
    reason = "one of several kernels in a weight (delta and kernel) before norm "
    links = apply(lambda p: p["kernel"] + p["delta"])
    assert links.undecided == dict.fromkeys(
        ["delta", "kernel"], reason + "normalises it"
    )


# Transformations of JAX and Flax.


def test_jit_remat_and_custom_derivatives_are_looked_into():
    @jax.custom_vjp
    def clip(x):
        return x

    clip.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))

    @jax.custom_jvp
    def double(x):
        return 2.0 * x

    double.defjvps(lambda t, y, x: 2.0 * t)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = jax.jit(lambda y: double(clip(y)))(nn.Dense(4)(x))
            return jax.nn.relu(nn.remat(nn.BatchNorm)(use_running_average=True)(y))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.jit(Block)()(nn.remat(Block)()(x)))

    model = Model()
    apply_fn = jax.jit(model.apply)
    links = infer_norm_links(apply_fn, variables_of(model, VECTOR), VECTOR)
    assert dict(links) == {
        f"{block}/Dense_0/kernel": f"{block}/CheckpointBatchNorm_0"
        for block in ("CheckpointBlock_0", "JitBlock_0")
    }
    assert links.undecided == {"Dense_0/kernel": "no normalisation follows"}


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.relu(Norm()(x))
        y = nn.relu(Norm()(nn.Dense(4)(y)))
        return x + nn.Dense(4)(y), nn.Dense(1)(y)


@pytest.mark.parametrize("block", [ScannedBlock, nn.remat(ScannedBlock)])
def test_stacked_layers_are_linked_inside_a_scan_and_not_across_its_steps(block):
    def forward(x):
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=3,
        )(name="layers")
        x, y = layers(nn.Dense(4)(x), None)
        x = nn.relu(Norm()(x))
        return Norm()(nn.Dense(4)(x)), y

    links = links_of(forward)
    assert dict(links) == {
        "Dense_1/kernel": "BatchNorm_1",
        "layers/Dense_0/kernel": "layers/BatchNorm_1",
    }
    assert links.undecided == {
        "Dense_0/kernel": "passes through scan before layers/BatchNorm_0 normalises it",
        "layers/Dense_1/kernel": "added to another branch (Dense_0/kernel) before "
        "the next step of a loop",
        "layers/Dense_2/kernel": "passes through scan before the output; "
        "no normalisation follows",
    }


def test_leaves_that_a_loop_shares_between_its_steps_are_undecided():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = nn.relu(Norm()(nn.Dense(3)(x)))
            return x, None

    def forward(broadcast, split):
        stacked = {"params", "batch_stats"} - {broadcast}
        step = nn.scan(
            Step,
            variable_broadcast=broadcast,
            variable_axes=dict.fromkeys(stacked, 0),
            split_rngs={"params": split},
            length=3,
        )
        return lambda x: step(name="step")(x, None)

    links = links_of(forward("params", False))
    assert dict(links) == {}
    assert links.undecided == {"step/Dense_0/kernel": "used in every step of a loop"}
    links = links_of(forward("batch_stats", True))
    assert dict(links) == {}
    assert links.undecided == {
        "step/Dense_0/kernel": "step/BatchNorm_0 is used in every step of a loop"
    }


def test_a_norm_that_is_copied_for_every_step_is_shared_as_well():
    def apply_fn(variables, x):
        mean = variables["batch_stats"]["norm"]["mean"]

        def step(x, layer):
            kernel, mean = layer
            return nn.relu(x @ kernel - mean), None

        layers = variables["params"]["kernel"], jnp.broadcast_to(mean, (2, 3))
        return lax.scan(step, x, layers)[0]

    variables = {
        "params": {"kernel": jnp.ones((2, 3, 3))},
        "batch_stats": {"norm": {"mean": jnp.ones(3), "var": jnp.ones(3)}},
    }
    links = infer_norm_links(apply_fn, variables, VECTOR)
    assert dict(links) == {}
    assert links.undecided == {"kernel": "norm is used in every step of a loop"}


def test_branches_of_a_cond_are_looked_into():
    def apply_fn(variables, x):
        kernel, stats = variables["params"]["kernel"], variables["batch_stats"]["norm"]
        return lax.cond(
            x.sum() > 0, lambda x: x @ kernel - stats["mean"], lambda x: x, x
        )

    variables = {
        "params": {"kernel": jnp.ones((3, 3))},
        "batch_stats": {"norm": {"mean": jnp.ones(3), "var": jnp.ones(3)}},
    }
    assert infer_norm_links(apply_fn, variables, VECTOR) == {"kernel": "norm"}


def test_a_while_loop_undoes_links():
    params = {"kernel": jnp.ones((3, 3)), "state": jnp.ones((2, 3))}
    stats = {"norm": {"mean": jnp.ones(3), "var": jnp.ones(3)}}
    variables = {"params": params, "batch_stats": stats}

    def apply_fn(variables, x):
        weight, state = 2 * variables["params"]["kernel"], variables["params"]["state"]
        norm = variables["batch_stats"]["norm"]

        def step(carry):
            count, y, state = carry
            return count + 1, y @ weight - norm["mean"], state * y

        def goes_on(carry):
            return (carry[1] < norm["var"]).all()

        return lax.while_loop(goes_on, step, (0, x, state))

    links = infer_norm_links(apply_fn, variables, VECTOR)
    assert dict(links) == {}
    assert links.undecided == {
        "kernel": "used in every step of a loop",
        "state": "changed from step to step of a loop",
    }


def test_stacked_gains_are_part_of_a_weight_and_no_kernels():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Norm()(nn.WeightNorm(nn.Dense(3))(x)), None

    axes, rngs = {"params": 0, "batch_stats": 0}, {"params": True}
    layers = nn.scan(Layer, variable_axes=axes, split_rngs=rngs, length=2)
    links = links_of(lambda x: layers(name="layers")(x, None))
    assert dict(links) == {"layers/Dense_0/kernel": "layers/BatchNorm_0"}
    assert links.undecided == {}


@pytest.mark.parametrize("in_axes", [0, None])
def test_vmapped_layers_are_linked(in_axes):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Norm()(nn.Dense(4)(x))

    ensemble = nn.vmap(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        axis_size=2,
    )
    links = links_of(lambda x: ensemble(name="layer")(x))
    assert dict(links) == {"layer/Dense_0/kernel": "layer/BatchNorm_0"}
    assert links.undecided == {}


def test_partitioned_boxes_do_not_show_in_paths():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    links = links_of(lambda x: Norm()(nn.Dense(4, kernel_init=init)(x)))
    assert dict(links) == {"Dense_0/kernel": "BatchNorm_0"}


def test_low_precision_statistics_are_followed():
    norm = functools.partial(
        Norm,
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
        force_float32_reductions=False,
    )
    links = links_of(lambda x: norm()(nn.Dense(4, dtype=jnp.bfloat16)(x)))
    assert dict(links) == {"Dense_0/kernel": "BatchNorm_0"}


# NNX and other libraries.


class NnxBlock(nnx.Module):
    def __init__(self, inputs, features, rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.first, self.second = conv(inputs, features), conv(features, features)
        self.projection = nnx.Conv(inputs, features, (1, 1), rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(features, rngs=rngs) for _ in range(3)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(features, 2, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.norms[2](self.first(x)))
        y = self.norms[0](self.dropout(self.second(y)))
        y = nnx.relu(y + self.norms[1](self.projection(x)))
        return self.head(y.mean((1, 2)))


def test_nnx_resnet_block():
    links = nnx_links_of(lambda: NnxBlock(3, 4, nnx.Rngs(0)), IMAGE)
    assert dict(links) == {
        "first/kernel": "norms/2",
        "projection/kernel": "norms/1",
        "second/kernel": "norms/0",
    }
    assert links.undecided == {"head/kernel": "no normalisation follows"}


class NnxPreActivation(nnx.Module):
    def __init__(self, rngs):
        self.linear1, self.linear2 = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))
        self.norm1, self.norm2 = (nnx.BatchNorm(4, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        y = self.linear1(nnx.relu(self.norm1(x)))
        return x + self.linear2(nnx.relu(self.norm2(y)))


def test_nnx_scan_over_stacked_blocks():
    @nnx.vmap
    def stack(rngs):
        return NnxPreActivation(rngs)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.blocks = stack(rngs.split(3))

        def __call__(self, x):
            return nnx.scan(
                lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry
            )(self.blocks, x)

    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    links = nnx_links_of(lambda: Model(nnx.Rngs(0)), x)
    assert dict(links) == {"blocks/linear1/kernel": "blocks/norm2"}
    assert links.undecided == {
        "blocks/linear2/kernel": "added to another branch before "
        "the next step of a loop"
    }


def plain_variables():
    """Return weights in another order than Flax's, and arrays that are not kernels."""
    return {
        "params": {
            "linear": {"weight": jnp.ones((4, 3))},
            "conv": {"weight": jnp.ones((5, 4, 1, 1))},
            "tables": {"indices": jnp.ones((2, 2), int), "hole": optax.MaskedNode()},
        },
        "batch_stats": {
            "norm1": {"mean": jnp.ones((1, 4)), "var": jnp.ones((1, 4))},
            "norm2": {"mean": jnp.ones(5), "var": jnp.ones(5)},
        },
        "average": {"weight": jnp.ones((4, 3))},
    }


def plain_apply(variables, x):
    params, stats = variables["params"], variables["batch_stats"]
    y = jnp.einsum("oi,bi->bo", params["linear"]["weight"], x)
    y = (y - stats["norm1"]["mean"])[:, :, None, None]
    y = lax.conv(y, params["conv"]["weight"], (1, 1), "SAME")
    return y + -stats["norm2"]["mean"][:, None, None]


def test_any_library_will_do():
    links = infer_norm_links(plain_apply, plain_variables(), VECTOR)
    assert dict(links) == {"conv/weight": "norm2", "linear/weight": "norm1"}
    assert links.undecided == {}


def test_without_collections_paths_are_whole_and_every_matrix_may_be_a_kernel():
    links = infer_norm_links(
        lambda variables, x: plain_apply(variables["net"], x),
        {"net": plain_variables()},
        VECTOR,
    )
    assert dict(links) == {
        "net/params/conv/weight": "net/batch_stats/norm2",
        "net/params/linear/weight": "net/batch_stats/norm1",
    }
    assert links.undecided == {"net/average/weight": "not used by apply_fn"}


@pytest.mark.parametrize(
    "operation", [lambda y, mean: y + mean, lambda y, mean: y - (-mean)]
)
def test_a_mean_that_is_added_normalises_nothing(operation):
    def apply_fn(variables, x):
        stats = variables["batch_stats"]["norm2"]
        return operation(plain_apply(variables, x), stats["mean"][:, None, None])

    # The last convolution still goes through its norm, and through nothing else.
    links = infer_norm_links(apply_fn, plain_variables(), VECTOR)
    assert dict(links) == {"conv/weight": "norm2", "linear/weight": "norm1"}


# The call and its result.


def test_static_and_array_arguments_go_where_they_belong():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, scale=None, *, train, activation):
            y = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
            return activation(nn.Dropout(0.5, deterministic=False)(y) * scale)

    model = Model()
    key = jax.random.key(0)
    x, scale = np.ones((2, 3), np.float32), jnp.ones(())
    call = {"train": False, "activation": nn.relu}
    rngs = {"params": key, "dropout": key}
    init = functools.partial(model.init, **call)
    variables = jax.eval_shape(init, rngs, x, scale)
    links = infer_norm_links(
        model.apply,
        variables,
        x,
        scale=scale,
        rngs={"dropout": key},
        mutable=["batch_stats"],
        **call,
    )
    assert dict(links) == {"Dense_0/kernel": "BatchNorm_0"}


def test_nothing_is_computed():
    model = ResNetV1()
    x = jax.ShapeDtypeStruct((2**20, 32, 32, 3), jnp.float32)
    assert infer_norm_links(model.apply, variables_of(model, x), x) == V1_LINKS


def test_links_can_be_completed_copied_and_pickled():
    links = NormLinks({"a/kernel": "n"}, {"b/kernel": "used 2 times"})
    assert {**links, "b/kernel": "n"} == {"a/kernel": "n", "b/kernel": "n"}
    for twin in (copy.deepcopy(links), pickle.loads(pickle.dumps(links))):
        assert (twin, twin.undecided) == (links, links.undecided)
    assert repr(links) == (
        "NormLinks({'a/kernel': 'n'}, undecided={'b/kernel': 'used 2 times'})"
    )


def test_variables_without_arrays_are_an_error():
    with pytest.raises(ValueError, match=r"variables must hold .* got \{'params'"):
        infer_norm_links(lambda v, x: x, {"params": {}}, VECTOR)


def test_variables_without_a_running_mean_are_an_error():
    # A mean is a running mean only next to a variance.
    variables = {
        "params": {"mean": jnp.ones(3)},
        "batch_stats": {"my_mean": 0.0, "my_var": 1.0},
    }
    with pytest.raises(ValueError, match=r"no running mean found.*params/mean"):
        infer_norm_links(lambda v, x: x - v["params"]["mean"], variables, VECTOR)


def test_training_mode_is_an_error():
    model = ResNetV1()
    variables = variables_of(model, IMAGE)
    with pytest.raises(ValueError, match=r"never subtracted.*model\.eval\(\)"):
        infer_norm_links(
            model.apply, variables, IMAGE, train=True, mutable=["batch_stats"]
        )


def test_inputs_that_are_closed_over_are_an_error():
    model = nn.Sequential([nn.Dense(4), Norm()])
    x = np.ones((2, 3), np.float32)
    variables = variables_of(model, x)
    with pytest.raises(ValueError, match="pass its inputs to infer_norm_links"):
        infer_norm_links(lambda variables: model.apply(variables, x), variables)


# Statistics that other libraries store under other names.


def haiku_net(x, is_training):
    norm = functools.partial(hk.BatchNorm, True, True, 0.9)
    y = hk.Linear(8)(x)
    y = jax.nn.relu(norm()(y, is_training))
    y = hk.Conv2D(4, 3)(y[:, None, :, None])
    y = norm()(y, is_training)
    return hk.Linear(2)(y.mean((1, 2)))


def haiku_model():
    model = hk.transform_with_state(haiku_net)
    params, state = model.init(jax.random.key(0), jnp.ones((3, 4)), True)
    return model, {"params": params, "state": state}


def test_haiku_models_are_linked():
    model, variables = haiku_model()

    def evaluate(variables, x):
        params, state = variables["params"], variables["state"]
        return model.apply(params, state, None, x, False)[0]

    links = infer_norm_links(evaluate, variables, jnp.ones((3, 4)))
    assert dict(links) == {"conv2_d/w": "batch_norm_1", "linear/w": "batch_norm"}
    assert links.undecided == {"linear_1/w": "no normalisation follows"}

    tx = so.scale_by_batch_variance(links, eps=0.0)
    state = variables["state"]
    variance = jnp.arange(1.0, 9.0)[None]
    state["batch_norm/~/var_ema"]["average"] = variance
    grads = jax.tree.map(jnp.ones_like, variables["params"])
    updates, _ = tx.update(grads, tx.init(grads), grads, batch_stats=state)
    np.testing.assert_allclose(
        updates["linear"]["w"][:1], jnp.sqrt(variance / variance.mean()), rtol=1e-6
    )


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, mode):
        first, last = jax.random.split(jax.random.key(0))
        self.first = eqx.nn.Linear(4, 8, key=first)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode=mode)
        self.last = eqx.nn.Linear(8, 2, key=last)

    def __call__(self, x, state):
        y, state = self.norm(self.first(x), state, inference=True)
        return self.last(jax.nn.relu(y)), state


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_equinox_models_are_linked(mode):
    model, state = eqx.nn.make_with_state(EquinoxNet)(mode)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def evaluate(variables, x):
        module = eqx.combine(variables["params"], static)
        return jax.vmap(module, (0, None), (0, None), "batch")(x, variables["state"])[0]

    variables = {"params": params, "state": state}
    links = infer_norm_links(evaluate, variables, jnp.ones((3, 4)))
    assert list(links) == ["first/weight"]
    assert links.undecided == {"last/weight": "no normalisation follows"}

    variance = jnp.arange(1.0, 9.0)
    # One entry of the state is the pair of statistics, the other counts.
    state = jax.tree.map(lambda x: variance if x.shape == (8,) else x, state)
    tx = so.scale_by_batch_variance(links, eps=0.0, dims=so.NeuronDims(1, 0))
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(grads), grads, batch_stats=state)
    np.testing.assert_allclose(
        updates.first.weight[:, 0], jnp.sqrt(variance / variance.mean()), rtol=1e-6
    )


class StackedNnx(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.vmap(lambda rngs: NnxPreActivation(rngs))(rngs.split(3))


def test_stacked_nnx_norms_have_one_statistic_a_layer():
    def scanned(graph, state, x):
        return jax.lax.scan(
            lambda x, layer_state: (nnx.merge(graph, layer_state)(x), ()), x, state
        )[0]

    def side_by_side(graph, state, x):
        return jax.vmap(lambda layer_state: nnx.merge(graph, layer_state)(x))(state)

    def unrolled(graph, state, x):
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(3)]
        return functools.reduce(
            lambda x, layer_state: nnx.merge(graph, layer_state)(x), layers, x
        )

    blocks = StackedNnx(nnx.Rngs(0)).blocks
    blocks.eval()
    graph, state = nnx.split(blocks)
    for forward in (scanned, side_by_side):
        apply_fn = functools.partial(forward, graph)
        links = infer_norm_links(apply_fn, state, jnp.ones((2, 4)))
        assert dict(links) == {"linear1/kernel": "norm2"}
    apply_fn = functools.partial(unrolled, graph)
    links = infer_norm_links(apply_fn, state, jnp.ones((2, 4)))
    assert links.undecided["linear1/kernel"] == "used 3 times"

    # Each layer's own variances scale its kernel.
    variance = jnp.arange(1.0, 13.0).reshape(3, 4)
    dims = so.NeuronDims(1, 2)
    tx = so.scale_by_batch_variance({"linear1/kernel": "norm2"}, eps=0.0, dims=dims)
    grads = {"linear1": {"kernel": jnp.ones((3, 4, 4))}}
    stats = {"norm2": {"mean": jnp.zeros((3, 4)), "var": variance}}
    updates, _ = tx.update(grads, tx.init(grads), grads, batch_stats=stats)
    expected = jnp.sqrt(variance / variance.mean(1, keepdims=True))
    np.testing.assert_allclose(updates["linear1"]["kernel"][:, 0], expected, rtol=1e-6)

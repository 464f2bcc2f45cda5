"""What is made sparse by default."""

import jax
import jax.numpy as jnp
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.layers.eligibility import is_decayed, is_matrix
from sparseopt_jax.trees import paths


@pytest.mark.parametrize(
    ("path", "shape", "dtype", "dense"),
    [
        ("Dense_0/kernel", (4, 4), "float32", ""),
        ("Conv_0/kernel", (3, 3, 4, 4), "bfloat16", ""),
        ("linear/weight", (4, 4), "float32", ""),
        ("embedding/kernel", (3, 3, 4, 4), "float32", ""),
        ("Dense_0/bias", (4,), "float32", "fewer than two dimensions"),
        ("layers/Dense_0/bias", (6, 4), "float32", "bias"),
        ("layers/LayerNorm_0/scale", (6, 4), "float32", "scale"),
        ("Embed_0/embedding", (9, 4), "float32", "embedding"),
        ("pos_embedding", (1, 9, 4), "float32", "embedding"),
        ("wte/weight", (9, 4), "float32", "embedding"),
        ("patch_embed/proj/weight", (4, 4), "float32", ""),
        ("BatchNorm_0/offset", (1, 1, 1, 4), "float32", "bias"),
        ("BatchNorm_0/gamma", (1, 1, 1, 4), "float32", "scale"),
        ("block/gamma_1", (6, 4), "float32", "scale"),
        ("block/layer_scale", (6, 4), "float32", "scale"),
        ("gru/bias_ih", (6, 4), "float32", "bias"),
        ("rnn/b_ih", (6, 4), "float32", "bias"),
        ("input_layernorm/weight", (6, 4), "float32", "scale"),
        ("norms/0/weight", (6, 4), "float32", "scale"),
        ("norm_proj/weight", (6, 4), "float32", ""),
        ("normal/weight", (6, 4), "float32", ""),
        ("cls", (1, 2, 4), "float32", "token"),
        ("mask_token", (2, 4), "float32", "token"),
        ("register_tokens", (2, 4), "float32", "token"),
        ("MAPHead_0/probe", (1, 2, 4), "float32", "token"),
        ("cls/kernel", (4, 4), "float32", ""),
        ("pos", (9, 4), "float32", "position table"),
        ("positional_encoding", (9, 4), "float32", "position table"),
        ("relative_position_bias_table", (9, 4), "float32", "position table"),
        ("position_wise_w", (9, 4), "float32", ""),
        ("ssm/A_log", (8, 4), "float32", "state-space parameter"),
        ("ssm/log_step", (8, 4), "float32", "state-space parameter"),
        ("ssm/Lambda_re", (8, 4), "float32", "state-space parameter"),
        ("ssm/B", (8, 4), "float32", ""),
        ("query/lora_a", (8, 4), "float32", "LoRA factor"),
        ("query/lora_A/kernel", (8, 4), "float32", "LoRA factor"),
        ("query/w_lora_b", (8, 4), "float32", "LoRA factor"),
        ("lora/a", (8, 4), "float32", "LoRA factor"),
        ("LoRALinear_0/kernel", (8, 4), "float32", ""),
        ("gate", (1, 8), "float32", "a single axis longer than 1"),
        ("value/kernel", (8, 1), "float32", ""),
        ("value/w", (8, 1), "float32", ""),
        ("Conv_0/kernel", (1, 1, 1, 8), "float32", ""),
        ("in_proj_weight", (1, 8), "float32", ""),
        ("Dense_0/kernel", (4, 4), "int8", "int8 is not a real floating-point dtype"),
        ("fft/kernel", (4, 4), "complex64", "complex64 is not"),
        ("Dense_0/kernel", (0, 4), "float32", "empty"),
    ],
)
def test_reasons(path, shape, dtype, dense):
    leaf = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    other = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    for part in reversed(path.split("/")):
        leaf = {part: leaf}
    plan = so.plan({"model": leaf, "other": other}, so.static(0.5))
    [row] = [row for row in plan.leaves if row.path == f"model/{path}"]
    assert row.why_dense.startswith(dense) and bool(row.why_dense) == bool(dense)


def test_where_can_only_leave_out_more():
    params = {"a": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones((4, 4))}}
    params["b"] = params["a"]
    topology = so.static(0.5, where=lambda path, leaf: path.startswith("a/"))
    reasons = {leaf.path: leaf.why_dense for leaf in topology.leaves(params)}
    assert reasons == {
        "a/bias": "bias",
        "a/kernel": "",
        "b/bias": "bias",
        "b/kernel": "excluded by where",
    }


def test_decay_spares_vectors_biases_and_scales():
    matrix, vector = jnp.ones((2, 2)), jnp.ones(2)
    assert is_decayed("a/kernel", matrix)
    assert is_decayed("Embed_0/embedding", matrix)
    assert not is_decayed("a/kernel", vector)
    assert not is_decayed("layers/bias", matrix)
    assert not is_decayed("layers/scale", matrix)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 3), "bfloat16", True),
        ((3, 3, 2, 4), "float32", True),
        ((3,), "float32", False),
        ((), "float32", False),
        ((2, 3), "int32", False),
        ((2, 3), "complex64", False),
    ],
)
def test_a_matrix_has_two_real_dimensions(shape, dtype, expected):
    assert is_matrix(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))) == expected
    assert is_matrix(jnp.zeros(shape, dtype)) == expected


STACK = {
    "mlp": {"w1": (6, 8, 4), "b1": (6, 4), "w2": (6, 4, 8), "b2": (6, 8)},
    "experts": {"wi": (6, 8, 4), "bi": (6, 4), "wo": (6, 4, 8), "bo": (6, 8)},
    "attention": {"W_Q": (6, 8, 4), "b_Q": (6, 4)},
    "down": {"down_w": (6, 8, 4), "down_b": (6, 4)},
    "s4": {"A_log": (8, 4), "D": (6, 8), "C": (8, 4)},
    "factors": {"w": (8, 8), "a": (8, 4), "b": (4, 8)},
}


def test_neighbours_tell_stacked_biases():
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        STACK,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    leaves = so.static(0.5, distribution={}).leaves(params)
    assert {leaf.path for leaf in leaves if leaf.layer} == {
        *("mlp/w1", "mlp/w2", "experts/wi", "experts/wo", "attention/W_Q"),
        *("down/down_w", "s4/C", "factors/w", "factors/a", "factors/b"),
    }


TIED = {
    "embed": {"embedding": jnp.ones((16, 8)), "bias": jnp.ones(8)},
    "head": {"kernel": jnp.ones((8, 4))},
    "norm": {"scale": jnp.ones((3, 8))},
    "count": jnp.zeros((4, 4), jnp.int32),
}
TOPOLOGIES = {
    "static": so.static,
    "set_": lambda *args, **kwargs: so.set_(*args, every=1, stop=9, **kwargs),
    "rigl": lambda *args, **kwargs: so.rigl(*args, every=1, stop=9, **kwargs),
    "srigl": lambda *args, **kwargs: so.srigl(*args, every=1, stop=9, **kwargs),
    "mest": lambda *args, **kwargs: so.mest(*args, every=1, stop=9, **kwargs),
    "snfs": lambda *args, **kwargs: so.snfs(*args, every=1, stop=9, **kwargs),
    "set_itop": lambda *args, **kwargs: so.set_itop(*args, stop=9000, **kwargs),
    "rigl_itop": lambda *args, **kwargs: so.rigl_itop(*args, stop=9000, **kwargs),
    "set_smet": lambda *args, **kwargs: so.set_smet(*args, stop=9000, **kwargs),
    "one_shot": lambda *args, **kwargs: so.one_shot(*args, at=3, **kwargs),
    "gradual_magnitude": lambda *args, **kwargs: so.gradual_magnitude(
        *args, every=1, stop=9, **kwargs
    ),
    "granet": lambda *args, **kwargs: so.granet(*args, every=1, stop=9, **kwargs),
    "ac_dc": lambda *args, **kwargs: so.ac_dc(
        *args, compress=[1, 3], decompress=[2], **kwargs
    ),
    "ste": so.ste,
    "sr_ste": so.sr_ste,
    "top_kast": lambda *args, **kwargs: so.top_kast(
        *args, trained_sparsity=0.25, **kwargs
    ),
}


def sparse(topology):
    state = so.sparsify(optax.sgd(0.1), topology).init(TIED)
    masks = paths.leaves_by_path(so.get_masks(state))
    return {path for path, leaf in masks.items()}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_include_makes_sparse_what_a_name_left_dense(name):
    make = TOPOLOGIES[name]
    both = {"embed/embedding", "head/kernel"}
    assert sparse(make(0.5)) == {"head/kernel"}
    assert sparse(make(0.5, include="embed/*")) == both
    assert sparse(make(0.5, include=["*embedding", "norm/*"])) == {*both, "norm/scale"}
    assert sparse(make(0.5, include=lambda path, leaf: leaf.ndim == 2)) == {
        *(both | {"norm/scale"})
    }
    only = make(0.5, include="embed/*", where=lambda path, leaf: path < "head")
    assert sparse(only) == {"embed/embedding"}


def test_the_plan_names_the_remedy():
    plan = str(so.plan(TIED, so.static(0.5)))
    assert "include='embed/embedding', or a glob, makes sparse" in plan
    assert "include" not in str(so.plan(TIED, so.static(0.5, include="embed/*")))
    assert "include" not in str(so.plan({"w": jnp.ones((4, 4))}, so.static(0.5)))


def choosers():
    return [
        lambda include: so.static(0.5, include=include).leaves(TIED),
        lambda include: so.prune(TIED, sparsity=0.5, include=include),
        lambda include: so.str_(include=include).init(TIED),
    ]


def test_include_in_pruning_and_thresholds():
    pruned = so.prune(TIED, sparsity=0.5, include="embed/*")
    assert int(pruned.masks["embed"]["embedding"].sum()) == 64
    variables = {"params": TIED, "batch_stats": TIED}
    pruned = so.prune(variables, sparsity=0.5, include="*/embedding")
    assert pruned.masks["params"]["embed"]["embedding"].sum() == 64
    assert pruned.masks["batch_stats"]["embed"]["embedding"] == optax.MaskedNode()
    thresholds = so.str_(include=["embed/*"]).init(TIED)
    assert thresholds["embed"]["embedding"].shape == (1, 1)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("include", "error", "message"),
    [
        ("embd/*", ValueError, r"include: the pattern 'embd/\*' matches no leaf"),
        (["embed/*", "nothing"], ValueError, "include: the pattern 'nothing' matches"),
        (
            lambda path, leaf: False,
            ValueError,
            "include selects no leaf; the paths are",
        ),
        ("count", ValueError, "can never be sparse .count: int32 is not a real"),
        (
            ["embed/*", "embed/bias"],
            *(ValueError, "'embed/bias' selects only .*embed/bias: fewer than two dim"),
        ),
        (
            lambda path, leaf: path == "count",
            *(
                ValueError,
                "the function selects only leaves that can never be sparse .count",
            ),
        ),
        (3, TypeError, "include must be a glob over paths, .*got 3"),
        ([1], TypeError, "include must be a glob"),
        (lambda path: True, TypeError, r"include must be .* include\(path, leaf\)"),
    ],
)
def test_an_include_that_does_nothing_is_told(include, error, message, number):
    with pytest.raises(error, match=message):
        choosers()[number](include)


def test_topologies_with_the_same_include_are_equal():
    assert so.static(0.5, include=["a", "b"]) == so.static(0.5, include=("a", "b"))
    assert so.static(0.5, include="a") == so.static(0.5, include=["a"])

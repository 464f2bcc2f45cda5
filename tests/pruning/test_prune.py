"""One-shot pruning: masks worked by hand, and what the methods promise and refuse."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

import sparseopt_jax as so
from sparseopt_jax.layers.structures import (
    NM,
    Block,
    Channel,
    ConstantFanIn,
    Unstructured,
)
from sparseopt_jax.pruning.prune import Pruned
from sparseopt_jax.pruning.sparsegpt import SparseGPT

KEY = jax.random.key(0)


def draw(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def dense(params, x):
    return x @ params["kernel"]


def calibrated(kernel, x, **kwargs):
    return so.calibrate(dense, {"kernel": kernel}, [x], **kwargs)


def bits(rows):
    return np.array(rows, bool)


def test_magnitude_by_hand():
    kernel = jnp.array([[1.0, -5.0], [4.0, 2.0], [-3.0, 0.5]])
    pruned = so.prune({"kernel": kernel, "bias": jnp.ones(2)}, sparsity=0.5)
    assert isinstance(pruned, Pruned)
    expected = bits([[0, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(pruned.masks["kernel"], expected)
    np.testing.assert_array_equal(pruned.params["kernel"], kernel * expected)
    assert pruned.masks["bias"] == optax.MaskedNode()
    np.testing.assert_array_equal(pruned.params["bias"], 1)


def test_saliency_by_hand():
    params = {"kernel": jnp.array([[1.0, -5.0], [4.0, 2.0]])}
    grads = {"kernel": jnp.array([[-9.0, 1.0], [1.0, 3.0]])}
    # |w g| = 9 5 / 4 6
    pruned = so.prune(params, "saliency", sparsity=0.5, grads=grads)
    np.testing.assert_array_equal(pruned.masks["kernel"], bits([[1, 0], [0, 1]]))


def test_wanda_by_hand():
    # ||x|| = 5, 1, 2. |w| ||x|| of the first neuron: 5 3 4, of the second: 30 4 2.
    kernel = jnp.array([[1.0, -6.0], [-3.0, 4.0], [2.0, 1.0]])
    x = jnp.array([[3.0, 0.0, 0.0], [4.0, 1.0, 2.0]])
    calibration = calibrated(kernel, x, gram=False)
    params = {"kernel": kernel}
    by_neuron = so.prune(params, "wanda", sparsity=1 / 3, calibration=calibration)
    np.testing.assert_array_equal(
        by_neuron.masks["kernel"], bits([[1, 1], [0, 1], [1, 0]])
    )
    by_layer = so.prune(
        params,
        "wanda",
        sparsity=0.5,
        structure=Unstructured(),
        calibration=calibration,
    )
    # 30, 5, and of 4 and 4 the first.
    np.testing.assert_array_equal(
        by_layer.masks["kernel"], bits([[1, 1], [0, 1], [0, 0]])
    )


def test_wanda_sees_the_neurons_that_the_model_sees():
    # A query kernel (features, heads, head_dim): the convention would treat the heads
    # as inputs, and expect six times as many norms.
    x = draw((9, 4)) * jnp.array([1.0, 10.0, 0.1, 3.0])
    params = {"query": {"kernel": draw((4, 2, 3), 1)}}

    def apply(params, x):
        return jnp.einsum("bi,ihd->bhd", x, params["query"]["kernel"])

    calibration = so.calibrate(apply, params, [x])
    pruned = so.prune(params, "wanda", sparsity=0.5, calibration=calibration)
    mask = np.asarray(pruned.masks["query"]["kernel"])
    assert (mask.sum(0) == 2).all()
    norm = np.sqrt((np.asarray(x) ** 2).sum(0))[:, None, None]
    score = np.abs(params["query"]["kernel"]) * norm
    for head in range(2):
        for d in range(3):
            active = mask[:, head, d]
            assert score[active, head, d].min() > score[~active, head, d].max()
    explicit = {"query/*": so.NeuronDims(0, (1, 2))}
    again = so.prune(
        params, "wanda", sparsity=0.5, calibration=calibration, dims=explicit
    )
    np.testing.assert_array_equal(again.masks["query"]["kernel"], mask)
    with pytest.raises(
        ValueError, match=r"neurons of 'query/kernel'.*\(0, 1\).*\(0,\)"
    ):
        so.prune(
            params,
            "wanda",
            sparsity=0.5,
            calibration=calibration,
            dims=so.NeuronDims((0, 1), 2),
        )


def test_a_calibration_is_compared_with_dims_whatever_the_method():
    params = {"w": draw((3, 4))}
    calibration = so.calibrate(lambda p, x: x @ p["w"].T, params, [draw((5, 4))])
    assert calibration.dims["w"] == so.NeuronDims(1, 0)
    given = {"structure": so.ConstantFanIn(), "calibration": calibration}
    pruned = so.prune(params, sparsity=0.5, **given)
    assert (pruned.masks["w"].sum(1) == 2).all()
    with pytest.raises(ValueError, match="in the model they sum over"):
        so.prune(params, sparsity=0.5, dims=so.NeuronDims(0, 1), **given)
    with pytest.raises(ValueError, match="was made with shape"):
        so.prune({"w": draw((4, 4))}, sparsity=0.5, **given)
    # To continue training, with the same axes.
    topology = so.static(masks=pruned.masks, dims=calibration.dims)
    state = so.sparsify(optax.sgd(0.1), topology).init(params)
    assert state.topology_state.fan_ins["w"].ravel().tolist() == [2, 2, 2]


def test_random_is_the_same_for_a_key_and_another_for_another():
    params = {"a": {"kernel": draw((20, 10))}, "b": {"kernel": draw((20, 10), 1)}}
    masks = [
        so.prune(params, "random", sparsity=0.75, key=key).masks
        for key in (0, jax.random.key(0), 1)
    ]
    kernels = [m[name]["kernel"] for m in masks for name in "ab"]
    assert all(int(kernel.sum()) == 50 for kernel in kernels)
    np.testing.assert_array_equal(kernels[0], kernels[2])
    assert (kernels[0] != kernels[4]).any() and (kernels[0] != kernels[1]).any()


def test_every_layer_has_the_sparsity_unless_a_distribution_says_otherwise():
    params = {"first": draw((3, 8)), "second": draw((8, 50), 1)}

    def active(**kwargs):
        masks = so.prune(params, sparsity=0.75, **kwargs).masks
        return [int(mask.sum()) for mask in jax.tree.leaves(masks)]

    assert active() == [6, 100]
    assert active(distribution={"first": 0.5}) == [12, 100]
    assert active(distribution="uniform") == [24, 100]
    assert active(where=lambda path, leaf: path == "second") == [100]
    counts = active(distribution="erdos_renyi")
    assert sum(counts) == 106 and counts != [6, 100]


def test_global_compares_all_layers():
    params = {"w1": jnp.array([[1.0, 9.0], [2.0, 8.0]]), "w2": jnp.array([[3.0, 0.5]])}
    pruned = so.prune(params, sparsity=0.5, scope="global")
    np.testing.assert_array_equal(pruned.masks["w1"], bits([[0, 1], [0, 1]]))
    np.testing.assert_array_equal(pruned.masks["w2"], bits([[1, 0]]))
    params["w2"] /= 100
    with pytest.raises(ValueError, match="leave no weights in w2: lower it"):
        so.prune(params, sparsity=0.5, scope="global")


def test_global_leaves_weights_in_every_layer_of_a_stack():
    params = {"w": jnp.stack([jnp.full((2, 2), 0.1), jnp.ones((2, 2))])}
    stack = {"scope": "global", "dims": so.NeuronDims(1, 2)}
    pruned = so.prune(params, sparsity=0.25, **stack)
    np.testing.assert_array_equal(pruned.masks["w"].sum((1, 2)), [2, 4])
    with pytest.raises(ValueError, match=r"leave no weights in w\[0\]: lower it"):
        so.prune(params, sparsity=0.5, **stack)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "saliency", "random"])
def test_structures(method):
    kernel = draw((8, 8))
    x = draw((20, 8), 1)
    options = {"calibration": calibrated(kernel, x), "grads": {"kernel": kernel}}

    def mask(structure, sparsity=None):
        return np.asarray(
            so.prune(
                {"kernel": kernel},
                method,
                sparsity=sparsity,
                structure=structure,
                **options,
            ).masks["kernel"]
        )

    assert (mask(NM(2, 4)).reshape(2, 4, 8).sum(1) == 2).all()
    assert (mask(NM(1, 4, axis=1)).reshape(8, 2, 4).sum(2) == 1).all()
    assert (mask(ConstantFanIn(), 0.75).sum(0) == 2).all()
    blocks = mask(Block((2, 4)), 0.75).reshape(4, 2, 2, 4)
    assert (blocks.all((1, 3)) == blocks.any((1, 3))).all() and blocks.sum() == 16
    channels = mask(Channel(), 0.5)
    assert (channels.all(0) == channels.any(0)).all() and channels.sum() == 32
    with pytest.raises(ValueError, match="leave sparsity out"):
        mask(NM(2, 4), 0.9)


# SparseGPT.


def obs_by_hand(w, x, kept, block, damping=0.01):
    """Take the published steps in double precision, with a new inverse Hessian each.

    ``kept`` returns the weights that stay in each block.
    """
    w, x = np.array(w, np.float64), np.asarray(x, np.float64)
    fan_in, neurons = w.shape
    h = 2 * x.T @ x
    h += damping * np.diag(h).mean() * np.eye(fan_in)
    inverse = [np.linalg.inv(h[j:, j:]) for j in range(fan_in)]
    mask = np.zeros(w.shape, bool)
    for b, start in enumerate(range(0, fan_in, block)):
        end = min(start + block, fan_in)
        score = np.stack([w[j] ** 2 / inverse[j][0, 0] for j in range(start, end)])
        best = np.argsort(-score, axis=None)[: kept[b]]
        mask[start:end] = np.isin(np.arange(score.size), best).reshape(score.shape)
        for j in range(start, end):
            for r in range(neurons):
                if not mask[j, r]:
                    w[j:, r] -= w[j, r] / inverse[j][0, 0] * inverse[j][0]
    return np.where(mask, w, 0), mask


def correlated(samples, fan_in, seed=0):
    mix = draw((fan_in, fan_in), seed + 100) / np.sqrt(fan_in)
    x = draw((samples, fan_in), seed) @ mix * jnp.exp(draw((fan_in,), seed + 200))
    return x + 0.3


@pytest.mark.parametrize(("block", "kept"), [(4, [10, 10, 10]), (5, [12, 13, 5])])
def test_sparsegpt_is_the_published_algorithm(block, kept):
    kernel, x = draw((12, 5)), correlated(200, 12)
    expected, mask = obs_by_hand(kernel, x, kept, block)
    pruned = so.prune(
        {"kernel": kernel},
        SparseGPT(block_size=block),
        sparsity=0.5,
        calibration=calibrated(kernel, x),
    )
    np.testing.assert_array_equal(pruned.masks["kernel"], mask)
    np.testing.assert_allclose(pruned.params["kernel"], expected, rtol=1e-3, atol=1e-4)


def test_one_weight_is_removed_as_the_optimal_brain_surgeon_does():
    # One input at a time, one neuron, one weight to drop: the remaining weights are the
    # least-squares solution without it.
    x = correlated(100, 3)
    kernel = jnp.array([[0.001], [2.0], [-1.0]])
    pruned = so.prune(
        {"kernel": kernel},
        SparseGPT(damping=1e-6),
        sparsity=1 / 3,
        calibration=calibrated(kernel, x),
    )
    best = np.linalg.lstsq(np.asarray(x)[:, 1:], np.asarray(x @ kernel), rcond=None)[0]
    np.testing.assert_allclose(pruned.params["kernel"][1:], best, rtol=1e-3)
    assert not pruned.masks["kernel"][0]


def error_of(x, kernel, pruned):
    difference = np.asarray(x, np.float64) @ np.asarray(kernel - pruned, np.float64)
    return (difference**2).sum()


@pytest.mark.parametrize("structure", [None, NM(2, 4), ConstantFanIn()])
def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(structure):
    kernel, x = draw((64, 32)), correlated(400, 64)
    calibration = calibrated(kernel, x)
    errors = [
        error_of(
            x,
            kernel,
            so.prune(
                {"kernel": kernel},
                method,
                sparsity=0.5,
                structure=structure,
                calibration=calibration,
            ).params["kernel"],
        )
        for method in (SparseGPT(block_size=16), "wanda", "magnitude")
    ]
    assert errors[0] < 0.7 * errors[1] < 0.7 * 0.9 * errors[2]


def test_sparsegpt_makes_legal_groups_along_any_input_axis():
    images = draw((4, 6, 6, 8))
    model = nn.Conv(6, (3, 4), use_bias=False)
    params = model.init(KEY, images)["params"]
    calibration = so.calibrate(
        lambda p, x: model.apply({"params": p}, x), params, [images]
    )
    for axis, block in ((None, 128), (1, 16), (2, 6)):
        pruned = so.prune(
            params,
            SparseGPT(block_size=block),
            structure=NM(1, 4, axis=axis),
            calibration=calibration,
        )
        mask = np.asarray(pruned.masks["kernel"])
        group_axis = 2 if axis is None else axis
        groups = np.moveaxis(mask, group_axis, -1).reshape(-1, 4)
        assert (groups.sum(-1) == 1).all()
        kernel = np.asarray(pruned.params["kernel"])
        assert not kernel[~mask].any() and kernel[mask].all()
    for structure in (NM(2, 3, axis=3), Block(2), Channel()):
        with pytest.raises(ValueError, match="sparsegpt prunes along the inputs"):
            so.prune(
                params,
                "sparsegpt",
                sparsity=None if isinstance(structure, NM) else 0.5,
                structure=structure,
                calibration=calibration,
            )


def test_sparsegpt_prunes_groups_and_stacked_layers_by_themselves():
    images = draw((4, 6, 6, 6))
    params = {"conv": {"kernel": draw((3, 3, 2, 9), 1)}, "stack": draw((2, 6, 5), 2)}

    def apply(params, x):
        grouped = jax.lax.conv_general_dilated(
            x,
            params["conv"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )
        stack = jnp.stack([x, jnp.square(x)])
        return grouped, jnp.einsum("sbhwi,sio->sbhwo", stack, params["stack"])

    calibration = so.calibrate(apply, params, [images])
    pruned = so.prune(params, "sparsegpt", sparsity=0.5, calibration=calibration)
    assert int(pruned.masks["conv"]["kernel"].sum()) == 81
    np.testing.assert_array_equal(pruned.masks["stack"].sum((1, 2)), 15)
    # Separate parts are pruned as if they were alone: a layer of a stack, a group.
    group = params["conv"]["kernel"][..., 3:6]
    second = so.calibrate(
        lambda p, x: jax.lax.conv_general_dilated(
            x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        {"kernel": group},
        [images[..., 2:4]],
    )
    layer = params["stack"][1]
    squares = calibrated(layer, jnp.square(images).reshape(-1, 6))
    for kernel, inputs, expected in (
        (layer, squares, pruned.params["stack"][1]),
        (group, second, pruned.params["conv"]["kernel"][..., 3:6]),
    ):
        alone = so.prune(
            {"kernel": kernel}, "sparsegpt", sparsity=0.5, calibration=inputs
        )
        np.testing.assert_allclose(
            alone.params["kernel"], expected, rtol=1e-3, atol=1e-5
        )


def test_sparsegpt_with_inputs_that_are_always_zero():
    kernel, x = draw((8, 4)), correlated(50, 8).at[:, (2, 5)].set(0)
    pruned = so.prune(
        {"kernel": kernel},
        "sparsegpt",
        sparsity=0.25,
        calibration=calibrated(kernel, x),
    )
    np.testing.assert_array_equal(pruned.masks["kernel"].sum(1)[jnp.array([2, 5])], 0)
    np.testing.assert_allclose(x @ pruned.params["kernel"], x @ kernel, atol=1e-3)
    nothing = so.prune(
        {"kernel": kernel},
        "sparsegpt",
        sparsity=0.25,
        calibration=calibrated(kernel, jnp.zeros((3, 8))),
    )
    assert int(nothing.masks["kernel"].sum()) == 24


def test_sparsegpt_with_fewer_samples_than_inputs():
    kernel, x = draw((32, 8)), correlated(5, 32)
    pruned = so.prune(
        {"kernel": kernel},
        "sparsegpt",
        sparsity=0.5,
        calibration=calibrated(kernel, x),
    )
    assert error_of(x, kernel, pruned.params["kernel"]) < 1e-2 * error_of(x, kernel, 0)


def test_sparsegpt_keeps_the_digits_of_weights_that_it_does_not_update():
    kernel = np.random.default_rng(0).normal(size=(8, 6))
    calibration = calibrated(jnp.asarray(kernel, jnp.float32), correlated(40, 8))

    def pruned(kernel, sparsity):
        return so.prune(
            {"kernel": kernel}, "sparsegpt", sparsity=sparsity, calibration=calibration
        )

    half = pruned(kernel, 0.5)
    # The first input has no earlier one to compensate for.
    first = np.where(half.masks["kernel"][0], kernel[0], 0)
    np.testing.assert_array_equal(half.params["kernel"][0], first)
    np.testing.assert_array_equal(pruned(kernel, 0.0).params["kernel"], kernel)
    with jax.enable_x64(True):
        whole = pruned(jnp.asarray(kernel), 0.0).params["kernel"]
        assert whole.dtype == jnp.float64
        np.testing.assert_array_equal(whole, kernel)
        wide = pruned(jnp.asarray(kernel), 0.5)
    for found, expected in zip(wide, half, strict=True):
        np.testing.assert_array_equal(found["kernel"], expected["kernel"])


def test_sparsegpt_refuses_weights_beyond_the_range_of_their_type():
    # Two equal inputs: the weight that stays takes over the other one.
    x = jnp.ones((4, 2))
    kernel = jnp.full((2, 1), 6e4, jnp.float16)
    calibration = calibrated(kernel, x)
    for leaf in (kernel, np.asarray(kernel)):
        with pytest.raises(ValueError, match="'kernel' exceed the range of float16"):
            so.prune(
                {"kernel": leaf}, "sparsegpt", sparsity=0.5, calibration=calibration
            )


# Any container of parameters.


@pytest.mark.parametrize("method", ["magnitude", "random", "wanda", "sparsegpt"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
def test_numpy_leaves_stay(method, dtype):
    draw = np.random.default_rng(1)
    params = {"kernel": draw.normal(size=(8, 6)).astype(dtype), "bias": np.ones(6)}
    x = jnp.asarray(draw.normal(size=(20, 8)), jnp.float32)
    calibration = so.calibrate(lambda p, x: x @ p["kernel"], params, [x])
    pruned = so.prune(params, method, sparsity=0.5, calibration=calibration)
    refined = so.dsnot(*pruned, calibration, params)
    for found, mask in ((pruned.params, pruned.masks), (refined.params, refined.masks)):
        kernel, mask = found["kernel"], np.asarray(mask["kernel"])
        assert isinstance(kernel, np.ndarray) and kernel.dtype == dtype
        assert found["bias"] is params["bias"]
        assert not kernel[~mask].any()
        if method != "sparsegpt":
            np.testing.assert_array_equal(kernel[mask], params["kernel"][mask])


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_containers_and_types_are_kept(method, dtype):
    x = draw((20, 8))
    kernel, bias = draw((8, 6)).astype(dtype), jnp.ones(6, dtype)
    for make, get in (
        (Pair, lambda p: p.kernel),
        (lambda k, b: freeze({"kernel": k, "bias": b}), lambda p: p["kernel"]),
        (lambda k, b: [k, (b,)], lambda p: p[0]),
        (
            lambda k, b: {"kernel": nn.Partitioned(k, names=(None, None)), "bias": b},
            lambda p: p["kernel"].value,
        ),
    ):
        params = make(kernel, bias)
        calibration = so.calibrate(lambda p, x, get=get: x @ get(p), params, [x])
        pruned = so.prune(params, method, sparsity=0.5, calibration=calibration)
        assert jax.tree.structure(pruned.params) == jax.tree.structure(params)
        assert get(pruned.params).dtype == dtype
        mask = np.asarray(get(pruned.masks))
        assert mask.dtype == bool and mask.sum() == 24
        assert not np.asarray(get(pruned.params))[~mask].any()
        tx = so.sparsify(optax.sgd(0.1), so.static(masks=pruned.masks))
        state = tx.init(pruned.params)
        updates, _ = tx.update(params, state, pruned.params)
        tuned = get(optax.apply_updates(pruned.params, updates))
        assert not np.asarray(tuned)[~mask].any() and np.asarray(tuned)[mask].any()


def test_all_variables_of_a_linen_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(16)(x)
            return nn.Dense(4)(nn.relu(nn.BatchNorm(use_running_average=True)(x)))

    model, x = Model(), draw((20, 8))
    variables = model.init(KEY, x)
    variables["batch_stats"]["stacked"] = jnp.ones((4, 4))
    calibration = so.calibrate(model.apply, variables, [x])
    for method in ("wanda", "sparsegpt"):
        whole = so.prune(variables, method, sparsity=0.5, calibration=calibration)
        part = so.prune(
            variables["params"], method, sparsity=0.5, calibration=calibration
        )
        jax.tree.map(np.testing.assert_array_equal, whole.params["params"], part.params)
        assert whole.masks["batch_stats"]["stacked"] == optax.MaskedNode()
        assert model.apply(whole.params, x).shape == (20, 4)
        refined = so.dsnot(*whole, calibration, variables)
        again = so.dsnot(*part, calibration, variables["params"])
        jax.tree.map(
            np.testing.assert_array_equal, refined.masks["params"], again.masks
        )


def test_nnx():
    model = nnx.Sequential(
        nnx.Linear(8, 16, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(16, 4, rngs=nnx.Rngs(1)),
    )
    x = draw((20, 8))
    graphdef, state = nnx.split(model)
    calibration = so.calibrate(lambda s, x: nnx.merge(graphdef, s)(x), state, [x])
    params = nnx.state(model, nnx.Param)
    pruned = so.prune(params, "sparsegpt", sparsity=0.5, calibration=calibration)
    assert isinstance(pruned.params, nnx.State)
    refined = so.dsnot(*pruned, calibration, params)
    assert isinstance(refined.params, nnx.State)
    nnx.update(model, refined.params)
    tx = so.sparse_sgd(0.1, so.static(masks=refined.masks))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda model: (model(x) ** 2).sum())(model)
    optimizer.update(model, grads)
    for index, layer in ((0, model.layers[0]), (2, model.layers[2])):
        mask = np.asarray(refined.masks["layers"][index]["kernel"])
        kernel = np.asarray(layer.kernel[...])
        assert mask.sum() == mask.size / 2 and not kernel[~mask].any()


def test_fine_tuning_moves_on_from_the_masks():
    params = {"kernel": draw((8, 8))}
    pruned = so.prune(params, sparsity=0.75)
    topology = so.rigl(masks=pruned.masks, every=2, stop=10)
    tx = so.sparse_sgd(0.1, topology)
    state = tx.init(pruned.params)
    np.testing.assert_array_equal(so.get_masks(state)["kernel"], pruned.masks["kernel"])


def test_numpy_arrays():
    kernel, x = np.asarray(draw((8, 4))), np.asarray(draw((20, 8), 1))
    params = {"kernel": kernel}
    calibration = calibrated(kernel, x)
    for method in ("magnitude", "random", "wanda", "sparsegpt"):
        pruned = so.prune(params, method, sparsity=0.5, calibration=calibration)
        assert int(pruned.masks["kernel"].sum()) == 16
        refined = so.dsnot(*pruned, calibration, params)
        assert int(refined.masks["kernel"].sum()) == 16


def test_sparsity_zero_changes_nothing():
    kernel, x = draw((8, 4)), draw((20, 8), 1)
    calibration = calibrated(kernel, x)
    for method in ("magnitude", "wanda", "sparsegpt"):
        pruned = so.prune(
            {"kernel": kernel}, method, sparsity=0.0, calibration=calibration
        )
        np.testing.assert_array_equal(pruned.params["kernel"], kernel)


# What is refused.


def test_what_it_refuses():
    kernel, x = draw((8, 4)), draw((20, 8), 1)
    params = {"kernel": kernel}
    calibration = calibrated(kernel, x, gram=False)

    def refuses(match, *args, error=ValueError, tree=params, sparsity=0.5, **kwargs):
        with pytest.raises(error, match=match):
            so.prune(tree, *args, sparsity=sparsity, **kwargs)

    refuses(
        "method must be one of magnitude, .* or a so.SparseGPT, got 'wonda'", "wonda"
    )
    refuses(r"wanda needs statistics .* pass calibration=so\.calibrate", "wanda")
    refuses("sparsegpt needs statistics", "sparsegpt")
    refuses("saliency needs the gradient", "saliency")
    refuses("calibrate with gram=True", "sparsegpt", calibration=calibration)
    refuses(r"sparsity must be in \[0, 1\), got 1\.5", sparsity=1.5)
    refuses("sparsity must be given", sparsity=None)
    refuses("the result of so.calibrate", calibration={}, error=TypeError)
    refuses("structure must be", structure="2:4", error=TypeError)
    refuses("where must be a function", where="kernel", error=TypeError)
    refuses("distribution must be one of", distribution="equal")
    refuses("params must hold arrays", tree={})
    refuses("'global' ranks single", scope="global", structure=NM(2, 4))
    refuses("omit distribution", scope="global", distribution="uniform")
    refuses("pass scope='global'", distribution="global")
    refuses("scope must be 'layer' or 'global', got 'all'", scope="all")
    refuses(
        "'kernel' with shape .8, 4. they hold shape .4, 8.",
        "saliency",
        grads={"kernel": kernel.T},
    )
    refuses("they hold nothing", "saliency", grads={})
    other = {"other": kernel}
    refuses(
        "inputs of 'other': calibrate found no such kernel; statistics exist for "
        "kernel",
        "wanda",
        tree=other,
        calibration=calibration,
    )
    refuses(
        r"'kernel' was made with shape \(8, 4\), but the parameter has shape \(4, 8\)",
        "wanda",
        tree={"kernel": kernel.T},
        calibration=calibration,
    )
    unseen = so.calibrate(
        lambda p, x: x @ (2 * p["other"]) + x @ p["kernel"], params | other, [x]
    )
    refuses("'other': passes through mul", "wanda", tree=other, calibration=unseen)
    for options in ({"damping": 0.0}, {"block_size": 0}, {"block_size": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SparseGPT(**options)
    for number in (jnp.nan, jnp.inf, 3e20):
        broken = calibrated(kernel, x.at[0, 0].set(number))
        for method in ("wanda", "sparsegpt"):
            message = f"{method}: .* inputs of 'kernel' are not finite"
            refuses(message, method, calibration=broken)
        grads = {"kernel": kernel.at[0, 0].set(jnp.float32(number) * 1e20)}
        refuses("at 'kernel' some are NaN or infinite", "saliency", grads=grads)
    nothing = calibrated(kernel, x[:0])
    refuses("'kernel' come from no samples", "wanda", calibration=nothing)
    infinite = {"kernel": kernel.at[0, 0].set(jnp.nan)}
    refuses(
        "H of 'kernel' is not positive",
        "sparsegpt",
        tree=infinite,
        calibration=calibrated(kernel, x),
    )


@pytest.mark.parametrize("method", ["magnitude", "wanda", "saliency"])
def test_nan_weights_are_removed_first(method):
    kernel, x = draw((8, 4)).at[3].set(jnp.nan), draw((5, 8), 1)
    pruned = so.prune(
        {"kernel": kernel},
        method,
        sparsity=1 / 8,
        calibration=calibrated(kernel, x),
        grads={"kernel": jnp.ones((8, 4))},
    )
    np.testing.assert_array_equal(pruned.masks["kernel"].sum(1) == 0, np.arange(8) == 3)
    assert np.isfinite(pruned.params["kernel"]).all()

"""SparseOpt against a loop over neurons, and its effect by place in the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

KEY = jax.random.key(0)

# name, kernel shape, dims, batch axes, reduction axes, output axes
KERNELS = [
    ("dense", (7, 5), None, (), (0,), (1,)),
    ("conv", (3, 3, 4, 6), None, (), (0, 1, 2), (3,)),
    # 8 input channels in 4 groups: Flax holds 8 / 4 inputs per neuron
    ("grouped conv", (3, 3, 2, 8), None, (), (0, 1, 2), (3,)),
    ("scanned stack", (3, 7, 5), so.NeuronDims(1, 2), (0,), (1,), (2,)),
    ("attention query", (6, 2, 4), so.NeuronDims(0, (1, 2)), (), (0,), (1, 2)),
    ("attention output", (2, 4, 6), so.NeuronDims((0, 1), 2), (), (0, 1), (2,)),
    ("transposed", (5, 7), so.NeuronDims(1, 0), (), (1,), (0,)),
    ("vmapped experts", (2, 3, 4, 5), so.NeuronDims(-2, -1), (0, 1), (2,), (3,)),
]


def by_loop(grad, mask, batch, reduction, output):
    """Apply the paper's rule, one neuron at a time, in float64."""
    grad, mask = np.asarray(grad, np.float64), np.asarray(mask)
    result = np.zeros_like(grad)
    sizes = lambda axes: [grad.shape[a] for a in axes]  # noqa: E731
    for layer in np.ndindex(*sizes(batch)):
        neurons = []
        for neuron in np.ndindex(*sizes(output)):
            place = [slice(None)] * grad.ndim
            for a, i in zip((*batch, *output), (*layer, *neuron), strict=True):
                place[a] = i
            fan_in, fan_in_dense = mask[tuple(place)].sum(), mask[tuple(place)].size
            neurons.append((tuple(place), 1 - fan_in / fan_in_dense))
        s_avg = np.mean([s for _, s in neurons])
        for place, s in neurons:
            factor = np.sqrt(1 - s) / np.sqrt(1 - s_avg) if s_avg < 1 else 0.0
            result[place] = factor * grad[place] * mask[place]
    return result


def corrected(grad, mask, dims=None):
    tx = so.sparsify(so.scale_by_sparseopt(dims=dims), so.static(masks={"w": mask}))
    params = {"w": jnp.zeros_like(grad)}
    updates, _ = tx.update({"w": grad}, tx.init(params), params)
    return updates["w"]


@pytest.mark.parametrize(
    ("shape", "dims", "batch", "reduction", "output"),
    [kernel[1:] for kernel in KERNELS],
    ids=[kernel[0] for kernel in KERNELS],
)
def test_equals_a_loop_over_neurons(shape, dims, batch, reduction, output):
    mask = jax.random.bernoulli(KEY, 0.3, shape)
    grad = jax.random.normal(KEY, shape)
    expected = by_loop(grad, mask, batch, reduction, output)
    np.testing.assert_allclose(corrected(grad, mask, dims), expected, rtol=2e-6)
    # The topology's dims apply if the correction has none of its own.
    tx = so.sparsify(so.scale_by_sparseopt(), so.static(masks={"w": mask}, dims=dims))
    params = {"w": jnp.zeros(shape)}
    updates, _ = tx.update({"w": grad}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], expected, rtol=2e-6)


def test_by_hand():
    # Fan-ins 4, 2, 0 of 4: 1 - s_i = 1, 1/2, 0; s_avg = 1/2.
    mask = jnp.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
    grad = jnp.full((4, 3), 3.0)
    expected = jnp.where(mask, jnp.array([3 * 2**0.5, 3.0, 0.0]), 0.0)
    np.testing.assert_allclose(corrected(grad, mask), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", [(5, 3), (7, 11), (3, 3, 5, 7)])
def test_constant_fan_in_is_the_identity_bit_for_bit(shape, dtype):
    row = jnp.arange(np.prod(shape[:-1])).reshape(shape[:-1]) % 3 == 0
    mask = jnp.broadcast_to(row[..., None], shape)
    grad = jax.random.normal(KEY, shape, dtype)
    updates = corrected(grad, mask)
    assert updates.dtype == dtype
    np.testing.assert_array_equal(updates, jnp.where(mask, grad, 0))


def test_a_layer_without_weights_stays_zero():
    tx, mask = so.scale_by_sparseopt(), jnp.zeros((3, 2), bool)
    updates, _ = tx.update(jnp.ones((3, 2)), optax.EmptyState(), masks=mask)
    np.testing.assert_array_equal(updates, 0.0)


def test_keeps_the_expected_norm_of_the_layers_gradient():
    # Under independent gradients of the BatchNorm model, variance 1 / (1 - s_i) per
    # weight, the corrected layer has variance 1 / (1 - s_avg) for every weight.
    fan_ins = np.array([2, 5, 10, 20, 40, 100])
    mask = jnp.arange(100)[:, None] < fan_ins
    density = fan_ins / 100
    draws = jax.random.normal(KEY, (4000, 100, 6)) / np.sqrt(density)
    raw = jnp.where(mask, draws, 0)
    tx = so.scale_by_sparseopt()
    scaled = jax.vmap(lambda g: tx.update(g, optax.EmptyState(), masks=mask)[0])(raw)
    norm = lambda x: np.sqrt((x.astype(np.float64) ** 2).sum((1, 2)).mean())  # noqa: E731
    flat = np.sqrt(fan_ins.sum() / density.mean())
    np.testing.assert_allclose(norm(np.asarray(scaled)), flat, rtol=5e-3)
    np.testing.assert_allclose(norm(np.asarray(raw)), np.sqrt(600), rtol=5e-3)
    assert abs(flat / np.sqrt(600) - 1) < 1e-6


def trajectory(inner, mask, steps=50):
    params = {"w": jnp.where(mask, jax.random.normal(KEY, mask.shape), 0.0)}
    target = jax.random.normal(jax.random.key(1), mask.shape)
    tx = so.sparsify(inner, so.static(masks={"w": mask}))
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum((p["w"] - target) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return np.asarray(params["w"])


@pytest.mark.filterwarnings("ignore:scale_by_sparseopt before")
def test_position_is_meaning():
    mask = jnp.arange(30)[:, None] < jnp.array([3, 10, 29, 30])
    adam = trajectory(optax.chain(optax.scale_by_adam(), optax.scale(-0.01)), mask)
    before = trajectory(
        optax.chain(so.scale_by_sparseopt(), optax.scale_by_adam(), optax.scale(-0.01)),
        mask,
    )
    after = trajectory(
        optax.chain(optax.scale_by_adam(), so.scale_by_sparseopt(), optax.scale(-0.01)),
        mask,
    )
    moved = np.linalg.norm(adam - trajectory(optax.identity(), mask, 0))
    assert np.linalg.norm(before - adam) < 1e-4 * moved
    assert np.linalg.norm(after - adam) > 0.1 * moved

    # With momentum and a fixed mask both places agree.
    trace = optax.trace(0.9)
    first = optax.chain(so.scale_by_sparseopt(), trace, optax.scale(-0.01))
    second = optax.chain(trace, so.scale_by_sparseopt(), optax.scale(-0.01))
    np.testing.assert_allclose(
        trajectory(first, mask), trajectory(second, mask), rtol=1e-4, atol=1e-6
    )


def test_needs_the_masks_of_sparsify():
    tx = optax.chain(so.scale_by_sparseopt(), optax.sgd(0.1))
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(
        ValueError, match=r"put it inside sparsify.*sparseopt\(topology"
    ):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (so.NeuronDims(0, 2), r"exceeds the rank of 'w' with shape \(2, 2\)"),
        (so.NeuronDims(0, -2), "names an axis of 'w'"),
        ({"w": so.NeuronDims(5, 0)}, "exceeds the rank of 'w'"),
    ],
)
def test_dims_that_do_not_fit_fail_at_init(dims, message):
    with pytest.raises(ValueError, match=message):
        so.scale_by_sparseopt(dims=dims).init({"w": jnp.ones((2, 2))})


def test_dims_fail_at_construction():
    with pytest.raises(ValueError, match="names an axis twice"):
        so.NeuronDims((0, 1), 1)
    with pytest.raises(ValueError, match="at least one axis"):
        so.NeuronDims((), 1)
    with pytest.raises(TypeError, match="dims must be None"):
        so.scale_by_sparseopt(dims=3)

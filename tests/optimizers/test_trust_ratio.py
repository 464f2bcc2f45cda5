"""The trust ratio, by hand and against optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparseopt_jax as so
from tests.helpers.examples import examples

KEY = jax.random.key(0)
ratio = so.scale_by_sparse_trust_ratio


def scaled(updates, params, masks=None, **options):
    """Return the updates of one kernel, or of a tree."""
    tx = ratio(**options)
    return tx.update(updates, tx.init(params), params, masks=masks)[0]


def normal(seed, shape=(6, 4), dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def test_by_hand():
    # Of the active weights 3, 4, 0 the zero does not count: norms 5 and 1.
    mask = jnp.array([[1, 1], [1, 0]], bool)
    params = jnp.array([[3.0, 4.0], [0.0, 7.0]])
    updates = jnp.array([[0.6, 0.8], [9.0, 9.0]])
    np.testing.assert_allclose(scaled(updates, params, mask), 5 * updates, rtol=1e-6)
    np.testing.assert_allclose(
        scaled(updates, params, mask, trust_coefficient=0.1, eps=1.0),
        0.1 * 5 / 2 * updates,
        rtol=1e-6,
    )
    # Without masks all weights are active: norms of (3, 4, 7) and (0.6, 0.8, 9).
    np.testing.assert_allclose(
        scaled(updates, params), (74 / 82) ** 0.5 * updates, rtol=1e-6
    )


@pytest.mark.parametrize("masks", [None, jnp.ones((6, 4), bool)])
def test_where_no_weight_is_zero_it_is_optaxs(masks):
    params, updates = normal(0), normal(1)
    theirs = optax.scale_by_trust_ratio(trust_coefficient=0.01, eps=1e-3)
    expected, _ = theirs.update(updates, theirs.init(params), params)
    actual = scaled(updates, params, masks, trust_coefficient=0.01, eps=1e-3)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("masks", [None, jnp.arange(24).reshape(6, 4) % 3 == 0])
def test_is_one_where_either_norm_is_zero(masks):
    options = {"trust_coefficient": 1e-3, "eps": 0.1}
    updates = normal(1)
    zeros = jnp.zeros_like(updates)
    np.testing.assert_array_equal(scaled(updates, zeros, masks, **options), updates)
    np.testing.assert_array_equal(scaled(zeros, normal(0), masks, **options), zeros)
    # Only nonzero weights count.
    params = zeros.at[0, 0].set(3.0)
    updates = updates.at[0, 0].set(0.0)
    np.testing.assert_array_equal(scaled(updates, params, masks, **options), updates)


def test_a_layer_without_active_weights_keeps_its_updates():
    mask = jnp.zeros((6, 4), bool)
    np.testing.assert_array_equal(scaled(normal(1), normal(0), mask), normal(1))


def test_what_is_inactive_is_not_looked_at():
    mask = jax.random.bernoulli(KEY, 0.4, (6, 4))
    clean = scaled(jnp.where(mask, normal(1), 0), jnp.where(mask, normal(0), 0), mask)
    wild = [jnp.where(mask, normal(seed), jnp.nan) for seed in (1, 0)]
    np.testing.assert_array_equal(jnp.where(mask, scaled(*wild, mask), 0), clean)


@examples(25)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(8, 4), (2, 2, 2, 4)]),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_the_scaled_update_is_as_large_as_the_weights(seed, shape, density, grown):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    zero = rng.random(shape) < grown
    params, updates = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    params = np.where(mask & ~zero, params, np.float32(0))
    counts = params != 0
    out = scaled(*map(jnp.asarray, (updates, params, mask)))
    out = np.asarray(out)
    if not counts.any():
        np.testing.assert_array_equal(out, updates)
        return
    np.testing.assert_allclose(norm(out[counts]), norm(params), rtol=1e-5)
    # One factor for all.
    np.testing.assert_allclose(out / updates, out[counts][0] / updates[counts][0], 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norms_are_taken_in_float32(dtype):
    # In that dtype a sum of 40,000 ones ends at 256, or is infinite.
    params, updates = jnp.ones((200, 200), dtype), jnp.full((200, 200), 2.0, dtype)
    out = scaled(updates, params)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, params)


# What it leaves unchanged.

MODEL = {
    "dense": {"kernel": normal(0), "bias": normal(1, (4,))},
    "norm": {"scale": normal(2, (4,)), "bias": normal(3, (4,))},
    "stack": {"kernel": normal(4, (3, 6, 4)), "bias": normal(5, (3, 4))},
    "stack_norm": {"scale": normal(6, (3, 4))},
    "embed": {"embedding": normal(7, (9, 4))},
}
UPDATES = jax.tree.map(jnp.sin, MODEL)


def unscaled(**options):
    """Return the paths of the leaves that pass unchanged."""
    out = jax.tree_util.tree_leaves_with_path(scaled(UPDATES, MODEL, **options))
    pairs = zip(out, jax.tree.leaves(UPDATES), strict=True)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, new), old in pairs
        if (new == old).all()
    }


def test_vectors_biases_and_scales_pass_unscaled():
    vectors = {"dense/bias", "norm/scale", "norm/bias"}
    stacked = {"stack/bias", "stack_norm/scale"}
    assert unscaled() == vectors | stacked
    assert unscaled(trust_coefficient=1e-3, eps=1.0) == vectors | stacked
    assert unscaled(dims={"stack/*": so.NeuronDims(-2, -1)}) == vectors | stacked


def test_where_takes_the_place_of_that():
    assert unscaled(where=lambda path, _: not path.startswith("embed")) == {
        "embed/embedding"
    }
    assert unscaled(where=lambda _, leaf: leaf.ndim != 3) == {"stack/kernel"}


def test_holes_pass():
    masked = optax.masked(ratio(), {"a": True, "b": False})
    params = {"a": normal(0), "b": normal(1)}
    updates = {"a": normal(2), "b": normal(3)}
    out, _ = masked.update(updates, masked.init(params), params)
    np.testing.assert_array_equal(out["b"], updates["b"])
    np.testing.assert_array_equal(out["a"], scaled(updates["a"], params["a"]))


# Stacks of layers.


@pytest.mark.parametrize("from_topology", [False, True])
def test_each_layer_of_a_stack_has_its_own_ratio(from_topology):
    shape, dims = (3, 2, 6, 4), so.NeuronDims(-2, -1)
    factor = jnp.array([[1.0, 10.0], [100.0, 0.0], [3.0, 0.1]])[..., None, None]
    params, updates = factor * normal(0, shape), normal(1, shape)
    mask = jax.random.bernoulli(KEY, 0.5, shape)
    tx = ratio() if from_topology else ratio(dims=dims)
    topology = so.static(
        masks={"kernel": mask}, dims=dims if from_topology else so.NeuronDims(2, 3)
    )
    tx = so.sparsify(tx, topology)
    state = tx.init({"kernel": params})
    params = so.apply_masks({"kernel": params}, state)
    out, _ = jax.jit(tx.update)({"kernel": updates}, state, params)
    arrays = (mask, updates, params["kernel"], out["kernel"])
    mask, updates, params, out = map(np.asarray, arrays)
    for place in np.ndindex(3, 2):
        layer_mask = mask[place]
        alone = scaled(updates[place], params[place], layer_mask)
        np.testing.assert_allclose(
            out[place], np.where(layer_mask, alone, -params[place]), rtol=1e-6
        )


def test_axes_that_nobody_names_are_one_layer():
    params, updates = normal(0, (3, 6, 4)), normal(1, (3, 6, 4))
    factor = norm(params) / norm(updates)
    np.testing.assert_allclose(scaled(updates, params), factor * updates, rtol=1e-6)


# What it requires.


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match=r"where must be a function.*got 'bias'"):
        ratio(where="bias")
    with pytest.raises(TypeError, match="dims must be None"):
        ratio(dims=3)
    with pytest.raises(
        ValueError, match=r"exceeds the rank of 'w' with shape \(2, 2\)"
    ):
        ratio(dims=so.NeuronDims(0, 2)).init({"w": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match=r"params are needed.*opt_state, params\)"):
        ratio().update({"w": jnp.ones((2, 2))}, optax.EmptyState())

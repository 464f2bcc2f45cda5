"""Applying and finding masks; containers have a separate file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.masks.state import map_masked

PARAMS = {"k": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.ones(2)}
MASKS = {"k": jnp.array([[True, False], [False, True]]), "b": optax.MaskedNode()}


def test_inactive_weights_become_zero_whatever_they_were():
    params = {"k": jnp.array([[1.0, np.nan], [np.inf, 4.0]]), "b": jnp.ones(2)}
    masked = so.apply_masks(params, MASKS)
    np.testing.assert_array_equal(masked["k"], [[1, 0], [0, 4]])
    assert not np.signbit(masked["k"]).any()
    assert masked["b"] is params["b"]


def test_masks_are_found_by_path_under_other_holes():
    tree = {"k": optax.MaskedNode(), "b": jnp.ones(2)}
    assert map_masked(lambda m, x: x * 0, MASKS, tree) is not None
    np.testing.assert_array_equal(
        so.apply_masks(tree, {"k": optax.MaskedNode(), "b": jnp.array([True, False])})[
            "b"
        ],
        [1, 0],
    )


def test_masks_of_a_partition_are_merged():
    params = {
        "x": {"k": jnp.ones((4, 4))},
        "y": {"k": jnp.ones((4, 4))},
        "b": jnp.ones(3),
    }
    tx = optax.partition(
        {
            "x": so.sparsify(optax.sgd(0.1), so.static(0.5)),
            "y": so.sparsify(optax.adam(0.1), so.static(0.75)),
            "b": optax.sgd(0.1),
        },
        {"x": "x", "y": "y", "b": "b"},
    )
    masks = so.get_masks(tx.init(params))
    assert int(masks["x"]["k"].sum()) == 8
    assert int(masks["y"]["k"].sum()) == 4
    assert masks["b"] == optax.MaskedNode()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no masks found"):
        so.get_masks(optax.sgd(0.1).init(PARAMS))
    with pytest.raises(ValueError, match="'b' holds float32"):
        so.apply_masks(PARAMS, PARAMS)
    with pytest.raises(ValueError, match=r"'c', which is not a parameter.*b, k"):
        so.apply_masks(PARAMS, {"c": jnp.ones(2, bool)})
    with pytest.raises(
        ValueError, match=r"at 'k' has shape \(2,\), but its parameter has shape \(2, 2"
    ):
        so.apply_masks(PARAMS, {"k": jnp.ones(2, bool)})
    with pytest.raises(ValueError, match="no masks found"):
        so.apply_updates(PARAMS, PARAMS, optax.EmptyState())


def test_numpy_arrays_keep_their_digits():
    params = {"kernel": np.array([[1 / 3, np.nan], [2.0, 1 / 7]])}
    masks = {"kernel": jnp.array([[True, False], [False, True]])}
    kernel = so.apply_masks(params, masks)["kernel"]
    assert isinstance(kernel, np.ndarray) and kernel.dtype == np.float64
    np.testing.assert_array_equal(kernel, [[1 / 3, 0.0], [0.0, 1 / 7]])
    traced = jax.jit(lambda masks: so.apply_masks(params, masks))(masks)["kernel"]
    assert traced.dtype == jnp.float32

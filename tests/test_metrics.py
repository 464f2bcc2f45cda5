"""Numbers for loggers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

MASK = jnp.arange(4)[:, None] < jnp.array([4, 2, 0])
PARAMS = {"a": {"k": jnp.ones((4, 3)), "b": jnp.ones(3)}, "c": jnp.ones((2, 2))}
MASKS = {"a": {"k": MASK, "b": None}, "c": jnp.ones((2, 2), bool)}


def test_by_hand_under_jit():
    tx = so.sparsify(optax.sgd(0.1), so.static(masks=MASKS))
    state = tx.init(PARAMS)
    numbers = jax.jit(so.metrics)(PARAMS, state)
    expected = {
        "density": 10 / 16,
        "inactive_nonzero": 6,
        "density/a/k": 0.5,
        "dead_neurons/a/k": 1,
        "fan_in_mean/a/k": 2.0,
        "fan_in_cv/a/k": np.sqrt(8 / 3) / 2,
        "factor_min/a/k": 0.0,
        "factor_max/a/k": np.sqrt(2),
        "density/c": 1.0,
        "dead_neurons/c": 0,
        "fan_in_mean/c": 2.0,
        "fan_in_cv/c": 0.0,
        "factor_min/c": 1.0,
        "factor_max/c": 1.0,
    }
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(numbers[name], value, rtol=1e-6, err_msg=name)
    masked = so.apply_masks(PARAMS, state)
    assert int(so.metrics(masked, state)["inactive_nonzero"]) == 0


def test_explored_grows_with_a_topology_that_tracks_it():
    topology = so.set_(0.75, every=1, stop=100, track_explored=True, decay="constant")
    tx = so.sparsify(optax.sgd(0.1), topology)
    params = {"k": jax.random.normal(jax.random.key(0), (8, 8))}
    state = tx.init(params)
    params = so.apply_masks(params, state)
    explored = [float(so.metrics(params, state)["explored"])]
    for _ in range(5):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        explored.append(float(so.metrics(params, state)["explored"]))
    assert explored[0] == 0.25
    assert explored == sorted(explored) and explored[-1] > 0.4
    plain = so.sparsify(optax.sgd(0.1), so.set_(0.75, every=1, stop=100))
    assert "explored" not in so.metrics(params, plain.init(params))


def test_dims_as_given_to_the_topology():
    params = {"k": jnp.ones((2, 4, 3))}
    dims = so.NeuronDims(1, 2)
    tx = so.sparsify(optax.sgd(0.1), so.static(0.5, dims=dims))
    numbers = so.metrics(params, tx.init(params), dims=dims)
    assert float(numbers["fan_in_mean/k"]) == 2.0


def test_needs_masks():
    with pytest.raises(ValueError, match="no masks found"):
        so.metrics(PARAMS, optax.EmptyState())

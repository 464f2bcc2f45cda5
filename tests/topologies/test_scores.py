"""Scores are float32 of the parameter's shape, whatever the parameter's type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.topologies import scores


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_scores(dtype):
    key = jax.random.key(0)
    param, grad = jnp.array([1, -2, 0], dtype), jnp.array([-3, 0.5, 4], dtype)
    magnitude = scores.magnitude(key, param, grad)
    gradient = scores.gradient(key, param, grad)
    random = scores.random(key, param, grad)
    np.testing.assert_array_equal(magnitude, [1, 2, 0])
    np.testing.assert_array_equal(gradient, [3, 0.5, 4])
    assert magnitude.dtype == gradient.dtype == random.dtype == jnp.float32
    assert random.shape == (3,) and len(set(np.asarray(random))) == 3
    assert (random != scores.random(jax.random.key(1), param, grad)).all()

"""The angle by which SparseOpt rotates a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.reports.skew import Skew, angle, measure

DENSE = Axes((), (0,), (1,))


def skew_of(vector, factors):
    """Return the skew with one weight per neuron."""
    largest = np.abs(vector).max()
    return Skew(
        jnp.float32(largest),
        jnp.float32((vector / largest) ** 2),
        jnp.float32(factors),
    )


def exact(vectors, factors):
    """Return the angle in double precision, from its sine and cosine."""
    u = np.concatenate(vectors).astype(np.float64)
    v = u * np.concatenate(factors).astype(np.float64)
    along = u @ v / np.linalg.norm(u)
    across = np.linalg.norm(v - u * (u @ v) / (u @ u))
    return np.degrees(np.arctan2(across, along))


def test_by_hand():
    # Fan-ins 3 and 1, factors sqrt(3 / 2) and sqrt(1 / 2): the cosine of (1, 1, 1, 1)
    # and (a, a, a, b) is (3 a + b) / (2 sqrt(3 a^2 + b^2)).
    mask = jnp.arange(3)[:, None] < jnp.array([3, 1])
    a, b = np.sqrt(1.5), np.sqrt(0.5)
    expected = np.degrees(np.arccos((3 * a + b) / (2 * np.sqrt(3 * a**2 + b**2))))
    found = angle([measure(mask, jnp.full((3, 2), -7.0), DENSE)])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.1, 0.9])
def test_small_angles_are_as_exact_as_the_factors(size):
    rng = np.random.default_rng(0)
    vector = rng.normal(size=50)
    factors = np.float32(1 + size * rng.uniform(-1, 1, 50))
    found = angle([skew_of(vector, factors)])
    np.testing.assert_allclose(found, exact([vector], [factors]), rtol=1e-4)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_neither_tiny_nor_huge_gradients_matter(size):
    mask = jnp.arange(3)[:, None] < jnp.array([3, 1])
    grad = jnp.arange(1.0, 7).reshape(3, 2)
    expected = angle([measure(mask, grad, DENSE)])
    assert expected > 5
    np.testing.assert_allclose(
        angle([measure(mask, size * grad, DENSE)]), expected, rtol=1e-5
    )


def test_several_layers_are_one_vector():
    vectors = [np.array([1.0, 2.0]), np.array([30.0, 4.0, 1e-9])]
    factors = [np.array([0.5, 1.2]), np.array([0.7, 1.5, 3.0])]
    skews = [skew_of(v, f) for v, f in zip(vectors, factors, strict=True)]
    np.testing.assert_allclose(angle(skews), exact(vectors, factors), rtol=1e-5)
    # A leaf without neurons is not rotated itself, and reduces the others' angle.
    plain = measure(jnp.array([True, True]), jnp.array([1e3, 0.0]), None)
    np.testing.assert_allclose(
        angle([skews[0], plain]),
        exact([vectors[0], [1e3]], [factors[0], [1.0]]),
        rtol=1e-4,
    )


def test_equal_fan_ins_turn_nothing_at_all():
    mask = jnp.arange(64)[:, None] < jnp.full(100, 7)
    grad = jax.random.normal(jax.random.key(0), (64, 100))
    for function in (angle, jax.jit(angle)):
        assert float(function([measure(mask, grad, DENSE)])) == 0.0


def test_no_gradient_and_no_number():
    mask = jnp.arange(3)[:, None] < jnp.array([3, 1])
    for candidate in (mask, jnp.zeros_like(mask)):
        assert float(angle([measure(candidate, jnp.zeros((3, 2)), DENSE)])) == 0.0
    assert (
        float(angle([measure(mask & False, jnp.full((3, 2), jnp.nan), DENSE)])) == 0.0
    )
    mask |= True
    for bad in (jnp.nan, jnp.inf):
        grad = jnp.ones((3, 2)).at[0, 0].set(bad)
        assert np.isnan(angle([measure(mask, grad, DENSE)]))

"""Which normalisations scale each neuron's gradient by its own fan-in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SAMPLES, NEURONS = 512, 256
# Deviations of pre-activations for fan-ins between 1 % and 100 %.
DEVIATIONS = np.geomspace(0.1, 1.0, NEURONS)


def batch_norm(y):
    return (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-8)


def layer_norm(y):
    mean, variance = y.mean(1, keepdims=True), y.var(1, keepdims=True)
    return (y - mean) / jnp.sqrt(variance + 1e-8)


def rms_norm(y):
    return y / jnp.sqrt(jnp.mean(y**2, 1, keepdims=True) + 1e-8)


def gradient_norms(norm, deviations):
    """Return each neuron's norm, with incoming gradients that do not depend on it."""
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(size=(SAMPLES, NEURONS)) * deviations, jnp.float32)
    arriving = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda y: jnp.sum(norm(y) * arriving)))(y)
    return np.linalg.norm(gradient, axis=0)


def slope(norms):
    """Return the slope of the gradients' logarithms over those of the deviations."""
    return np.polyfit(np.log(DEVIATIONS), np.log(norms), 1)[0]


def test_batch_norm_divides_by_each_neurons_own_deviation():
    assert slope(gradient_norms(batch_norm, DEVIATIONS)) == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_the_others_have_one_factor_for_all_neurons(norm):
    norms = gradient_norms(norm, DEVIATIONS)
    assert slope(norms) == pytest.approx(0, abs=0.02)
    # A layer whose neurons are all sparser has larger gradients, all by one factor.
    ratios = gradient_norms(norm, 0.5 * DEVIATIONS) / norms
    np.testing.assert_allclose(ratios, 2.0, rtol=1e-3)


def test_the_formulas_of_the_page():
    rng = np.random.default_rng(1)
    y = jnp.asarray(rng.normal(size=(6, 5)) * 2 + 1, jnp.float32)
    g = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    for norm, axis in ((batch_norm, 0), (layer_norm, 1)):
        x = norm(y)
        means = [z.mean(axis, keepdims=True) for z in (g, g * x)]
        deviation = jnp.std(y, axis, keepdims=True)
        expected = (g - means[0] - x * means[1]) / deviation
        found = jax.jit(jax.grad(lambda y, norm=norm: jnp.sum(norm(y) * g)))(y)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    root = jnp.sqrt(jnp.mean(y**2, 1, keepdims=True))
    x = y / root
    expected = (g - x * jnp.mean(g * x, 1, keepdims=True)) / root
    found = jax.jit(jax.grad(lambda y: jnp.sum(rms_norm(y) * g)))(y)
    np.testing.assert_allclose(found, expected, atol=1e-5)

"""The premise: Batch Normalization amplifies the gradients of sparse neurons.

The ratio of per-weight gradient norms, sparse over dense, at initialisation, in a
two-layer network with and without Batch Normalization.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.arrays.selection import random_mask

SPARSITIES = np.arange(10) / 10
# Read from the authors' figure (arXiv 2605.27541, figure 2), with BatchNorm.
FIGURE_BN = [1.000, 1.058, 1.126, 1.231, 1.365, 1.537, 1.730, 1.991, 2.401, 3.549]

INPUTS, HIDDEN, CLASSES, BATCH = 256, 128, 10, 512


def loss(params, x, labels, batch_norm):
    z = x @ params["w"]
    if batch_norm:
        z = (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5)
    logits = jax.nn.relu(z) @ params["v"]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(BATCH), labels])


@functools.partial(jax.jit, static_argnames=("batch_norm", "sparse_init"))
def squared_gradient(key, active, batch_norm, sparse_init):
    """Return the mean squared gradient of an active first-layer weight, by fan-in."""
    keys = jax.random.split(key, 5)
    mask = random_mask(keys[0], (INPUTS, HIDDEN), active, axis=0)
    fan_in = active if sparse_init else INPUTS
    w = jax.random.normal(keys[1], (INPUTS, HIDDEN)) * jnp.sqrt(2 / fan_in)
    v = jax.random.normal(keys[2], (HIDDEN, CLASSES)) * jnp.sqrt(2 / HIDDEN)
    x = jax.random.normal(keys[3], (BATCH, INPUTS))
    labels = jax.random.randint(keys[4], (BATCH,), 0, CLASSES)
    params = {"w": jnp.where(mask, w, 0), "v": v}
    grad = jax.grad(loss)(params, x, labels, batch_norm)["w"]
    return jnp.sum(jnp.where(mask, grad, 0) ** 2) / (active * HIDDEN)


@functools.cache
def ratios(batch_norm, sparse_init, every=3):
    active = np.round(INPUTS * (1 - SPARSITIES[::every])).astype(int)
    keys = jax.random.split(jax.random.key(0), 3)
    squares = [
        np.mean([squared_gradient(key, k, batch_norm, sparse_init) for key in keys])
        for k in active
    ]
    return np.sqrt(np.array(squares) / squares[0])


def test_with_batch_norm_the_ratio_is_the_theory():
    theory = (1 - SPARSITIES) ** -0.5
    np.testing.assert_allclose(ratios(True, False, every=1), theory, rtol=0.15)


def test_with_batch_norm_the_ratio_is_the_papers_figure():
    np.testing.assert_allclose(ratios(True, False, every=1), FIGURE_BN, rtol=0.15)


def test_without_batch_norm_it_is_about_one():
    # The authors' figure has 1.00 to 1.08 here.
    np.testing.assert_allclose(ratios(False, False), 1.0, rtol=0.15)


def test_sparse_aware_initialisation_makes_up_for_it():
    # The variance of the weights grows as the fan-in falls: nothing is left to correct,
    # and the fan-in rule over-corrects where the measured variance would not.
    np.testing.assert_allclose(ratios(True, True), 1.0, rtol=0.15)
    assert ratios(True, False, every=1)[-1] > 2.5


def test_the_gradient_of_a_neuron_follows_its_own_fan_in():
    # One layer, neurons of four fan-ins: what the correction takes back.
    fan_ins = np.repeat([256, 128, 64, 26], HIDDEN // 4)
    keys = jax.random.split(jax.random.key(1), 5)
    mask = random_mask(keys[0], (INPUTS, HIDDEN), fan_ins[None, :], axis=0)
    w = jax.random.normal(keys[1], mask.shape) * jnp.sqrt(2 / INPUTS)
    params = {
        "w": jnp.where(mask, w, 0),
        "v": jax.random.normal(keys[2], (HIDDEN, CLASSES)) * jnp.sqrt(2 / HIDDEN),
    }
    x = jax.random.normal(keys[3], (BATCH, INPUTS))
    labels = jax.random.randint(keys[4], (BATCH,), 0, CLASSES)
    gradient = jax.jit(jax.grad(loss), static_argnums=3)
    grad = np.asarray(gradient(params, x, labels, True)["w"]) * mask
    per_weight = np.sqrt((grad**2).sum(0) / fan_ins).reshape(4, -1)
    sizes = np.sqrt((per_weight**2).mean(1))
    expected = (np.array([256, 128, 64, 26]) / INPUTS) ** -0.5
    np.testing.assert_allclose(sizes / sizes[0], expected, rtol=0.2)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_measurement_is_steady(batch_norm):
    # The tolerances above would be luck if another seed moved the ratio by as much.
    keys = jax.random.split(jax.random.key(2), 6)
    squares = [float(squared_gradient(key, 64, batch_norm, False)) for key in keys]
    assert np.std(np.sqrt(squares)) < 0.1 * np.mean(np.sqrt(squares))

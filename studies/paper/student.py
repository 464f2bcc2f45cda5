"""Neurons with Batch Normalization that learn another one, all runs at once.

A neuron is f(z) = a relu(gamma xhat + beta), xhat = BN(w . z), with the statistics of
all samples. Appendix A of the SparseOpt paper (Adnan et al., 2026, arXiv 2605.27541)
trains one such neuron, or two, by gradient descent on 200 samples of normal numbers.

What it leaves open, and we chose: the loss is half the mean squared error; the
student's weights are drawn from N(0, 1 / inputs), or smaller; the teacher is one neuron
with a = gamma = 1, beta = 0 and normal weights on the inputs that the sparse student
sees, so that a student can match it; HAM acts on a alone, with its decay of 1e-3.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from sparseopt_jax.arrays.selection import random_mask
from sparseopt_jax.layers.neurons import correction_factor, fan_in, resolve_axes

SAMPLES = 200
EPS = 1e-5  # epsilon of Flax's normalisation
HAM_DECAY = 1e-3
TARGET = 0.01  # relative to the loss without a student; below it a run has converged
Params = Any  # a dictionary of arrays, by the names in the formula
LABELS = {"a": "ham", "gamma": "sgd", "beta": "sgd", "w": "sgd"}


class Task(NamedTuple):
    """The data of one seed; with a leading axis, of many.

    Attributes:
      z: inputs (samples, inputs).
      target: the teacher's outputs (samples,).
      mask: the student's mask, bool (inputs, neurons).
      w: the student's initial weights, of the same shape.
    """

    z: Any
    target: Any
    mask: Any
    w: Any


class Lane(NamedTuple):
    """What distinguishes the runs of one seed; with a last axis, many of them.

    Attributes:
      sign: sign of each neuron's a at the start (neurons,).
      factor: factor on the gradient of each neuron's w (neurons,).
      alpha: strength of HAM; 0 for none.
      size: factor on the initial w.
    """

    sign: Any
    factor: Any
    alpha: Any
    size: Any


class Outcome(NamedTuple):
    """The outcomes of runs; the axes are seeds, those named here, and lanes.

    Attributes:
      loss: final loss, relative to the loss without a student.
      a: final a (neurons,).
      share: root mean square of each neuron's output, relative to the teacher's
        (neurons,).
      reached: the first step with a loss below ``TARGET``; -1 for none.
      drift: the largest distance of a^2 - gamma^2 - beta^2 from 0 during the run.
      losses: the loss along the way (points,).
      heights: a along the way (points, neurons).
    """

    loss: Any
    a: Any
    share: Any
    reached: Any
    drift: Any
    losses: Any
    heights: Any


def normalise(y: jax.Array) -> jax.Array:
    """Normalise pre-activations to mean 0 and variance 1 over the second axis."""
    mean, variance = y.mean(axis=1, keepdims=True), y.var(axis=1, keepdims=True)
    return (y - mean) / jnp.sqrt(variance + EPS)


def outputs(params: Params, z: jax.Array) -> jax.Array:
    """Return each neuron's contribution: (seeds, samples, neurons, lanes)."""
    # Lanes come last, so that they are contiguous in memory.
    x = normalise(jnp.einsum("bnd,bdkl->bnkl", z, params["w"]))
    a, gamma, beta = (params[name][:, None] for name in ("a", "gamma", "beta"))
    return a * jax.nn.relu(gamma * x + beta)


def losses_of(params: Params, z: jax.Array, target: jax.Array) -> jax.Array:
    """Return half the mean squared error (seeds, lanes)."""
    error = outputs(params, z).sum(axis=2) - target[:, :, None]
    return jnp.mean(error**2, axis=1) / 2


def balance(params: Params) -> jax.Array:
    """Return a^2 - gamma^2 - beta^2 of each neuron, which gradient flow preserves."""
    return params["a"] ** 2 - params["gamma"] ** 2 - params["beta"] ** 2


def own_factor(active: int, inputs: int) -> float:
    """Return the factor that cancels a neuron's amplification: sqrt(1 - s_i)."""
    return math.sqrt(active / inputs)


def rule_factors(mask: jax.Array) -> jax.Array:
    """Return SparseOpt's factors of a layer (neurons,); 1 for a layer of one neuron."""
    axes = resolve_axes(None, "w", mask)
    assert axes is not None
    return correction_factor(fan_in(mask, axes), axes)[0]


def make_task(key: jax.Array, inputs: int, active: int, dense: int) -> Task:
    """Draw a task whose student has some dense neurons, followed by a sparse one.

    Args:
      key: typed PRNG key.
      inputs: inputs of every neuron.
      active: inputs that the sparse neuron sees.
      dense: number of dense neurons before it.

    Returns:
      The task.
    """
    keys = jax.random.split(key, 4)
    sparse = random_mask(keys[0], (inputs, 1), active)
    mask = jnp.concatenate([jnp.ones((inputs, dense), bool), sparse], axis=1)
    z = jax.random.normal(keys[1], (SAMPLES, inputs))
    teacher = jnp.where(sparse, jax.random.normal(keys[2], sparse.shape), 0)
    w = jax.random.normal(keys[3], mask.shape) / math.sqrt(inputs)
    target = jax.nn.relu(normalise((z @ teacher)[None]))[0, :, 0]
    return Task(z, target, mask, jnp.where(mask, w, 0))


def start(tasks: Task, lanes: Lane) -> Params:
    """Return the balanced start: gamma = 1, beta = 0, a = 1 or -1."""
    seeds = len(tasks.z)
    sign = jnp.broadcast_to(lanes.sign, (seeds, *lanes.sign.shape))
    w = tasks.w[..., None] * lanes.size
    return {"a": sign, "gamma": jnp.ones_like(sign), "beta": 0 * sign, "w": w}


def optimizer(eta: float, alpha: Any) -> optax.GradientTransformation:
    """Return gradient descent, with HAM on a."""
    decay = jnp.where(alpha > 0, HAM_DECAY, 0.0)
    ham = so.ham(optax.sgd(eta), eta, alpha=alpha, beta=decay)
    return optax.partition({"ham": ham, "sgd": optax.sgd(eta)}, LABELS)


@functools.partial(jax.jit, static_argnames=("eta", "steps", "points"))
def train(tasks: Task, lanes: Lane, *, eta: float, steps: int, points: int) -> Outcome:
    """Train every task in every lane, all at once.

    Args:
      tasks: tasks with a leading axis of seeds.
      lanes: lanes with a last axis.
      eta: the learning rate.
      steps: number of steps, a multiple of ``points``.
      points: how often a run is recorded.

    Returns:
      Their outcomes.
    """
    nothing = jnp.mean(tasks.target**2, axis=1)[:, None] / 2

    def total(params):
        losses = losses_of(params, tasks.z, tasks.target)
        return losses.sum(), losses

    @functools.partial(jax.vmap, in_axes=-1, out_axes=-1)
    def update(alpha, params, grads, state):
        updates, state = optimizer(eta, alpha).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @functools.partial(jax.vmap, in_axes=-1, out_axes=-1)
    def init(alpha, params):
        return optimizer(eta, alpha).init(params)

    def step(carry, at):
        params, state, reached = carry
        grads, losses = jax.grad(total, has_aux=True)(params)
        grads["w"] = jnp.where(tasks.mask[..., None], lanes.factor * grads["w"], 0)
        arrives = (reached < 0) & (losses <= TARGET * nothing)
        params, state = update(lanes.alpha, params, grads, state)
        return (params, state, jnp.where(arrives, at, reached)), losses

    def stretch(carry, numbers):
        params = carry[0]
        seen = (params["a"], jnp.abs(balance(params)).max(axis=1))
        carry, losses = jax.lax.scan(step, carry, numbers)
        return carry, (losses[0] / nothing, *seen)

    first = start(tasks, lanes)
    begin = (first, init(lanes.alpha, first), jnp.full_like(first["a"][:, 0], -1))
    numbers = jnp.arange(steps, dtype=jnp.float32).reshape(points, -1)
    end, (losses, heights, drifts) = jax.lax.scan(stretch, begin, numbers)
    params: Params = end[0]
    last = jnp.abs(balance(params)).max(axis=1)
    size = jnp.sqrt(jnp.mean(outputs(params, tasks.z) ** 2, axis=1))
    return Outcome(
        loss=losses_of(params, tasks.z, tasks.target) / nothing,
        a=params["a"],
        share=size / jnp.sqrt(2 * nothing)[..., None],
        reached=end[2],
        drift=jnp.maximum(drifts.max(axis=0), last),
        losses=jnp.moveaxis(losses, 0, 1),
        heights=jnp.moveaxis(heights, 0, 1),
    )

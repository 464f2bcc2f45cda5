"""Masks whose neurons have very different numbers of inputs."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from sparseopt_jax.trees import paths

# Standard deviation of the logarithm of a fan-in.
SPREAD = 1.0
# Exponent by which the number of neurons falls that have a fan-in or more.
TAIL = 1.0

# Draws the proportions of so many fan-ins.
Law = Callable[[np.random.Generator, int], np.ndarray]


def log_normal(draw: np.random.Generator, neurons: int) -> np.ndarray:
    """Proportions whose logarithms are normal."""
    return draw.lognormal(sigma=SPREAD, size=neurons)


def power_law(draw: np.random.Generator, neurons: int) -> np.ndarray:
    """Proportions by a Pareto law: few neurons have most of the inputs."""
    return 1.0 + draw.pareto(TAIL, size=neurons)


def spread_masks(
    topology: so.Topology, params: Any, draw: np.random.Generator, law: Law
) -> Any:
    """Random masks with as many active weights in each layer as a topology gives it.

    Args:
      topology: whose numbers of active weights are kept.
      params: arrays or shapes, kernels with their neurons along the last axis.
      draw: random numbers.
      law: of the fan-ins.

    Returns:
      Bool arrays at sparse leaves, ``optax.MaskedNode()`` elsewhere.
    """
    plans = {plan.path: plan for plan in topology.leaves(params)}

    def at_leaf(path, leaf):
        plan = plans[path]
        if plan.active is None or plan.layer is None:
            return optax.MaskedNode()
        *inputs, neurons = leaf.shape
        most = int(np.prod(inputs))
        fan_ins = spread_fan_ins(plan.active, most, law(draw, neurons))
        mask = np.zeros((most, neurons), bool)
        for neuron, fan_in in enumerate(fan_ins):
            mask[draw.choice(most, fan_in, replace=False), neuron] = True
        return jnp.asarray(mask.reshape(leaf.shape))

    return paths.map_with_paths(at_leaf, params)


def spread_fan_ins(total: int, most: int, shares: np.ndarray) -> np.ndarray:
    """Fan-ins in given proportions, nearly, that add up to a total.

    Args:
      total: of all neurons, at least one for each.
      most: a neuron's largest.
      shares: proportions, one for each neuron.

    Returns:
      Integers in [1, most].

    Raises:
      ValueError: if the total leaves a neuron without, or is more than all can have.
    """
    neurons = len(shares)
    if not neurons <= total <= most * neurons:
        raise ValueError(
            f"{neurons} neurons of at most {most} inputs cannot have {total} in all"
        )
    fan_ins = np.ones(neurons, int)
    # One at a time to whoever is furthest below its share.
    for _ in range(total - neurons):
        open_ = fan_ins < most
        fan_ins[np.argmax(np.where(open_, shares / fan_ins, -np.inf))] += 1
    return fan_ins

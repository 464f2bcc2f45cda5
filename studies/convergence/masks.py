"""Masks whose neurons have very different fan-ins."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from sparseopt_jax.trees import paths

# Standard deviation of a fan-in's logarithm.
SPREAD = 1.0
# Exponent of the survival function of the fan-ins.
TAIL = 1.0

# Draws proportions of fan-ins, one for each neuron.
Law = Callable[[np.random.Generator, int], np.ndarray]


def log_normal(draw: np.random.Generator, neurons: int) -> np.ndarray:
    """Draw proportions whose logarithms are normal."""
    return draw.lognormal(sigma=SPREAD, size=neurons)


def power_law(draw: np.random.Generator, neurons: int) -> np.ndarray:
    """Draw proportions by a Pareto law: few neurons have most of the inputs."""
    return 1.0 + draw.pareto(TAIL, size=neurons)


def spread_masks(
    topology: so.Topology, params: Any, draw: np.random.Generator, law: Law
) -> Any:
    """Draw random masks with the same active weights per layer as a topology.

    Args:
      topology: the topology whose numbers of active weights are kept.
      params: arrays or shapes, kernels with their neurons along the last axis.
      draw: the random generator.
      law: the law of the fan-ins.

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
    """Return fan-ins that add up to a total, approximately in given proportions.

    Args:
      total: sum over all neurons, at least one for each.
      most: largest fan-in of a neuron.
      shares: proportions, one for each neuron.

    Returns:
      Integers in [1, most].

    Raises:
      ValueError: if the total leaves a neuron without inputs or exceeds the maximum.
    """
    neurons = len(shares)
    if not neurons <= total <= most * neurons:
        raise ValueError(
            f"{neurons} neurons of at most {most} inputs cannot have {total} in total"
        )
    fan_ins = np.ones(neurons, int)
    # Corrected one at a time, at the neuron furthest below its share.
    for _ in range(total - neurons):
        open_ = fan_ins < most
        fan_ins[np.argmax(np.where(open_, shares / fan_ins, -np.inf))] += 1
    return fan_ins

"""SMET: sparse training in the memory of the active weights."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import check_rate
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.engine.sparsify import sparsify
from sparseopt_jax.layers.eligibility import decay_mask
from sparseopt_jax.masks.compact_kernel import dense_shapes
from sparseopt_jax.optimizers.local_adam import scale_by_local_adam
from sparseopt_jax.topologies.base import Topology


def smet(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    *,
    density_exponent: float = 1.0,
    warmup_steps: int = 100,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    key: jax.typing.ArrayLike = 0,
    host_updates: bool = False,
    packed: bool = False,
    compact: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Train in the memory of the active weights, by SMET.

    It keeps moments and gradients of active weights only, counts Adam's steps per
    weight, warms up grown weights, and raises the learning rate as the density falls.
    ``set_smet`` is the topology that goes with it.

    Args:
      learning_rate: a number or a schedule, for the dense network.
      topology: which weights are active, from ``set_smet`` or any other method with a
        constant number of active weights.
      density_exponent: the learning rate of all parameters is multiplied by
        ``density ** -density_exponent``; 0 leaves it unchanged.
      warmup_steps: as in ``scale_by_local_adam``.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay; biases and normalisations are not decayed.
      key: seed or PRNG key of the topology, as in ``sparsify``.
      host_updates: as in ``sparsify``. True keeps the memory that an update of the
        masks needs out of the step.
      packed: as in ``sparsify``, with ``compact=False``.
      compact: as in ``sparsify``. False keeps dense moments and gives the same result.

    Returns:
      The transformation; ``update`` needs ``params``.

    Raises:
      ValueError: as ``sparsify``; if ``density_exponent`` is not finite,
        ``warmup_steps`` is below 0, or the topology names no sparsity.
      TypeError: if ``topology`` is not a topology.

    Note:
      Sources disagree about the exponent: the official code has lr / density, a summary
      of the paper lr / sqrt(density). Weight decay, and using the scaled rate for dense
      leaves too, are our choices. With ``optax.inject_hyperparams``
      name ``topology``, ``density_exponent``, ``warmup_steps``, ``host_updates``,
      ``packed`` and ``compact`` in ``static_args``.

    References:
      Xiao et al., SMET, 2026 (arXiv 2606.00888).

    Examples:
      >>> import sparseopt_jax as so
      >>> topology = so.set_smet(0.5, block=16, stop=20_000)
      >>> tx = so.smet(2e-3, topology)
    """
    check_static(
        density_exponent=density_exponent,
        warmup_steps=warmup_steps,
        host_updates=host_updates,
        packed=packed,
        compact=compact,
    )
    topology = _checked(topology, learning_rate, density_exponent, weight_decay)
    factor = _density(topology, density_exponent) ** -density_exponent
    axis = -1 if compact and topology.switches_blocks else None

    @functools.cache
    def owner(counted: frozenset[str]):
        adam = scale_by_local_adam(
            b1, b2, eps, warmup_steps, shared_axis=axis, counted=counted
        )
        inner = optax.chain(
            adam,
            optax.add_decayed_weights(weight_decay, decay_mask),
            optax.scale_by_learning_rate(_scaled(learning_rate, factor)),
        )
        return sparsify(
            inner,
            topology,
            key=key,
            host_updates=host_updates,
            packed=packed,
            compact=compact,
        )

    owner(frozenset())  # raises for anything wrong that needs no parameters

    def owner_of(params):
        # The parameters decide which leaves are sparse: embeddings and the head are
        # large, and need no step counts of their own.
        plans = [] if params is None else topology.leaves(dense_shapes(params))
        return owner(frozenset(plan.path for plan in plans if plan.units is not None))

    def init_fn(params):
        return owner_of(params).init(params)

    def update_fn(updates, state, params=None, **extra_args):
        return owner_of(params).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _checked(
    topology: Topology,
    learning_rate: optax.ScalarOrSchedule,
    density_exponent: float,
    weight_decay: optax.ScalarOrSchedule,
) -> Topology:
    """Return the topology if all arguments are valid."""
    check_rate("learning_rate", learning_rate, "smet(learning_rate, topology)")
    check_rate("weight_decay", weight_decay, "smet(..., weight_decay=1e-4)")
    if not isinstance(topology, Topology) or topology.stays_dense:
        raise TypeError(
            "topology must be a Topology that keeps the number of active weights, as "
            f"set_smet and set_ make it, got {topology!r}"
        )
    if not math.isfinite(density_exponent):
        raise ValueError(
            f"density_exponent must be a finite number, got {density_exponent}"
        )
    return topology


def _density(topology: Topology, exponent: float) -> float:
    if topology.target_density is not None:
        return topology.target_density
    if exponent:
        raise ValueError(
            f"{topology.name} names no sparsity to scale the learning rate by: give it "
            "one, or scale the rate yourself and pass density_exponent=0"
        )
    return 1.0


def _scaled(learning_rate: Any, factor: float) -> optax.ScalarOrSchedule:
    if callable(learning_rate):
        return lambda count: factor * jnp.asarray(learning_rate(count))
    return learning_rate * factor

"""SMET: sparse training in the memory of the active weights."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import check_rate, integer, number
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.engine.sparsify import sparsify
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where, decay_mask
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Block, Structure, Structures, Unstructured
from sparseopt_jax.optimizers.local_adam import scale_by_local_adam
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule, UpdateSchedule


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
    """SMET: sparse training in the memory of the active weights.

    Moments and gradients of the active weights only, Adam with steps counted for each
    of them, a warm-up of what is grown, and a learning rate that rises as the density
    falls. ``set_smet`` is the topology that goes with it.

    Args:
      learning_rate: a number or a schedule, for the dense network.
      topology: which weights are active, from ``set_smet`` or any other method that
        keeps their number.
      density_exponent: the learning rate of all parameters is multiplied by
        ``density ** -density_exponent``; 0 leaves it as it is.
      warmup_steps: as in ``scale_by_local_adam``.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay; biases and normalisations are not decayed.
      key: seed or PRNG key of the topology, as in ``sparsify``.
      host_updates: as in ``sparsify``. True leaves what an update of the masks needs
        for itself out of the memory of the step.
      packed: as in ``sparsify``, with ``compact=False``.
      compact: as in ``sparsify``. False keeps dense moments, and gives the same result.

    Returns:
      The transformation; ``update`` needs ``params``.

    Raises:
      ValueError: as ``sparsify``; for a ``density_exponent`` that is not finite, a
        ``warmup_steps`` below 0, and where the topology says no sparsity to take the
        density from.
      TypeError: for a topology that is none.

    Note:
      Sources disagree about the exponent: the official code names lr / density, a
      summary of the paper lr / sqrt(density). Weight decay, and that the scaled rate
      holds for dense leaves too, are our choices. With ``optax.inject_hyperparams``
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
    axis = -1 if compact and isinstance(topology.structure, Block) else None

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

    owner(frozenset())  # raises what can be told without parameters

    def owner_of(params):
        # Which leaves are sparse is the parameters' to say: embeddings and the head
        # are large, and have no steps of their own to count.
        plans = [] if params is None else topology.plan(params)
        return owner(frozenset(plan.path for plan in plans if plan.units is not None))

    def init_fn(params):
        return owner_of(params).init(params)

    def update_fn(updates, state, params=None, **extra_args):
        return owner_of(params).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def set_smet(
    sparsity: float | None = None,
    *,
    stop: int,
    block: int = 1,
    every: int = 100,
    start: int | None = None,
    drop_fraction: float = 0.2,
    last_fraction: float | None = None,
    decay: str | Schedule | None = None,
    distribution: str | Mapping[str, float] | Distribution | None = None,
    first: First = True,
    structure: Structures | None = None,
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    track_explored: bool = False,
) -> Rewiring:
    """SET as SMET has it: blocks dropped by magnitude, others grown at random.

    The fraction falls along a cosine and stays above zero to the end; what an update
    drops it does not grow again.

    Args:
      sparsity: as in ``static``.
      stop: the run's number of steps: the first step without an update.
      block: neighbours along the last axis that are switched as one.
      every: steps between updates.
      start: first step with an update; None for ``every``, when there is something to
        drop by.
      drop_fraction: fraction of the active blocks replaced at first.
      last_fraction: fraction replaced at ``stop``; None for 0.005.
      decay: as in ``set_``, in place of the cosine that ends at ``last_fraction``.
      distribution: as in ``static``; None gives all layers the same sparsity.
      first: as in ``static``.
      structure: as in ``static``, in place of ``block``.
      where: as in ``static``; it should leave out the head, which stays dense in SMET.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``; if the first update would not be before ``stop``; if both
        ``block`` and ``structure`` are given, or both ``decay`` and ``last_fraction``.
      TypeError: as ``set_``.

    Note:
      The defaults are those of the official code, a block of 1 included.

    References:
      Xiao et al., SMET, 2026 (arXiv 2606.00888).

    Examples:
      >>> import sparseopt_jax as so
      >>> topology = so.set_smet(0.5, stop=20_000)
      >>> round(float(topology.schedule.fraction(20_000)), 6)
      0.005
    """
    number("drop_fraction", drop_fraction, 0, 1)
    stop, block = integer("stop", stop), integer("block", block, 1)
    every = integer("every", every)
    if start is None and every >= 1 and stop <= every:
        raise ValueError(
            f"set_smet would never update its masks: its first update is at every = "
            f"{every}, and stop = {stop} is the first step without one; give a smaller "
            "every, or start"
        )
    if structure is not None and block != 1:
        raise ValueError(
            f"give block or structure, not both, got {block} and {structure}"
        )
    if structure is None:
        structure = Block(block) if block != 1 else Unstructured()
    if decay is not None and last_fraction is not None:
        raise ValueError(
            "give decay or last_fraction, which ends the cosine, not both, got "
            f"{decay!r} and {last_fraction}"
        )
    last_fraction = (
        min(0.005, drop_fraction) if last_fraction is None else last_fraction
    )
    number("last_fraction", last_fraction, 0, 1)
    if last_fraction > drop_fraction:
        raise ValueError(
            f"last_fraction must be at most drop_fraction = {drop_fraction}, got "
            f"{last_fraction}"
        )
    if decay is None:
        decay = _CosineTo(last_fraction, drop_fraction, stop)
    if distribution is None:
        # Where masks or a structure give the numbers, nothing has to be shared out.
        distribution = {} if sparsity is None else {"*": sparsity}
    return Rewiring(
        name="set_smet",
        sparsity=sparsity,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        schedule=UpdateSchedule(
            every, every if start is None else start, stop, drop_fraction, decay
        ),
        drop=scores.magnitude,
        grow=scores.random,
        replaces_step=False,
        regrows=False,
        track_explored=track_explored,
    )


@dataclasses.dataclass(frozen=True)
class _CosineTo:
    """A fraction that falls along a cosine, to ``last`` at ``stop``."""

    last: float
    first: float
    stop: int

    def __call__(self, count: Any) -> jax.Array:
        ratio = self.last / self.first if self.first else 0.0
        steps = max(self.stop, 1)
        falling = optax.cosine_decay_schedule(self.first, steps, alpha=ratio)
        return jnp.asarray(falling(jnp.asarray(count, jnp.float32)))

    @property
    def record(self) -> str:
        """What stands for it in a checkpoint's record."""
        return "cosine_decay_schedule.<locals>.schedule"


def _checked(
    topology: Topology,
    learning_rate: optax.ScalarOrSchedule,
    density_exponent: float,
    weight_decay: optax.ScalarOrSchedule,
) -> Rewiring:
    """The topology, if all arguments are what ``smet`` takes."""
    check_rate("learning_rate", learning_rate, "smet(learning_rate, topology)")
    check_rate("weight_decay", weight_decay, "smet(..., weight_decay=1e-4)")
    if not isinstance(topology, Rewiring):
        raise TypeError(
            "topology must be a Topology that keeps the number of active weights, as "
            f"set_smet and set_ make it, got {topology!r}"
        )
    if not math.isfinite(density_exponent):
        raise ValueError(
            f"density_exponent must be a finite number, got {density_exponent}"
        )
    return topology


def _density(topology: Rewiring, exponent: float) -> float:
    if topology.sparsity is not None:
        return 1.0 - topology.sparsity
    structure: Structures = topology.structure
    if isinstance(structure, Structure) and structure.density is not None:
        return structure.density
    if exponent:
        raise ValueError(
            f"{topology.name} names no sparsity, by which the learning rate would be "
            "scaled: name one, or scale the rate yourself and pass density_exponent=0"
        )
    return 1.0


def _scaled(learning_rate: Any, factor: float) -> optax.ScalarOrSchedule:
    if callable(learning_rate):
        return lambda count: factor * jnp.asarray(learning_rate(count))
    return learning_rate * factor

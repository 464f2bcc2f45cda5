"""SET as in SMET: in blocks, and growing nothing that was just dropped."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import integer, number
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Block, Structures, Unstructured
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.methods.set_ import set_
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule
from sparseopt_jax.topologies.stages import Drop, Grow, Prune


@method("SMET", "2606.00888")
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
    """Run SET as in SMET: drop blocks by magnitude, grow others at random.

    The fraction falls along a cosine and stays above zero to the end. An update does
    not grow the blocks that it drops.

    Args:
      sparsity: as in ``static``.
      stop: first step without an update; in SMET the number of steps of the run.
      block: neighbours along the last axis that are switched as one.
      every: steps between updates.
      start: step of the first update; None for ``every``, so that weights are trained
        before any are dropped.
      drop_fraction: fraction of the active blocks replaced at first.
      last_fraction: fraction replaced at ``stop``; None for 0.005, or for
        ``drop_fraction`` if this is smaller.
      decay: as in ``set_``, instead of the cosine that ends at ``last_fraction``.
      distribution: as in ``static``; None gives all layers the same sparsity.
      first: as in ``static``.
      structure: as in ``static``, instead of ``block``.
      where: as in ``static``; it should exclude the head, which stays dense in SMET.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``; if the first update would not be before ``stop``; if both
        ``block`` and ``structure`` are given, or both ``decay`` and ``last_fraction``;
        if ``last_fraction`` exceeds ``drop_fraction``.
      TypeError: for an argument of the wrong type.

    Note:
      The defaults, including a block of 1, are those of the official code.

    References:
      Xiao et al., SMET, 2026 (arXiv 2606.00888).

    Examples:
      >>> import sparseopt_jax as so
      >>> topology = so.set_smet(0.5, stop=20_000)
      >>> round(float(topology.schedule.fraction(20_000)), 6)
      0.005
    """
    stop, every = integer("stop", stop), integer("every", every)
    if start is None and every >= 1 and stop <= every:
        raise ValueError(
            f"set_smet would never update its masks: its first update would be at "
            f"step every = {every}, but stop = {stop} is the first step without one; "
            "pass a smaller every, or start"
        )
    if distribution is None:
        # If masks or a structure fix the numbers, there is nothing to distribute.
        distribution = {} if sparsity is None else {"*": sparsity}
    topology = set_(
        sparsity,
        every=every,
        stop=stop,
        start=every if start is None else start,
        drop_fraction=drop_fraction,
        decay=_decay(decay, drop_fraction, last_fraction, stop),
        distribution=distribution,
        first=first,
        structure=_structure(block, structure),
        where=where,
        include=include,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        track_explored=track_explored,
    )
    stages = (Prune(), Drop(), Grow(again=False))
    return dataclasses.replace(topology, name="set_smet", stages=stages)


def _structure(block: int, structure: Structures | None) -> Structures:
    """Return the structure, from whichever of the two arguments is given."""
    block = integer("block", block, 1)
    if structure is not None and block != 1:
        raise ValueError(
            f"pass block or structure, not both, got {block} and {structure}"
        )
    if structure is None:
        return Block(block) if block != 1 else Unstructured()
    return structure


def _decay(
    decay: str | Schedule | None,
    drop_fraction: float,
    last_fraction: float | None,
    stop: int,
) -> str | Schedule:
    """Return how the fraction falls: as given, or along the cosine."""
    number("drop_fraction", drop_fraction, 0, 1)
    if decay is not None and last_fraction is not None:
        raise ValueError(
            "pass decay or last_fraction, where the cosine ends, not both, got "
            f"{decay!r} and {last_fraction}"
        )
    if decay is not None:
        return decay
    if last_fraction is None:
        last_fraction = min(0.005, drop_fraction)
    number("last_fraction", last_fraction, 0, 1)
    if last_fraction > drop_fraction:
        raise ValueError(
            f"last_fraction must be at most drop_fraction = {drop_fraction}, got "
            f"{last_fraction}"
        )
    return _CosineTo(last_fraction, drop_fraction, stop)


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
        """The value that represents it in a checkpoint's record."""
        return "cosine_to"

"""When a topology changes, and by how much."""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.arguments import integer, number

DECAYS = ("constant", "cosine", "inverse_power", "linear")

# From a step to a number, such as any schedule of optax.
Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class UpdateSchedule:
    """Every how many steps a topology changes, and which fraction of it.

    Attributes:
      every: steps from one change to the next (RigL's delta T).
      start: first step that may change the topology.
      stop: first step that may not (RigL's T_end).
      drop_fraction: fraction of the active weights that a change replaces at step 0
        (RigL's alpha).
      decay: how that fraction falls until ``stop``: ``"cosine"``, ``"linear"``,
        ``"inverse_power"`` (the third power of what is left of the time) or
        ``"constant"``; or a function of the step, such as any schedule of optax, that
        gives the fraction itself.
      at_stop: whether ``stop`` itself is a step that changes the topology, as schedules
        that end at a density want it.

    Raises:
      TypeError: if a number of steps is not an integer.
      ValueError: if ``every < 1``, ``start < 0``, ``stop <= start``, the fraction is
        outside [0, 1], or the decay is unknown.

    Examples:
      >>> schedule = UpdateSchedule(every=100, start=0, stop=1000, drop_fraction=0.3)
      >>> schedule.due(200), schedule.due(250), schedule.due(1000)
      (True, False, False)
      >>> round(float(schedule.fraction(500)), 3)
      0.15

    References:
      Evci et al., RigL, 2020 (arXiv 1911.11134), section 3.
    """

    every: int
    start: int
    stop: int
    drop_fraction: float = 0.3
    decay: str | Schedule = "cosine"
    at_stop: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "start", "stop"):
            value = integer(name, getattr(self, name), unit="steps")
            object.__setattr__(self, name, value)
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if self.start < 0:
            raise ValueError(f"start must be at least 0, got {self.start}")
        if self.stop <= self.start:
            raise ValueError(
                f"stop must be greater than start = {self.start}, got {self.stop}"
            )
        number("drop_fraction", self.drop_fraction, 0, 1)
        named = isinstance(self.decay, str) and self.decay in DECAYS
        if not named and not callable(self.decay):
            raise ValueError(
                f"decay must be one of {', '.join(DECAYS)}, or a function of the step, "
                f"got {self.decay!r}"
            )

    def due(self, count: Any) -> Any:
        """Whether the topology changes at step ``count``.

        Args:
          count: an int, or an int array.

        Returns:
          A bool for an int, so that a host loop waits for nothing; else a bool array.
        """
        due = (
            (count >= self.start)
            & (count < self.stop)
            & ((count - self.start) % self.every == 0)
        )
        return due | (count == self.stop) if self.at_stop else due

    def fraction(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Fraction of the active weights that step ``count`` replaces: float32 scalar.

        Note:
          As in the published code the decay runs over the global step, from 0 to
          ``stop``: a later ``start`` begins at the fraction the decay has reached.
        """
        if callable(self.decay):
            return jnp.clip(jnp.asarray(self.decay(count), jnp.float32), 0.0, 1.0)
        progress = jnp.asarray(count, jnp.float32) / self.stop
        if self.decay == "cosine":
            return self.drop_fraction / 2 * (1 + jnp.cos(math.pi * progress))
        if self.decay == "linear":
            return self.drop_fraction * (1 - progress)
        if self.decay == "inverse_power":
            return self.drop_fraction * (1 - progress) ** 3
        return jnp.full_like(progress, self.drop_fraction)


@dataclasses.dataclass(frozen=True)
class StepList:
    """A topology changes at these steps, and replaces nothing.

    Attributes:
      steps: the steps, ascending.

    Raises:
      TypeError: if one of them is no integer.
      ValueError: if there is none, or they do not ascend from 0.

    Examples:
      >>> schedule = StepList((10, 40))
      >>> schedule.due(10), schedule.due(20)
      (True, False)
    """

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            steps = tuple(operator.index(step) for step in self.steps)
        except TypeError:
            raise TypeError(f"steps must be integers, got {self.steps!r}") from None
        ascending = all(a < b for a, b in itertools.pairwise(steps))
        if not steps or steps[0] < 0 or not ascending:
            raise ValueError(f"steps must ascend from 0 or later, got {steps}")
        object.__setattr__(self, "steps", steps)

    def due(self, count: Any) -> Any:
        """Whether the topology changes at step ``count``: as ``UpdateSchedule.due``."""
        return functools.reduce(operator.or_, (count == step for step in self.steps))

    def fraction(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Zero: float32 scalar."""
        del count
        return jnp.float32(0.0)


@dataclasses.dataclass(frozen=True)
class DensitySchedule:
    """How the active weights go from a first number to the last one.

    Every layer moves in proportion: at progress p it has ``last + p (first - last)``
    active units, so that the whole network has the density that the schedule asks for.

    Attributes:
      initial_sparsity: the sparsity that a run begins with, in [0, 1).
      progress: function of the step: 1 at the first density, 0 at the last.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017 (arXiv 1710.01878): the cubic.
    """

    initial_sparsity: float
    progress: Schedule


def cubic(start: int, stop: int) -> Schedule:
    """Progress (1 - (t - start) / (stop - start))^3, 1 before and 0 after.

    >>> progress = cubic(0, 10)
    >>> [float(progress(step)) for step in (0, 5, 10)]
    [1.0, 0.125, 0.0]
    """

    def progress(count):
        passed = jnp.asarray(count - start, jnp.float32) / (stop - start)
        return (1 - jnp.clip(passed, 0.0, 1.0)) ** 3

    return progress

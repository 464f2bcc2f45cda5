"""When a topology changes, and by how much."""

import abc
import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.arguments.checks import integer, number

__all__ = [
    "Alternating",
    "Cubic",
    "DensitySchedule",
    "Followed",
    "Schedule",
    "StepList",
    "UpdateSchedule",
    "UpdateSteps",
]

# The last step that an int32 counts: a topology that stops there never does.
FOREVER = 2**31 - 1

DECAYS = ("constant", "cosine", "inverse_power", "linear")

Schedule = Callable[[Any], Any]
"""From a step to a number, such as any schedule of optax."""


class UpdateSteps(abc.ABC):
    """At which steps the masks are updated; see ``UpdateSchedule`` and ``StepList``.

    Attributes:
      steps: the steps, ascending.
    """

    steps: Sequence[int]

    @property
    def interval(self) -> int | None:
        """Steps from one update to the next; None where that varies."""
        return None

    @property
    def is_endless(self) -> bool:
        """Whether updates go on as long as training does."""
        return False

    @abc.abstractmethod
    def due(self, count: Any) -> Any:
        """Return whether the topology changes at step ``count``.

        Args:
          count: an int, or an int array.

        Returns:
          A bool for an int, so that a host loop waits for nothing; else a bool array.
        """

    @abc.abstractmethod
    def previous(self, count: Any) -> Any:
        """The last step before ``count`` that changes the topology."""

    @abc.abstractmethod
    def fraction(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Fraction of the active weights that step ``count`` replaces: float32."""


@dataclasses.dataclass(frozen=True)
class UpdateSchedule(UpdateSteps):
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

    Raises:
      TypeError: if a number of steps is not an integer.
      ValueError: if ``every < 1``, ``start < 0``, ``stop <= start``, a step exceeds
        what an int32 counts, the fraction is outside [0, 1], or the decay is unknown.

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

    def __post_init__(self) -> None:
        for name in ("every", "start", "stop"):
            value = integer(name, getattr(self, name), unit="steps")
            object.__setattr__(self, name, value)
            _check_countable(name, value)
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if self.start < 0:
            raise ValueError(f"start must be at least 0, got {self.start}")
        if self.stop <= self.start:
            raise ValueError(
                f"stop must be greater than start = {self.start}, got {self.stop}: "
                f"with every = {self.every} the masks would never be updated"
            )
        number("drop_fraction", self.drop_fraction, 0, 1)
        named = isinstance(self.decay, str) and self.decay in DECAYS
        if not named and not callable(self.decay):
            raise ValueError(
                f"decay must be one of {', '.join(DECAYS)}, or a function of the step, "
                f"got {self.decay!r}"
            )

    def due(self, count: Any) -> Any:
        return (
            (count >= self.start)
            & (count < self.stop)
            & ((count - self.start) % self.every == 0)
        )

    @property
    def interval(self) -> int:
        return self.every

    @property
    def is_endless(self) -> bool:
        return self.stop == FOREVER

    @property
    def steps(self) -> range:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The steps that change the topology.

        >>> UpdateSchedule(every=100, start=0, stop=1000).steps[-1]
        900
        """
        return range(self.start, self.stop, self.every)

    def previous(self, count: Any) -> Any:
        """The last step before ``count`` that changes the topology; else ``start``."""
        changes = (count - self.start - 1) // self.every
        return self.start + self.every * jnp.clip(changes, 0, len(self.steps) - 1)

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
class StepList(UpdateSteps):
    """A topology changes at these steps, and replaces nothing.

    Attributes:
      steps: the steps, ascending.

    Raises:
      TypeError: if one of them is not an integer.
      ValueError: if there is none, they do not ascend from 0, or one exceeds what an
        int32 counts.

    Examples:
      >>> schedule = StepList((10, 40))
      >>> schedule.due(10), schedule.due(20)
      (True, False)
    """

    steps: Sequence[int]

    def __post_init__(self) -> None:
        steps = tuple(integer("steps", step) for step in _listed(self.steps))
        ascending = all(a < b for a, b in itertools.pairwise(steps))
        if not steps or steps[0] < 0 or not ascending:
            raise ValueError(f"steps must ascend from 0 or later, got {steps}")
        _check_countable("steps", steps[-1])
        object.__setattr__(self, "steps", steps)

    def due(self, count: Any) -> Any:
        """Whether the topology changes at step ``count``: as ``UpdateSteps.due``."""
        return functools.reduce(operator.or_, (count == step for step in self.steps))

    def previous(self, count: Any) -> Any:
        """The last of the steps before ``count``; before the first the step before."""
        first = self.steps[0] - 1
        gaps = (b - a for a, b in itertools.pairwise((first, *self.steps)))
        reached = (
            jnp.where(count > step, gap, 0)
            for step, gap in zip(self.steps, gaps, strict=True)
        )
        return sum(reached, jnp.int32(first))

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
      by_weights: whether the first masks keep the largest of the weights given to
        ``init``, by the drop score; else, and where ``init`` is given shapes alone,
        they are random.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017 (arXiv 1710.01878): the cubic.
    """

    initial_sparsity: float
    progress: Schedule
    by_weights: bool = False


@dataclasses.dataclass(frozen=True)
class Cubic:
    """Progress (1 - (t - start) / (last - start))^3, 1 before and 0 after.

    Attributes:
      start: the step of the first change.
      last: the step of the last one, which reaches the last density; where it is the
        first as well, that one does.

    Examples:
      >>> progress = Cubic(0, 10)
      >>> [float(progress(step)) for step in (0, 5, 10)]
      [1.0, 0.125, 0.0]
    """

    start: int
    last: int

    def __call__(self, count: Any) -> jax.Array:
        """Return the progress at a step."""
        if self.start == self.last:
            return jnp.where(count < self.start, 1.0, 0.0)
        passed = jnp.asarray(count - self.start, jnp.float32) / (self.last - self.start)
        return (1 - jnp.clip(passed, 0.0, 1.0)) ** 3


@dataclasses.dataclass(frozen=True)
class Alternating:
    """Progress that is 1 before the first of some steps, 0 from it on, 1 from the next.

    Attributes:
      steps: the steps, ascending.

    Examples:
      >>> progress = Alternating((2, 4))
      >>> [float(progress(step)) for step in (1, 2, 3, 4)]
      [1.0, 0.0, 0.0, 1.0]
    """

    steps: tuple[int, ...]

    def __call__(self, count: Any) -> jax.Array:
        """Return the progress at a step."""
        past = sum(jnp.asarray(count >= step, jnp.int32) for step in self.steps)
        return jnp.where(past % 2 == 0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Followed:
    """The progress of a sparsity that a function of the step gives.

    Attributes:
      schedule: the sparsity.
      first: its value until the first change.
      end: its value from the last change on.
      start: the step of the first change.
      last: the step of the last one.
    """

    schedule: Schedule
    first: float
    end: float
    start: int
    last: int

    def __call__(self, count: Any) -> jax.Array:
        """Return the progress at a step."""
        sparsity = jnp.asarray(self.schedule(count), jnp.float32)
        progress = (sparsity - self.end) / (self.first - self.end)
        # Exact at both ends, so that the last numbers are the planned ones.
        progress = jnp.where(count <= self.start, 1.0, progress)
        return jnp.where(count >= self.last, 0.0, progress)


def told_updates(schedule: UpdateSteps | None) -> str:
    """Return how often a schedule updates the masks, as a sentence; empty for None.

    >>> told_updates(UpdateSchedule(every=100, start=0, stop=1000))
    'Masks are updated 10 times, at steps 0 to 900.'
    """
    if schedule is None:
        return ""
    steps = schedule.steps
    if schedule.is_endless:
        every = schedule.interval
        often = "every step" if every == 1 else f"every {every} steps"
        return f"Masks are updated {often}, from step {steps[0]} on."
    if len(steps) == 1:
        return f"Masks are updated once, at step {steps[0]}."
    return (
        f"Masks are updated {len(steps):,} times, at steps {steps[0]:,} to "
        f"{steps[-1]:,}."
    )


def _listed(steps: Any) -> tuple[Any, ...]:
    try:
        return tuple(steps)
    except TypeError:
        raise TypeError(f"steps must be integers, got {steps!r}") from None


def _check_countable(name: str, step: int) -> None:
    if step > FOREVER:
        raise ValueError(
            f"{name} must be at most 2**31 - 1, the last step that an int32 counts, "
            f"got {step}"
        )

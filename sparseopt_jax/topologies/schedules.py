"""Schedules: when masks are updated, and how much."""

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

# The last step that an int32 counts: as ``stop`` it means that updates never end.
FOREVER = 2**31 - 1

DECAYS = ("constant", "cosine", "inverse_power", "linear")

Schedule = Callable[[Any], Any]
"""A function from a step to a number, such as any Optax schedule."""


class UpdateSteps(abc.ABC):
    """The steps at which masks are updated; see ``UpdateSchedule`` and ``StepList``.

    Attributes:
      steps: the steps, ascending.
    """

    steps: Sequence[int]

    @property
    def interval(self) -> int | None:
        """Steps from one update to the next; None if this varies."""
        return None

    @property
    def frequency(self) -> float:
        """The fraction of steps at which masks are updated, until the last update."""
        return len(self.steps) / (self.steps[-1] + 1)

    @property
    def is_endless(self) -> bool:
        """Whether updates continue as long as training does."""
        return False

    @abc.abstractmethod
    def due(self, count: Any) -> Any:
        """Return whether masks are updated at step ``count``.

        Args:
          count: an int, or an int array.

        Returns:
          A bool for an int, so that a host loop need not wait for a device; otherwise a
          bool array.
        """

    def next_due(self, count: Any) -> Any:
        """Return the first of the steps from ``count`` on, an int32 scalar.

        ``FOREVER`` if there is none.
        """
        steps = self.steps
        if isinstance(steps, range):
            passed = jnp.maximum(-((steps.start - count) // steps.step), 0)
            found = steps.start + steps.step * passed
            return jnp.where(found <= steps[-1], found, FOREVER)
        listed = jnp.asarray(tuple(steps), jnp.int32)
        return jnp.min(jnp.where(listed >= count, listed, FOREVER))

    @abc.abstractmethod
    def previous(self, count: Any) -> Any:
        """Return the step of the last update before step ``count``.

        If there is none, the step before the first update.
        """

    @abc.abstractmethod
    def fraction(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Return the fraction of active weights to replace at ``count``: float32."""


@dataclasses.dataclass(frozen=True)
class UpdateSchedule(UpdateSteps):
    """Updates at a fixed interval, each of which replaces a fraction of the weights.

    Attributes:
      every: steps from one update to the next (RigL's delta T).
      start: step of the first update.
      stop: first step without an update (RigL's T_end).
      drop_fraction: fraction of the active weights that an update at step 0 replaces
        (RigL's alpha).
      decay: how that fraction falls until ``stop``: ``"cosine"``, ``"linear"``,
        ``"inverse_power"`` (the third power of the remaining time) or ``"constant"``;
        or a function of the step, such as any Optax schedule, that returns the fraction
        itself.

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
    def frequency(self) -> float:
        """One step more for every ``every`` steps, as RigL counts."""
        return 1 / (self.every + 1)

    @property
    def is_endless(self) -> bool:
        return self.stop == FOREVER

    @property
    def steps(self) -> range:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The steps at which masks are updated.

        >>> UpdateSchedule(every=100, start=0, stop=1000).steps[-1]
        900
        """
        return range(self.start, self.stop, self.every)

    def previous(self, count: Any) -> Any:
        """Return the step of the last update before ``count``.

        If there is none, the step before the first update.
        """
        changes = jnp.clip(
            (count - self.start - 1) // self.every, 0, len(self.steps) - 1
        )
        last = self.start + self.every * changes
        return jnp.where(count <= self.start, self.start - 1, last)

    def fraction(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Return the fraction of active weights to replace at ``count``: float32.

        Note:
          As in the published code, the decay runs over the global step, from 0 to
          ``stop``: a later ``start`` begins with the fraction decayed so far.
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
    """Updates at listed steps, which replace no weights.

    Attributes:
      steps: the steps, ascending.

    Raises:
      TypeError: if one of them is not an integer.
      ValueError: if there are no steps, they do not ascend from 0 or later, or one
        exceeds what an int32 counts.

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
        """Return whether masks are updated at ``count``; see ``UpdateSteps.due``."""
        return functools.reduce(operator.or_, (count == step for step in self.steps))

    def previous(self, count: Any) -> Any:
        """Return the last of the steps before ``count``.

        If there is none, the step before the first update.
        """
        first = self.steps[0] - 1
        gaps = (b - a for a, b in itertools.pairwise((first, *self.steps)))
        reached = (
            jnp.where(count > step, gap, 0)
            for step, gap in zip(self.steps, gaps, strict=True)
        )
        return sum(reached, jnp.int32(first))

    def fraction(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Return 0: float32 scalar."""
        del count
        return jnp.float32(0.0)


@dataclasses.dataclass(frozen=True)
class DensitySchedule:
    """How the number of active weights moves from its first to its final value.

    All layers move in proportion: at progress p a layer has ``last + p (first - last)``
    active units, so that the whole network has the scheduled density.

    Attributes:
      initial_sparsity: the sparsity at the start of a run, in [0, 1).
      progress: a function of the step: 1 at the first density, 0 at the final one.
      by_weights: whether the first masks keep the weights of the highest drop scores
        among those passed to ``init``; otherwise, or if ``init`` is given only shapes,
        they are random.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017 (arXiv 1710.01878): the cubic.
    """

    initial_sparsity: float
    progress: Schedule
    by_weights: bool = False


@dataclasses.dataclass(frozen=True)
class Cubic:
    """Progress (1 - (t - start) / (last - start))^3, 1 before and 0 after these steps.

    Attributes:
      start: the step of the first update.
      last: the step of the last update, which reaches the final density, even if it is
        also the first.

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
    """Progress that starts at 1 and switches between 1 and 0 at each of some steps.

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
    """Progress that follows a schedule of the sparsity.

    Attributes:
      schedule: the sparsity as a function of the step.
      first: the sparsity until the first update.
      end: the sparsity from the last update on.
      start: the step of the first update.
      last: the step of the last update.
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
        # Exact at both ends, so that the final numbers are the planned ones.
        progress = jnp.where(count <= self.start, 1.0, progress)
        return jnp.where(count >= self.last, 0.0, progress)


def described_updates(schedule: UpdateSteps | None) -> str:
    """Return a sentence on how often a schedule updates the masks; empty for None.

    >>> described_updates(UpdateSchedule(every=100, start=0, stop=1000))
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

"""What growth remembers of the dense gradients of earlier steps."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.arguments.checks import integer, number
from sparseopt_jax.arrays.conditions import if_due
from sparseopt_jax.masks.state import map_masked
from sparseopt_jax.topologies.schedules import UpdateSchedule, UpdateSteps


def no_gradients(masks: Any) -> Any:
    """A float32 zero for every weight of the sparse leaves, sharded like the masks."""
    zero = jnp.float32(0)  # of a type that no step changes
    return jax.tree.map(lambda mask: jnp.where(mask, zero, zero), masks)


@dataclasses.dataclass(frozen=True)
class GradientMemory(abc.ABC):
    """What both kinds have in common; use one of those below.

    A gradient that is infinite or NaN counts as 0: remembered, it would never pass.
    """

    def check(self, schedule: UpdateSteps | None) -> None:
        """Raise ``ValueError`` unless it fits the schedule."""
        if schedule is None or schedule.interval is None:
            raise ValueError("a memory of gradients needs changes at an interval")

    @abc.abstractmethod
    def dense_gradients(self, interval: int) -> float:
        """The fraction of the steps whose dense gradients it takes in."""

    @abc.abstractmethod
    def observe(
        self, schedule: UpdateSchedule, count: Any, memory: Any, grads: Any
    ) -> Any:
        """Add the gradient of step ``count``; the result is what growth reads.

        Args:
          schedule: when the topology changes.
          count: int32 scalar, the step.
          memory: float32 tree like the masks.
          grads: the dense gradient.

        Returns:
          A tree like ``memory``.
        """


@dataclasses.dataclass(frozen=True)
class MeanGradient(GradientMemory):
    """The sum of the gradients of the last steps, that of the change included.

    Between two changes only as many steps are looked at: the others cost nothing.

    Attributes:
      steps: how many, at least 1 and at most the steps between two changes.

    Raises:
      TypeError: if that is no integer.
      ValueError: if it is below 1.
    """

    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", integer("steps", self.steps, 1))

    def dense_gradients(self, interval: int) -> float:
        return min(self.steps / (interval + 1), 1.0)

    def check(self, schedule: UpdateSteps | None) -> None:
        super().check(schedule)
        interval: int = schedule.interval  # pyright: ignore
        if self.steps > interval:
            raise ValueError(
                f"gradients of {self.steps} steps cannot be averaged where the "
                f"topology changes every {interval}"
            )

    def observe(
        self, schedule: UpdateSchedule, count: Any, memory: Any, grads: Any
    ) -> Any:
        place = (count - schedule.start + self.steps - 1) % schedule.every

        def add(memory, grads):
            return jax.tree.map(
                lambda old, grad: jnp.where(place == 0, 0, old) + _finite(grad),
                memory,
                grads,
            )

        return if_due(place < self.steps, add, memory, _remembered(memory, grads))


@dataclasses.dataclass(frozen=True)
class GradientMomentum(GradientMemory):
    """An exponential mean of all gradients so far: dense momentum.

    Attributes:
      decay: what a step leaves of the mean so far, in [0, 1).

    Raises:
      ValueError: if it is outside.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        number("momentum", self.decay, 0, below=1)

    def dense_gradients(self, interval: int) -> float:
        """As ``GradientMemory.dense_gradients``: all."""
        del interval
        return 1.0

    def observe(
        self, schedule: UpdateSchedule, count: Any, memory: Any, grads: Any
    ) -> Any:
        del schedule, count
        return jax.tree.map(
            lambda old, grad: self.decay * old + (1 - self.decay) * _finite(grad),
            memory,
            _remembered(memory, grads),
        )


def _remembered(memory: Any, grads: Any) -> Any:
    """The gradients of the leaves that are remembered, in the memory's structure."""
    return map_masked(lambda grad, _: grad, grads, memory)


def _finite(grad: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(grad), grad, 0).astype(jnp.float32)

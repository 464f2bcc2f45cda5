"""Memories of the dense gradients of earlier steps, which growth reads."""

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
    """Return a float32 zero for every entry of the masks, sharded like them."""
    zero = jnp.float32(0)  # strongly typed, as the results of all steps
    return jax.tree.map(lambda mask: jnp.where(mask, zero, zero), masks)


@dataclasses.dataclass(frozen=True)
class GradientMemory(abc.ABC):
    """Base class of memories of gradients; use one of the subclasses below.

    Non-finite gradients count as 0, because the memory could never forget them.
    """

    def check(self, schedule: UpdateSteps | None) -> None:
        """Raise ``ValueError`` unless the memory fits the schedule."""
        if schedule is None or schedule.interval is None:
            raise ValueError(
                "a memory of gradients needs updates of the masks at a fixed interval, "
                f"got schedule {schedule}"
            )

    @abc.abstractmethod
    def dense_gradients(self, interval: int) -> float:
        """Return the fraction of steps whose dense gradients it reads."""

    @abc.abstractmethod
    def observe(
        self, schedule: UpdateSchedule, count: Any, memory: Any, grads: Any
    ) -> Any:
        """Return the memory, for growth to read, with the gradient of ``count`` added.

        Args:
          schedule: when the masks are updated.
          count: int32 scalar, the step.
          memory: float32 tree like the masks.
          grads: the dense gradient.

        Returns:
          A tree like ``memory``.
        """


@dataclasses.dataclass(frozen=True)
class MeanGradient(GradientMemory):
    """The sum of the gradients of the last steps, which ranks weights as the mean does.

    The last of these steps is the step of the update. The other steps between two
    updates are not read and cost nothing.

    Attributes:
      steps: how many, at least 1 and at most the steps between two updates.

    Raises:
      TypeError: if ``steps`` is not an integer.
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
                f"gradients of {self.steps} steps cannot be averaged if the masks are "
                f"updated every {interval}: average fewer, or update less often"
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
    """The exponential moving average of all gradients so far: dense momentum.

    Attributes:
      decay: the weight of the previous average at each step, in [0, 1).

    Raises:
      ValueError: if ``decay`` is outside [0, 1).
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        number("momentum", self.decay, 0, below=1)

    def dense_gradients(self, interval: int) -> float:
        """Return 1: it reads every gradient."""
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
    """Return the gradients of the remembered leaves, in the memory's structure."""
    return map_masked(lambda grad, _: grad, grads, memory)


def _finite(grad: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(grad), grad, 0).astype(jnp.float32)

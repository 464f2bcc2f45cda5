"""When a topology changes, and by how much."""

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

DECAYS = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class UpdateSchedule:
    """Every how many steps a topology changes, and which fraction of it.

    Attributes:
      every: steps from one change to the next (RigL's delta T).
      start: first step that may change the topology.
      stop: first step that may not (RigL's T_end).
      drop_fraction: fraction of the active weights that a change replaces at step 0
        (RigL's alpha).
      decay: how that fraction falls until ``stop``: ``"cosine"``, ``"linear"`` or
        ``"constant"``.

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
    decay: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("every", "start", "stop"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise TypeError(
                    f"{name} must be an integer number of steps, got {value!r}"
                ) from None
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if self.start < 0:
            raise ValueError(f"start must be at least 0, got {self.start}")
        if self.stop <= self.start:
            raise ValueError(
                f"stop must be greater than start = {self.start}, got {self.stop}"
            )
        if not 0.0 <= self.drop_fraction <= 1.0:
            raise ValueError(
                f"drop_fraction must be in [0, 1], got {self.drop_fraction}"
            )
        if self.decay not in DECAYS:
            raise ValueError(
                f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}"
            )

    def due(self, count: Any) -> Any:
        """Whether the topology changes at step ``count``.

        Args:
          count: an int, or an int array.

        Returns:
          A bool for an int, so that a host loop waits for nothing; else a bool array.
        """
        return (
            (count >= self.start)
            & (count < self.stop)
            & ((count - self.start) % self.every == 0)
        )

    def fraction(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Fraction of the active weights that step ``count`` replaces: float32 scalar.

        Note:
          As in the published code the decay runs over the global step, from 0 to
          ``stop``: a later ``start`` begins at the fraction the decay has reached.
        """
        progress = jnp.asarray(count, jnp.float32) / self.stop
        if self.decay == "cosine":
            return self.drop_fraction / 2 * (1 + jnp.cos(math.pi * progress))
        if self.decay == "linear":
            return self.drop_fraction * (1 - progress)
        return jnp.full_like(progress, self.drop_fraction)

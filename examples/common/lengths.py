"""Lengths and warm-ups of recipes."""

import dataclasses
from typing import Any, TypeVar

import optax

AnyRecipe = TypeVar("AnyRecipe", bound=Any)


def stretched(recipe: AnyRecipe, multiplier: float) -> AnyRecipe:
    """Multiply the epochs and the warm-up epochs of a recipe.

    Args:
      recipe: a dataclass with ``epochs`` and ``warmup_epochs``.
      multiplier: 5 is RigL's 5x.

    Returns:
      The recipe; everything else that is counted in epochs is unchanged.

    Raises:
      ValueError: if the multiplier is not above 0.
    """
    if not multiplier > 0:
        raise ValueError(f"multiplier must be above 0, got {multiplier}")
    return dataclasses.replace(
        recipe,
        epochs=multiplier * recipe.epochs,
        warmup_epochs=multiplier * recipe.warmup_epochs,
    )


def total_steps(recipe: Any, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps in the whole training, at least 1."""
    return max(1, round(recipe.epochs * steps_per_epoch))


def warmup_steps(recipe: Any, steps_per_epoch: int) -> int:
    """Return the number of warm-up steps, fewer than the total."""
    steps = round(recipe.warmup_epochs * steps_per_epoch)
    return min(steps, total_steps(recipe, steps_per_epoch) - 1)


def warmed_up(
    after: optax.Schedule, start: float, peak: float, steps: int
) -> optax.Schedule:
    """Put a linear rise to the peak, over ``steps`` steps, before a schedule."""
    if steps == 0:
        return after
    rise = optax.linear_schedule(start, peak, steps)
    return optax.join_schedules([rise, after], [steps])

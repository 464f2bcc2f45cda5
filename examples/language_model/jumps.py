"""Loss jumps and setbacks: the cost of an update of the masks during training.

The loss of a step is measured at the weights that it starts from, and the masks are
updated at its end. So the jump at step t is

    jump(t) = mean(loss[t + 1], ..., loss[t + 10]) - mean(loss[t - 9], ..., loss[t])

and the loss jump of a run is the mean of jump(t) over those updates that have ten steps
on either side. It includes what is learned in ten steps and the noise from step to
step, both of which may be larger than the effect of the update.

So this effect is also measured separately. From the state before step t, the training
is continued a second time on the same batches, but without the update of the masks.
With the losses of this twin the setback is

    setback(t) = mean(loss[t + 1] - twin[t + 1], ..., loss[t + 10] - twin[t + 10])

Both are measured twice: on the training batches, and on one fixed batch of held-out
text, the probe. Jumps on the training batches are dominated by the differences between
batches.
"""

from collections.abc import Sequence

import numpy as np

AROUND = 10


def judged(changes: Sequence[int], steps: int) -> list[int]:
    """Return the updates with ``AROUND`` of the run's steps on either side."""
    return [t for t in changes if AROUND - 1 <= t < steps - AROUND]


def jumps(losses: np.ndarray, changes: Sequence[int]) -> np.ndarray:
    """Return the jump of each update.

    Args:
      losses: (steps,), before each step.
      changes: the steps at whose end the masks are updated.

    Returns:
      (changes,).
    """
    before = _at(losses, changes, range(1 - AROUND, 1))
    return _after(losses, changes).mean(axis=1) - before.mean(axis=1)


def differences(
    losses: np.ndarray, changes: Sequence[int], twins: np.ndarray
) -> np.ndarray:
    """Return the loss that an update costs in each step after it.

    The mean of a row is a setback.

    Args:
      losses: (steps,), before each step.
      changes: the steps at whose end the masks are updated.
      twins: (changes, AROUND), the losses after each update if it had not happened.

    Returns:
      (changes, AROUND).
    """
    return _after(losses, changes) - np.asarray(twins, float)


def _after(losses: np.ndarray, changes: Sequence[int]) -> np.ndarray:
    return _at(losses, changes, range(1, AROUND + 1))


def _at(losses: np.ndarray, changes: Sequence[int], steps: range) -> np.ndarray:
    """Return losses at given offsets from each update: (changes, len(steps))."""
    return np.asarray(losses, float)[np.asarray(changes)[:, None] + np.array(steps)]

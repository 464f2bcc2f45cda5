"""Loss jumps and setbacks: what a change of the topology does to a training.

The loss of a step is that of the weights that it starts from, and the masks change at
its end. So the jump at step t is

    jump(t) = mean(loss[t + 1], ..., loss[t + 10]) - mean(loss[t - 9], ..., loss[t])

and the loss jump of a run is the mean of jump(t) over those changes that have ten steps
on either side. What is learned in ten steps is part of it, and so is the wandering of a
training from step to step, both of which may be larger than what the change does.

So that is measured by itself as well. From the state before step t the training is
continued a second time, on the same batches, but with the masks as they were. With the
losses of this twin the setback is

    setback(t) = mean(loss[t + 1] - twin[t + 1], ..., loss[t + 10] - twin[t + 10])

Both are measured twice: on the training batches, and on one batch of held-out text that
stays the same, the probe. Jumps on the training batches are little but the difference
between batches.
"""

from collections.abc import Sequence

import numpy as np

AROUND = 10


def judged(changes: Sequence[int], steps: int) -> list[int]:
    """The changes that have ``AROUND`` steps on either side, in a run of ``steps``."""
    return [t for t in changes if AROUND - 1 <= t < steps - AROUND]


def jumps(losses: np.ndarray, changes: Sequence[int]) -> np.ndarray:
    """The jump of each change.

    Args:
      losses: (steps,), before each step.
      changes: at the end of which steps.

    Returns:
      (changes,).
    """
    before = _at(losses, changes, range(1 - AROUND, 1))
    return _after(losses, changes).mean(axis=1) - before.mean(axis=1)


def differences(
    losses: np.ndarray, changes: Sequence[int], twins: np.ndarray
) -> np.ndarray:
    """What each step after a change has lost by it; the mean of a row is a setback.

    Args:
      losses: (steps,), before each step.
      changes: at the end of which steps.
      twins: (changes, AROUND), what the losses after each change would be without it.

    Returns:
      (changes, AROUND).
    """
    return _after(losses, changes) - np.asarray(twins, float)


def _after(losses: np.ndarray, changes: Sequence[int]) -> np.ndarray:
    return _at(losses, changes, range(1, AROUND + 1))


def _at(losses: np.ndarray, changes: Sequence[int], steps: range) -> np.ndarray:
    """Losses at some steps from each change on: (changes, len(steps))."""
    return np.asarray(losses, float)[np.asarray(changes)[:, None] + np.array(steps)]

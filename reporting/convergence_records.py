"""What the records hold that ``convergence.py`` and its like store of a condition."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Row = Mapping[str, Any]


def epochs_at(share: float, epochs: int) -> int:
    """How many epochs a share of them is, one at least.

    >>> epochs_at(1 / 9, 20), epochs_at(1 / 9, 2), epochs_at(1, 20)
    (2, 1, 20)
    """
    return max(1, round(share * epochs))


def by_arm(own: Row) -> dict[str, Row]:
    """The rows of a condition by their arms."""
    return {row["arm"]: row for row in own["arms"]}


def accuracies(own: Row, arm: str, share: float = 1.0) -> np.ndarray:
    """The accuracy with each seed.

    Args:
      own: the record of a condition.
      arm: the correction.
      share: of the epochs after which accuracies are taken.

    Returns:
      Fractions, (seeds,).
    """
    curves = np.asarray(own["accuracies"][[*by_arm(own)].index(arm)])  # (seeds, epochs)
    return curves[:, epochs_at(share, curves.shape[1]) - 1]

"""Statistics of runs that share their seeds, and of the records that hold them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
Row = Mapping[str, Any]


def difference(one: ArrayLike, other: ArrayLike) -> dict[str, float]:
    """Compare two arms seed by seed.

    Args:
      one: a number for each seed.
      other: numbers of the other arm, in the same order.

    Returns:
      The mean difference, its interval, and the p-value of the paired t-test, which is
      1 if all differences are 0.

    >>> found = difference([1.0, 2.0, 3.0, 5.0], [0.0, 2.0, 2.0, 3.0])
    >>> {name: round(value, 4) for name, value in found.items()}
    {'mean': 1.0, 'low': -0.2992, 'high': 2.2992, 'p': 0.0917}
    """
    gaps = np.asarray(one, float) - np.asarray(other, float)
    mean, deviation = float(gaps.mean()), float(gaps.std(ddof=1))
    if deviation == 0.0:
        return {"mean": mean, "low": mean, "high": mean, "p": float(mean == 0.0)}
    error = deviation / math.sqrt(len(gaps))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(gaps) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(gaps) - 1))
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several tests by Holm's method.

    Args:
      p_values: one for each test.

    Returns:
      Corrected p-values in the same order: if all below 0.05 count as real, the
      probability of at least one false positive is at most 0.05.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def epochs_at(share: float, epochs: int) -> int:
    """Return how many epochs a fraction of them is, at least one.

    >>> epochs_at(1 / 9, 20), epochs_at(1 / 9, 2), epochs_at(1, 20)
    (2, 1, 20)
    """
    return max(1, round(share * epochs))


def by_arm(entry: Row) -> dict[str, Row]:
    """Return the rows of a condition by their arms."""
    return {row["arm"]: row for row in entry["arms"]}


def accuracies(entry: Row, arm: str, share: float = 1.0) -> np.ndarray:
    """Return the accuracy with each seed.

    Args:
      entry: the record of a condition.
      arm: the correction.
      share: the fraction of the epochs after which accuracies are taken.

    Returns:
      Fractions, (seeds,).
    """
    index = [*by_arm(entry)].index(arm)
    curves = np.asarray(entry["accuracies"][index])  # (seeds, epochs)
    return curves[:, epochs_at(share, curves.shape[1]) - 1]

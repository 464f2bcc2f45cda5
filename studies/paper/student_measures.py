"""Measures that compare the runs of ``student_teacher``, and rows of its tables."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from studies.paper.student import Outcome

OFF = 0.01  # a neuron below this fraction of the teacher's output is off
SAME = 0.01  # losses are equal up to this fraction of the loss without a student
SCALINGS = ("none", "own", "rule")

# Inputs, and how many of them the sparse neuron sees.
Cell = tuple[int, int]


class Arm(NamedTuple):
    """One of the runs of every seed.

    Attributes:
      scaling: one of ``SCALINGS``.
      alpha: strength of HAM.
      signs: signs of each neuron's a at the start, the sparse neuron's last.
      size: factor on the initial weights.
    """

    scaling: str
    alpha: float
    signs: tuple[int, ...]
    size: float = 1.0


def flips(outcome: Outcome) -> float:
    """Return the fraction of runs that end with the teacher's sign.

    Among runs that start with the other sign, these have flipped it.
    """
    return float((outcome.a[:, -1] > 0).mean())


def faster(one: Outcome, other: Outcome) -> float | None:
    """Return the median ratio of steps, one / other, where both converge."""
    both = (one.reached >= 0) & (other.reached >= 0)
    if not both.any():
        return None
    ratio = (one.reached[both] + 1) / (other.reached[both] + 1)
    return round(float(np.median(ratio)), 3)


def alike(one: Outcome, other: Outcome) -> float:
    """Return the fraction of runs that end at the same loss and with the same sign."""
    near = np.abs(one.loss - other.loss) <= SAME
    return float((near & ((one.a > 0) == (other.a > 0)).all(axis=-1)).mean())


def is_off(outcome: Outcome) -> np.ndarray:
    """Tell, by run, whether the first neuron, the dense one, is off at the end."""
    return outcome.share[:, 0] < OFF


def one_neuron(
    cell: Cell, eta: float, found: Mapping[Arm, Outcome]
) -> list[dict[str, Any]]:
    """Return a row for each strength of HAM."""
    rows = []
    for alpha in dict.fromkeys(arm.alpha for arm in found):
        right, wrong = (
            [found[Arm(scaling, alpha, (sign,))] for scaling in SCALINGS[:2]]
            for sign in (1, -1)
        )
        rows.append(
            {
                **_about(cell, eta),
                "alpha": alpha,
                "flips": round(flips(wrong[0]), 3),
                "flips_scaled": round(flips(wrong[1]), 3),
                **_speeds(*right),
                "drift": _drift([*right, *wrong]),
            }
        )
    return rows


def _drift(outcomes: Sequence[Outcome]) -> float | None:
    """Return the largest of all; None if a run has diverged."""
    largest = float(max(outcome.drift.max() for outcome in outcomes))
    return float(f"{largest:.3g}") if np.isfinite(largest) else None


def _median(outcome: Outcome) -> float | None:
    steps = outcome.reached[outcome.reached >= 0]
    return float(np.median(steps)) if len(steps) else None


def first_sizes(
    cell: Cell, eta: float, found: Mapping[Arm, Outcome]
) -> list[dict[str, Any]]:
    """Return a row for each size of the initial weights."""
    rows = []
    for size in dict.fromkeys(arm.size for arm in found):
        plain, scaled = (found[Arm(name, 0.0, (1,), size)] for name in SCALINGS[:2])
        rows.append(
            {
                **_about(cell, eta),
                "size": size,
                **_speeds(plain, scaled),
            }
        )
    return rows


def _about(cell: Cell, eta: float) -> dict[str, Any]:
    return {"inputs": cell[0], "active": cell[1], "eta": eta}


def _speeds(plain: Outcome, scaled: Outcome) -> dict[str, Any]:
    return {
        "reached": round(float((plain.reached >= 0).mean()), 3),
        "reached_scaled": round(float((scaled.reached >= 0).mean()), 3),
        "steps": _median(plain),
        "steps_scaled": _median(scaled),
        "steps_ratio": faster(scaled, plain),
        "same_end": round(alike(scaled, plain), 3),
    }


def two_neurons(
    cell: Cell, eta: float, found: Mapping[Arm, Outcome]
) -> list[dict[str, Any]]:
    """Return a row for each strength of HAM and start."""
    rows = []
    for alpha, signs in dict.fromkeys((arm.alpha, arm.signs) for arm in found):
        by_scaling = {
            scaling: found[Arm(scaling, alpha, signs)] for scaling in SCALINGS
        }
        off = {scaling: is_off(outcome) for scaling, outcome in by_scaling.items()}
        rows.append(
            {
                **_about(cell, eta),
                "alpha": alpha,
                "start": " ".join("+" if sign > 0 else "-" for sign in signs),
                **{f"off_{name}": round(float(o.mean()), 3) for name, o in off.items()},
                # Runs of one seed start alike.
                "switched_own": round(float((off["own"] & ~off["none"]).mean()), 3),
                "switched_rule": round(float((off["rule"] & ~off["none"]).mean()), 3),
                "kept_own": round(float((off["none"] & ~off["own"]).mean()), 3),
                "kept_rule": round(float((off["none"] & ~off["rule"]).mean()), 3),
                **{
                    f"reached_{name}": round(float((o.reached >= 0).mean()), 3)
                    for name, o in by_scaling.items()
                },
            }
        )
    return rows

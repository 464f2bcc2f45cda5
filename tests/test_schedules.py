"""When topologies change, and by how much."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.schedules import UpdateSchedule


def test_due_from_start_until_stop():
    schedule = UpdateSchedule(every=4, start=6, stop=15)
    assert [t for t in range(30) if schedule.due(t)] == [6, 10, 14]
    assert [t for t in range(30) if schedule.due(jnp.int32(t))] == [6, 10, 14]
    assert schedule.due(10) is True


def test_rigl_changes_at_step_zero_and_not_at_stop():
    schedule = UpdateSchedule(every=5, start=0, stop=10)
    assert [t for t in range(30) if schedule.due(t)] == [0, 5]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # alpha / 2 * (1 + cos(pi t / T)) at t / T = 0, 1/4, 1/2, 3/4, 1
        ("cosine", [0.3, 0.15 * (1 + 0.5**0.5), 0.15, 0.15 * (1 - 0.5**0.5), 0.0]),
        ("linear", [0.3, 0.225, 0.15, 0.075, 0.0]),
        ("constant", [0.3] * 5),
    ],
)
def test_fractions(decay, expected):
    schedule = UpdateSchedule(1, 0, 100, drop_fraction=0.3, decay=decay)
    fractions = [schedule.fraction(t) for t in (0, 25, 50, 75, 100)]
    np.testing.assert_allclose(fractions, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be at least 1 step, got 0"),
        (
            {"every": 1.5},
            TypeError,
            "every must be an integer number of steps, got 1.5",
        ),
        ({"start": -1}, ValueError, "start must be at least 0, got -1"),
        ({"start": 100}, ValueError, "stop must be greater than start = 100, got 100"),
        ({"stop": None}, TypeError, "stop must be an integer"),
        (
            {"drop_fraction": 1.5},
            ValueError,
            r"drop_fraction must be in \[0, 1\], got 1.5",
        ),
        ({"drop_fraction": float("nan")}, ValueError, "got nan"),
        (
            {"decay": "cubic"},
            ValueError,
            "inverse_power, linear, or a function of the step, got 'cubic'",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    good = {"every": 10, "start": 0, "stop": 100}
    with pytest.raises(error, match=message):
        UpdateSchedule(**(good | change))

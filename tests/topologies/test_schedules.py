"""The steps and sizes of updates."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.topologies.schedules import (
    FOREVER,
    StepList,
    UpdateSchedule,
    described_updates,
)


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


def test_the_updates_are_counted():
    assert list(UpdateSchedule(every=4, start=6, stop=15).steps) == [6, 10, 14]
    assert list(UpdateSchedule(every=4, start=6, stop=14).steps) == [6, 10]
    sentences = {
        UpdateSchedule(4, 6, 15): "3 times, at steps 6 to 14",
        UpdateSchedule(100, 0, 50): "once, at step 0",
        UpdateSchedule(1, 0, FOREVER): "every step, from step 0 on",
        UpdateSchedule(100, 5, FOREVER): "every 100 steps, from step 5 on",
        StepList((3, 1000)): "2 times, at steps 3 to 1,000",
    }
    for schedule, expected in sentences.items():
        assert described_updates(schedule) == f"Masks are updated {expected}."
    assert described_updates(None) == ""


@pytest.mark.parametrize("schedule", [UpdateSchedule(4, 6, 15), StepList((6, 10, 14))])
def test_the_update_before(schedule):
    counts = [7, 9, 10, 11, 14, 15, 30]
    assert [int(schedule.previous(t)) for t in counts] == [6, 6, 6, 10, 10, 14, 14]
    assert [int(schedule.previous(jnp.int32(t))) for t in (11, 14)] == [10, 10]
    assert [int(schedule.previous(t)) for t in (0, 6)] == [5, 5]  # none before


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, jnp.int32])
def test_integers_of_any_kind_are_steps(integer):
    schedule = UpdateSchedule(*map(integer, (4, 6, 15)))
    assert schedule == UpdateSchedule(4, 6, 15) and type(schedule.every) is int
    assert StepList((integer(3), integer(5))) == StepList((3, 5))


@pytest.mark.parametrize("name", ["every", "start", "stop"])
@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float32(1), "1"])
def test_what_is_not_an_integer_is_no_step(name, value):
    with pytest.raises(TypeError, match=f"{name} must be an integer number of steps"):
        UpdateSchedule(**{"every": 1, "start": 0, "stop": 9, name: value})
    with pytest.raises(TypeError, match="steps must be an integer"):
        StepList((value,))


def test_steps_that_an_int32_does_not_count_are_refused():
    with pytest.raises(ValueError, match=r"stop must be at most 2\*\*31 - 1"):
        UpdateSchedule(1, 0, 2**31)
    with pytest.raises(ValueError, match=r"steps must be at most 2\*\*31 - 1"):
        StepList((2**31,))


def test_the_inverse_power_is_the_third():
    schedule = UpdateSchedule(1, 0, 100, drop_fraction=0.8, decay="inverse_power")
    fractions = [schedule.fraction(t) for t in (0, 50, 75, 100)]
    np.testing.assert_allclose(fractions, [0.8, 0.1, 0.0125, 0], atol=1e-7)


@pytest.mark.parametrize(
    "schedule", [UpdateSchedule(4, 6, 15), UpdateSchedule(1, 0, 9), StepList((0, 5, 7))]
)
def test_the_next_step_that_is_due(schedule):
    for count in range(20):
        left = [step for step in schedule.steps if step >= count]
        assert schedule.next_due(jnp.int32(count)) == min(left, default=FOREVER)
    endless = UpdateSchedule(3, 1, FOREVER)
    assert endless.next_due(jnp.int32(2**31 - 9)) == 2**31 - 7

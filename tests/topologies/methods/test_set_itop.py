"""ITOP equals SET and RigL with its own settings."""

import sparseopt_jax as so
from sparseopt_jax.topologies.schedules import UpdateSchedule


def test_itop_is_set_and_rigl_with_other_settings():
    assert so.set_itop(0.9, stop=9000).schedule == UpdateSchedule(1500, 0, 9000, 0.5)
    assert so.rigl_itop(0.9, stop=9000).schedule == UpdateSchedule(4000, 0, 9000, 0.5)
    for itop, make in ((so.set_itop, so.set_), (so.rigl_itop, so.rigl)):
        made = itop(0.9, stop=90, every=7, start=3, drop_fraction=0.1, decay="linear")
        plain = make(0.9, stop=90, every=7, start=3, drop_fraction=0.1, decay="linear")
        assert made.track_explored and made.schedule == plain.schedule
        assert made.replaces_step == plain.replaces_step
        assert (made.drop, made.grow) == (plain.drop, plain.grow)
        assert made.name == f"{plain.name}_itop"

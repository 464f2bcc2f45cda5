"""The reliability study: its programs, and what they must not overlook."""

import json
import os
import time

import jax
import jax.numpy as jnp
import optax
import pytest

import sparseopt_jax as so
from reporting import stored
from reporting.pages import surviving
from sparseopt_jax.topologies.catalogue import METHODS
from studies.reliability import (
    __main__,
    disk_images,
    faults,
    flushing,
    invariants,
    kills,
    non_finite,
    power,
)
from studies.reliability.interruptions import Outcome, Trials, _Moment
from studies.reliability.options import Notes, Options

QUICK = {"quick": True, "allow_dirty": True}


@pytest.fixture
def record(tmp_path):
    """Run a program with --quick; return its record."""

    def run(program, **options):
        output = tmp_path / "record.json"
        work = tmp_path / "work"
        program.main(Options(**QUICK, output=output, work=work, **options))
        return json.loads(output.read_text())

    return run


def met(record):
    return all(claim["met"] for claim in record["claims"])


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Return the table of the page with this record alone."""

    def show(part, record):
        path = tmp_path / f"{part}.json"
        path.write_text(json.dumps(record))
        monkeypatch.setattr(
            surviving,
            "path_of",
            lambda program: path if program.endswith(part) else tmp_path / "none",
        )
        monkeypatch.setattr(surviving, "load", lambda program: record)
        return surviving.reliability()

    return show


# Kills.


@pytest.mark.slow
def test_killed_trainings_are_those_left_alone(record, shown, monkeypatch):
    monkeypatch.setattr(kills, "KILLS", {"language model": 40})
    found = record(kills)
    (row,) = found["tables"][0]["rows"]
    assert row["ended"] == 2 and row["runs to the end"] >= 1 and met(found)
    assert "| SIGKILL: language model | 2, " in shown("kills", found)


@pytest.fixture
def trials(tmp_path):
    """Trials whose uninterrupted run has the states a, b and c."""
    found = Trials.__new__(Trials)
    found.digests = ["a", "b", "c"]
    return found


def inspect(trials, folder, *lines, steps=(), over=False):
    directory, log = folder / "checkpoints", folder / "log"
    for step in steps:
        (directory / str(step)).mkdir(parents=True)
    log.write_text("".join(f"{line}\n" for line in lines))
    return trials.inspect(directory, log, 0, over)


def test_what_was_reported_as_saved_must_be_there(trials, tmp_path):
    assert inspect(trials, tmp_path, "saved 1", steps=()).lost == 1


def test_a_later_step_stands_for_an_earlier_one(trials, tmp_path):
    found = inspect(trials, tmp_path, "saved 1", "saving 2", steps=(2,))
    assert found.lost == 0 and found.latest == 2


def test_what_is_found_must_be_the_uninterrupted_run(trials, tmp_path):
    lines = ("checked 1 b", "checked 2 x", "started 2 x", "sav")
    assert inspect(trials, tmp_path, *lines, steps=(1, 2)).different == 2


def test_a_checkpoint_that_cannot_be_read_is_counted(trials, tmp_path):
    lines = ("checked 1 b", "unreadable 2")
    assert inspect(trials, tmp_path, *lines, steps=(1, 2), over=True).unreadable == 1


def test_a_process_that_ends_too_early_has_failed(trials, tmp_path):
    assert inspect(trials, tmp_path, "started 0 a", over=True).failed
    assert not inspect(trials, tmp_path, "started 0 a", "ended 2 c", over=True).failed


def test_a_save_that_an_earlier_run_left_is_not_under_way(tmp_path):
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    moment = _Moment(tmp_path, tmp_path / "log", 0)
    assert not moment.is_saving
    # The first save of a run removes what is left, and may use the same name.
    (tmp_path / "2.orbax-checkpoint-tmp").rmdir()
    assert not moment.is_saving
    time.sleep(0.02)  # times of change are that coarse
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert moment.is_saving
    (tmp_path / "2.orbax-checkpoint-tmp").rename(tmp_path / "2")
    assert not moment.is_saving


FAILED = Outcome(False, 3, 0, 0, 0, failed=True, ended=False)
KILLED = FAILED._replace(failed=False)
ENDED = FAILED._replace(failed=False, ended=True)


class KnownTrials:
    """Trials whose outcomes are given."""

    def __init__(self, folder, *outcomes):
        self.folder, self.outcomes = folder, list(outcomes)

    def run_interrupted(self, *args):
        return self.outcomes.pop(0)

    run_to_end = run_interrupted


@pytest.fixture
def notes(tmp_path):
    found = Notes.__new__(Notes)
    found.folder, found.rows = tmp_path, []
    return found


def test_every_kill_counts_and_the_last_run_ends(notes, tmp_path):
    unreadable = FAILED._replace(unreadable=1)
    outcomes = (KILLED, ENDED, FAILED, unreadable, KILLED, FAILED, ENDED)
    trials = KnownTrials(tmp_path, *outcomes)
    kills.interrupt_often(notes, trials, "digits", 2, kills.kill)
    assert not trials.outcomes
    row = kills.summary(notes, "digits")
    assert (row["ended"], row["corrupt"], row["runs to the end"]) == (2, 1, 2)


def test_a_training_that_fails_by_itself_is_not_tried_for_ever(notes, tmp_path):
    trials = KnownTrials(tmp_path, KILLED, *[FAILED] * 10)
    with pytest.raises(SystemExit, match="failed 5 times in a row"):
        kills.interrupt_often(notes, trials, "digits", 2, kills.kill)
    assert len(notes.rows) == 6


def test_a_study_that_was_stopped_starts_a_new_training(notes, tmp_path):
    class NewTrials(KnownTrials):
        def run_interrupted(self, directory, log, *args):
            assert not log.exists() and not directory.exists()
            return super().run_interrupted()

    # What the old one reported as saved may have been on a disk that is gone.
    (tmp_path / "log").write_text("saved 3\n")
    (tmp_path / "checkpoints").mkdir()
    trials = NewTrials(tmp_path, KILLED, ENDED)
    kills.interrupt_often(notes, trials, "digits", 1, kills.kill)


# Faults and power failures.


@pytest.mark.slow
def test_faults_raise_and_cost_no_other_checkpoint(record, shown):
    found = record(faults, count=1)
    rows = found["tables"][0]["rows"]
    assert len(rows) == len(faults.FAULTS) - (not disk_images.can_mount())
    for row in rows:
        assert row["met"] == row["went on"] == 1
    assert met(found)
    assert "an unwritable folder during a save | 1, " in shown("faults", found)


@pytest.mark.slow
@pytest.mark.skipif(not disk_images.can_mount(), reason="only root may mount")
def test_trainings_outlast_a_power_failure(record, monkeypatch):
    monkeypatch.setattr(power, "CUTS", {"language model": 10})
    found = record(power)
    (row,) = found["tables"][0]["rows"]
    assert row["ended"] == 2 and met(found)


def test_a_power_failure_needs_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="Only root"):
        power.main(Options(**QUICK))


# Non-finite gradients.


def test_every_method_is_tried():
    names = {topology.name for topology in non_finite.topologies().values()}
    # STR is no topology: its thresholds are parameters.
    assert {name.rstrip("_") for name in METHODS} - names == {"str"}


@pytest.mark.slow
def test_masked_weights_stay_zero(record, shown):
    found = record(non_finite)
    assert len(found["tables"][0]["rows"]) == 2 and met(found)
    assert "2 topologies, 126 trainings" in shown("non_finite", found)


def test_a_masked_weight_that_is_not_zero_is_counted():
    params = {
        "hidden": {"kernel": jnp.array([[1.0, jnp.nan], [0.0, 2.0]])},
        "head": {"kernel": jnp.ones((2, 2))},
    }
    masks = {
        "hidden": {"kernel": jnp.array([[True, False], [False, False]])},
        "head": {"kernel": optax.MaskedNode()},
    }
    topology = so.static(masks=masks)
    state = so.sparsify(optax.sgd(0.1), topology).init(params)
    nonzero, active = jax.jit(non_finite._counted)(params, state)
    assert (int(nonzero), int(active)) == (2, 1)


# Properties.


def test_the_properties_are_those_that_are_given_examples():
    source = "@examples(3)\n@given(\n    x=y,\n)\ndef test_a(x):\n\ndef test_b():\n"
    assert invariants._drawn(source) == ["test_a"]


@pytest.mark.slow
def test_more_examples_are_asked_for(record, shown):
    found = record(invariants)
    (row,) = found["tables"][0]["rows"]
    assert row["examples"] == 2 and not row["failed"]
    assert "1 properties, 2 examples each" in shown("invariants", found)


# The cost of flushing.


def test_the_cost_of_flushing_is_measured(record, shown):
    found = record(flushing)
    assert "20,000 weights with momentum and masks" in shown("flushing", found)
    counted = {row["checkpoint"]: row["flushes"] for row in found["tables"][1]["rows"]}
    assert counted["without"] == 0 < counted["with"]


# The whole study.


def test_what_is_not_measured_is_said_to_be(shown):
    text = shown("nothing", None)
    for part in __main__.PROGRAMS:
        command = f"not measured yet: `python -m studies.reliability.{part}`"
        assert command in text


def test_one_file_is_not_for_all_records(tmp_path):
    with pytest.raises(SystemExit, match="--output names the record of one program"):
        __main__.AllOptions(output=tmp_path / "record.json")


def test_all_programs_get_the_options(monkeypatch):
    given = []
    for program in __main__.PROGRAMS.values():
        monkeypatch.setattr(program, "main", given.append)
    monkeypatch.setattr(__main__, "can_mount", lambda: False)
    __main__.main(__main__.AllOptions(quick=True, count=3))
    assert given == [Options(quick=True, count=3)] * (len(__main__.PROGRAMS) - 1)


def test_records_have_a_place_of_their_own():
    path = stored.path_of("studies.reliability.kills")
    assert path == stored.ROOT / "studies/results/reliability/kills.json"

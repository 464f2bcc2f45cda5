import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from reporting import harness, machine, stored
from tests.helpers.pages import ROOT


class Pending:
    """A result that is ready once something has waited for it."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def block_until_ready(self):
        self.clock.now += self.seconds
        return self


class Clock:
    """A clock that advances only when something waits."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness.time, "perf_counter", clock)
    return clock


@pytest.fixture
def checkout(tmp_path):
    """Return a repository with one commit."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    git(tmp_path, *identity, "commit", "--quiet", "--message", "first")
    return tmp_path


def git(root, *arguments):
    done = subprocess.run(
        ["git", "-C", root, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def timing(*seconds):
    return harness.Timing(0.0, dict(enumerate(seconds)))


def test_candidates_take_turns_after_two_calls_that_do_not_count():
    calls = []
    candidates = [
        harness.Candidate("A", lambda: calls.append("A")),
        harness.Candidate("B", lambda: calls.append("B"), every=2),
        harness.Candidate("C", lambda: calls.append("C")),
    ]
    timings = harness.measure(candidates, rounds=3)
    rounds = ["".join(sorted(calls[i:j])) for i, j in ((6, 9), (9, 11), (11, 14))]
    assert "".join(calls[:6]) == "ABC" + "ABC"
    assert rounds == ["ABC", "AC", "ABC"]
    assert list(timings["A"].seconds) == [0, 1, 2]
    assert list(timings["B"].seconds) == [0, 2]


def test_the_order_changes_from_round_to_round():
    calls = []
    candidates = [
        harness.Candidate(name, lambda name=name: calls.append(name)) for name in "ABC"
    ]
    harness.measure(candidates, rounds=10)
    rounds = {tuple(calls[i : i + 3]) for i in range(6, len(calls), 3)}
    assert len(rounds) > 2


def test_times_are_per_step_and_waited_for(clock):
    def run():
        return [Pending(clock, 6.0)]

    timings = harness.measure([harness.Candidate("A", run, steps=3)], rounds=2)
    assert timings["A"] == harness.Timing(6.0, {0: 2.0, 1: 2.0})


def test_the_first_call_is_kept_apart(clock):
    seconds = iter([60.0, 7.0, 2.0])
    candidate = harness.Candidate("A", lambda: Pending(clock, next(seconds)))
    timings = harness.measure([candidate], rounds=1)
    assert timings["A"] == harness.Timing(60.0, {0: 2.0})


def test_first_results_are_checked_before_anything_is_timed():
    calls = []

    def check(results):
        assert calls == ["A", "B"]
        raise AssertionError(f"wrong: {results}")

    candidates = [
        harness.Candidate(name, lambda name=name: calls.append(name) or name.lower())
        for name in "AB"
    ]
    with pytest.raises(AssertionError, match="'A': 'a', 'B': 'b'"):
        harness.measure(candidates, 1, check)


def test_two_candidates_of_one_name_are_refused():
    twice = [harness.Candidate("A", lambda: None)] * 2
    with pytest.raises(ValueError, match="different names"):
        harness.measure(twice, rounds=1)


def test_ratios_are_taken_within_a_round():
    # The second round was slow for both; the baseline took no part in the third.
    ratio = timing(1.0, 100.0, 8.0).ratio(timing(2.0, 200.0))
    assert ratio == harness.Spread(0.5, 0.5, 0.5, 0.5, 0.5)


def test_spread_of_a_sample():
    spread = harness.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert spread == harness.Spread(median=3.0, q1=2.0, q3=4.0, min=1.0, max=5.0)


def test_a_commit_with_nothing_changed_is_clean(checkout):
    assert machine.working_tree(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("name", ["code.py", "new.py", "benchmarks/new.py"])
def test_a_changed_or_new_file_makes_the_tree_dirty(checkout, name):
    path = checkout / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x = 2\n")
    assert machine.working_tree(checkout)[1]


def test_a_folder_without_commits_counts_as_dirty(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.working_tree(tmp_path) == (None, True)
    git(tmp_path, "init", "--quiet")
    assert machine.working_tree(tmp_path) == (None, True)


@pytest.mark.parametrize("quick", [False, True])
def test_a_dirty_tree_is_refused_unless_allowed(checkout, quick):
    (checkout / "code.py").write_text("x = 2\n")
    with pytest.raises(SystemExit, match="--allow-dirty"):
        harness.Report("benchmarks.some", harness.Options(quick=quick), checkout)
    allowed = harness.Options(quick=quick, allow_dirty=True)
    assert harness.Report("benchmarks.some", allowed, checkout).record["dirty"]


def test_records_lie_in_results_and_leave_the_tree_clean(checkout):
    for name in ("first", "second"):
        report = harness.Report(f"benchmarks.{name}", harness.Options(), checkout)
        report.store()
        assert report.path.parent == checkout / "benchmarks" / "results"
        record = json.loads(report.path.read_text())
        assert record["commit"] == git(checkout, "rev-parse", "HEAD")
        assert record["dirty"] is False


def test_a_quick_run_is_stored_only_where_it_is_told(checkout):
    harness.Report("benchmarks.some", harness.Options(quick=True), checkout).store()
    assert not (checkout / "benchmarks").exists()
    output = checkout / "else" / "where.json"
    harness.Report(
        "benchmarks.some", harness.Options(quick=True, output=output), checkout
    ).store()
    assert json.loads(output.read_text())["quick"]
    assert not (checkout / "benchmarks").exists()


def test_output_takes_the_place_of_results(checkout, tmp_path):
    output = tmp_path / "record.json"
    harness.Report("benchmarks.some", harness.Options(output=output), checkout).store()
    assert output.exists()
    assert not (checkout / "benchmarks").exists()


def test_a_record_says_on_what_and_with_what_it_was_measured(checkout):
    record = harness.Report("benchmarks.some", harness.Options(), checkout).record
    assert record["machine"].pop("load") >= 0.0
    assert record["machine"].keys() == {"cpu", "cores", "memory_gib", "os"}
    assert all(record["machine"].values())
    assert record["versions"].keys() == {"python", *machine.PACKAGES}
    assert record["versions"]["jax"] == jax.__version__
    device = jax.devices()[0]
    assert record["device"] == {
        "name": device.device_kind,
        "platform": device.platform,
    }
    assert record["date"].endswith("+00:00")


def test_a_record_names_no_folder(checkout):
    text = json.dumps(
        harness.Report("benchmarks.some", harness.Options(), checkout).record
    )
    for path in (checkout, ROOT, Path.home(), Path(sys.prefix)):
        assert str(path) not in text


@pytest.mark.parametrize(
    ("backend", "device", "name"),
    [
        ("cpu", "cpu", "some.json"),
        ("gpu", "NVIDIA H100 80GB HBM3", "some-nvidia-h100-80gb-hbm3.json"),
        ("tpu", "TPU v5 (lite)", "some-tpu-v5-lite.json"),
    ],
)
def test_a_record_of_an_accelerator_is_named_after_it(backend, device, name):
    path = stored.path_of("studies.some", harness.device_name(backend, device))
    assert path == ROOT / "studies" / "results" / name


def test_modules_of_a_package_have_a_folder_of_their_own():
    path = stored.path_of("studies.paper.skew", root=ROOT)
    assert path == ROOT / "studies" / "results" / "paper" / "skew.json"


def test_tables_and_claims_are_found_by_their_keys(checkout):
    report = harness.Report("benchmarks.some", harness.Options(), checkout)
    for batch in (32, 64):
        report.listing("steps", [{"steps": 2}], kind="step", batch=batch)
        report.claim("a / b", batch, kind="ratio", batch=batch)
    (table,) = stored.select(report.record["tables"], kind="step", batch=64)
    (claim,) = stored.select(report.record["claims"], batch=32)
    assert table["rows"] == [{"steps": 2}] and claim["measured"] == 32
    assert len(stored.select(report.record["tables"], kind="step")) == 2
    assert not stored.select(report.record["tables"], kind="ratio")


def test_a_table_may_be_empty(checkout, capsys):
    report = harness.Report("benchmarks.some", harness.Options(), checkout)
    report.listing("nothing found", [], kind="found")
    (table,) = stored.select(report.record["tables"], kind="found")
    assert table["rows"] == []
    assert "nothing found\nNone." in capsys.readouterr().out


def test_a_table_is_printed_and_recorded_with_ratios_to_its_baseline(checkout, capsys):
    report = harness.Report("benchmarks.some", harness.Options(), checkout)
    timings = {"bare": timing(0.001, 0.002), "masked": timing(0.002, 0.008)}
    report.table("two ways", timings, "bare")
    [table] = report.record["tables"]
    masked = table["rows"][1]
    assert (table["title"], table["baseline"]) == ("two ways", "bare")
    assert masked["name"] == "masked" and masked["repeats"] == 2
    assert masked["median_ms"] == pytest.approx(5.0)
    assert (masked["min_ms"], masked["max_ms"]) == pytest.approx((2.0, 8.0))
    assert masked["ratio"]["median"] == pytest.approx(3.0)
    [line] = [x for x in capsys.readouterr().out.splitlines() if "masked" in x]
    assert line.split()[:2] == ["masked", "5.00"] and "3.000" in line.split()


@pytest.mark.parametrize(
    ("limit", "met"),
    [
        ({"at_most": 1.15}, True),
        ({"at_most": 1.14}, False),
        ({"at_least": 1.15}, True),
        ({"at_least": 1.16}, False),
    ],
)
def test_a_claim_is_compared_with_its_limit(checkout, capsys, limit, met):
    report = harness.Report("benchmarks.some", harness.Options(), checkout)
    report.claim("a / b", 1.15, **limit)
    assert report.record["claims"] == [
        {"key": {}, "what": "a / b", "measured": 1.15, **limit, "met": met}
    ]
    verdict = "met" if met else "MISSED"
    assert capsys.readouterr().out.splitlines()[-1].endswith(verdict)


def test_a_claim_without_a_limit_is_neither_met_nor_missed(checkout):
    report = harness.Report("benchmarks.some", harness.Options(), checkout)
    report.claim("a / b", 2.0)
    assert report.record["claims"] == [{"key": {}, "what": "a / b", "measured": 2.0}]


def test_no_round_at_all_is_refused():
    with pytest.raises(SystemExit, match="--rounds must be at least 1, got 0"):
        harness.Options(rounds=0)


def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(SystemExit, match="is a folder; pass a file"):
        harness.Options(output=tmp_path)


def test_a_record_that_is_there_is_replaced_only_when_told(tmp_path):
    output = tmp_path / "record.json"
    output.write_text("kept")
    with pytest.raises(SystemExit, match="already exists"):
        harness.Options(output=output)
    assert harness.Options(output=output, overwrite=True).output == output
    assert output.read_text() == "kept"

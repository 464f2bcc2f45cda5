"""Checkpoints that two processes save together, and what they refuse to save."""

import json
import sys

import jax
import numpy as np
import pytest

from sparseopt_jax.checkpoint import agreement
from tests.helpers.together import ROOT, Together, environment, free_port

PROGRAM = ROOT / "tests" / "distributed" / "checkpoints_of_two.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the results of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("processes")
    coordinator = f"localhost:{free_port()}"
    outputs = [folder / f"{i}.json" for i in range(2)]
    commands = [
        [
            *(sys.executable, "-W", "error", PROGRAM, output),
            *("2", str(i), coordinator, folder / "runs"),
        ]
        for i, output in enumerate(outputs)
    ]
    (folder / "runs").mkdir()
    with Together(commands, [environment(4)] * 2, folder) as processes:
        processes.finish(timeout=240)
    return [json.loads(output.read_text()) for output in outputs]


REFUSALS = {
    "another seed": "checksums w is ",
    "copies of a global array": "checksums w is ",
    "a split array": "checksums w is ",
    "another step": "step is 1 in process 0, 2 in process 1",
    "other data": "data index is 0 in process 0, 1 in process 1",
    "another leaf": "leaves z is float32[8] in process 0, nothing in process 1",
    "another shape": "leaves w is float32[4] in process 0, float32[8] in process 1",
    "another topology": "topology schedule every is 3 in process 0, 4 in process 1",
    "another optimizer": "optimizer settings scale.step_size is -0.2 in process 0, -",
    "data that is not JSON": "data must be plain numbers",
    "no array": "the state holds str at 'w'",
    "a step that is none": "step must be an integer, got 2.0",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSALS)
def test_processes_that_hold_different_things_save_nothing(name, results):
    for found in results:
        said = found["refusals"][name]
        assert REFUSALS[name] in said
        assert said.endswith(" []"), said
    if "is" in REFUSALS[name].split():
        assert "the processes of this run hold different values" in said


@pytest.mark.slow
def test_the_others_hear_where_it_failed(results):
    first, second = (found["refusals"]["no array"] for found in results)
    assert first == f"process 1 of this run: {second}"


@pytest.mark.slow
def test_a_run_under_pmap_in_two_processes_is_resumed_to_the_last_bit(results):
    for found in results:
        assert found["pmap"] == {"same": True, "step": 4}


@pytest.mark.slow
def test_restore_fails_everywhere_or_nowhere(results):
    for process, found in enumerate(results):
        (other, more), whole = found["restored"]
        assert "local: float32[8] in the checkpoint, float32[4] in this run" in other
        assert other.startswith("process 1 of this run: ") == (process == 0)
        assert "more: only in this run" in more
        assert whole


@pytest.mark.slow
def test_a_directory_that_is_written_to_is_refused_by_all_processes(results):
    for found in results:
        assert "is being written to by" in found["busy"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"x": float("nan"), "y": 1},
            {"x": float("nan"), "y": 2},
            "y is 1 in process 0",
        ),
        ({"x": None}, {}, "x is None in process 0, nothing in process 1"),
        ({"x": 1}, {"x": 1.0}, "x is 1 in process 0, 1.0 in process 1"),
        # The braces are at the place where messages end.
        ({"x": 1}, {"x": "{" * 9000}, "x is 1 in process 0, {{{"),
    ],
)
def test_the_first_difference_is_named(first, second, message, monkeypatch):
    def gathered(x):
        return np.stack([np.zeros_like(x), x])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(agreement, "_of_first", lambda text: json.dumps(first))
    monkeypatch.setattr(agreement.multihost_utils, "process_allgather", gathered)
    with pytest.raises(ValueError, match="hold different values") as caught:
        agreement.require_same(second, "advice")
    assert message in str(caught.value)

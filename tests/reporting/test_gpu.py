"""The tables of ``docs/gpu.md`` with records that are complete, partial or missing."""

import pytest

from reporting.pages import gpu, real_gains

ABOUT = {"device": {"name": "NVIDIA X"}, "versions": {"jax": "0.12.0"}, "claims": []}
STEPS = {
    "key": {"kind": "step", "batch": 256},
    "title": "ResNet-50, batch 256: a step",
    "rows": [
        {"name": "dense", "median_ms": 100.0, "ratio": {"median": 1.0}},
        {"name": "RigL", "median_ms": 104.0, "ratio": {"median": 1.04}},
    ],
}
SIZES = {
    "key": {"kind": "bytes"},
    "title": "bytes",
    "rows": [{"name": "dense", "peak_bytes": 3 * 2**30}],
}


@pytest.fixture
def show(monkeypatch, tmp_path):
    """Make a table of a record."""

    def shown(name, tables, errors=(), claims=()):
        record = {**ABOUT, "tables": tables, "errors": errors, "claims": claims}
        monkeypatch.setattr(real_gains, "path_of", lambda program: tmp_path)
        monkeypatch.setattr(real_gains, "load", lambda program: record)
        return gpu.PAGE[name]()

    return shown


@pytest.mark.parametrize("name", gpu.PAGE)
def test_without_a_record_a_table_says_so(name, monkeypatch, tmp_path):
    monkeypatch.setattr(real_gains, "path_of", lambda program: tmp_path / "none.json")
    expected = "Not measured yet: `python -m benchmarks.gpu` measures it.\n"
    assert gpu.PAGE[name]() == expected


@pytest.mark.parametrize("name", gpu.PAGE)
def test_of_a_part_that_measured_nothing_the_reason_is_told(name, show):
    error = {"what": "resnet50", "error": "stopped"}
    last = show(name, [], [error]).splitlines()[-1]
    assert last == "NVIDIA X, jax 0.12.0. Left out: resnet50 (stopped)."


def test_a_part_that_was_stopped_shows_what_it_had(show):
    claim = {"key": {"kind": "amortised", "name": "RigL"}, "measured": 1.05}
    lines = show("gpu_resnet50", [SIZES, STEPS], claims=[claim]).splitlines()
    assert lines[2] == "| dense | 100 ms | 2,560 | 1x | - | 3.00 GiB |"
    assert lines[3] == "| RigL | 104 ms | 2,462 | 1.050x | - | - |"
    assert lines[5] == "ResNet-50, batch 256."


def test_updates_stand_beside_the_steps_of_their_network(show):
    def rows(*times):
        names = ("AdamW alone", "RigL")
        return [
            {"name": name, "median_ms": ms, "ratio": {"median": ms / times[0]}}
            for name, ms in zip(names, times, strict=False)
        ]

    key = {"network": "N", "weights": 10}
    tables = [
        {"key": {"kind": "step", "together": 1, **key}, "rows": rows(1.0, 1.5)},
        {"key": {"kind": "step", "together": 20, **key}, "rows": rows(0.5)},
        {"key": {"kind": "update_step", **key}, "rows": rows(1.0, 9.0)},
    ]
    lines = show("gpu_steps", tables).splitlines()
    assert lines[0] == (
        "| AdamW's step | N, one by one | N, 20 to a program | N, with an update |"
    )
    assert lines[2:4] == [
        "| AdamW alone | 1 ms | 0.5 ms | 1 ms |",
        "| RigL | 1.50x | - | 9 ms |",
    ]

"""The tables of ``docs/real_gains.md``, with and without records."""

import statistics

import pytest

from reporting import stored
from reporting.pages import real_gains
from tests.helpers.pages import read

PAGE = read("docs/real_gains.md")


def row(kind, block, sparsity, speedup):
    return {
        "kind": kind,
        "block": block,
        "sparsity": sparsity,
        "speedup": {"median": speedup},
        "kept_of_dense": 0.25,
        "temporary_of_dense": 0.9,
        "peak_of_dense": 0.5,
    }


def claim(aim, measured, met, **limit):
    key = {"network": "mlp", "cores": 1, "block": 64, "sparsity": 0.9, "aim": aim}
    return {"key": key, "measured": measured, "met": met, **limit}


RECORD = {
    "machine": {"cores": 2},
    "versions": {"jax": "0.10.2"},
    "tables": [
        {
            "key": {"network": name, "cores": cores, "name": name.upper()},
            "rows": [
                row("dense", 1, 0.0, 1.0),
                row("compact", 64, 0.9, 2.222),
                row("compact", 64, 0.8, 1.5),
                row("compact", 128, 0.9, 2.5),
                row("masks", 64, 0.9, 0.95),
            ],
        }
        for name, cores in (("mlp", 1), ("vit", 2), ("mlp", 2))
    ],
    "claims": [
        claim("time", 2.2, True, at_least=2.0),
        claim("update", 3.5, False, at_most=3.0),
        claim("update", 2.5, True, at_most=3.0),
    ],
}


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    (tmp_path / "record.json").write_text("{}")
    monkeypatch.setattr(real_gains, "path_of", lambda name: tmp_path / "record.json")
    monkeypatch.setattr(real_gains, "load", lambda name: RECORD)


def test_crossovers_are_those_of_the_dispatch():
    lines = real_gains.crossover().splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["16", "32", "64", "128"]
    assert all(0.5 <= float(line.split("|")[3]) < 1.0 for line in lines)


@pytest.mark.parametrize("name", sorted({*real_gains.PAGE} - {"crossover"}))
def test_without_a_record_a_table_says_so(name, monkeypatch, tmp_path):
    monkeypatch.setattr(real_gains, "path_of", lambda program: tmp_path / "none.json")
    shown = real_gains.PAGE[name]()
    assert shown.startswith("Not measured yet: `python -m ") and "|" not in shown


@pytest.mark.usefixtures("recorded")
def test_steps_are_by_network_cores_block_and_sparsity():
    lines = real_gains.compact_steps().splitlines()
    assert lines[2] == "| MLP | 1 | 64 | 1.50x | 2.22x | - |"
    assert lines[3] == "| MLP | 1 | 128 | - | 2.50x | - |"
    assert lines[-1] == "2 cores, jax 0.10.2, medians."
    assert real_gains.compact_bytes().count("0.25 / 0.90 / 0.50") == 6


@pytest.mark.usefixtures("recorded")
def test_the_readme_has_one_block_and_each_network_once():
    lines = real_gains.gains().splitlines()
    assert lines[2:5] == [
        "| MLP | 1 | 64 | 1.50x | 2.22x | - |",
        "| MLP | 2 | 64 | 1.50x | 2.22x | - |",
        "| VIT | 2 | 64 | 1.50x | 2.22x | - |",
    ]


@pytest.mark.usefixtures("recorded")
def test_aims_show_how_often_they_were_met_and_the_worst():
    time, update = real_gains.compact_aims().splitlines()[2:]
    assert "| at least 2 | 1 of 1 | 2.20 (mlp, 1, 64, 0.9) |" in time
    assert "| at most 3 | 1 of 2 | 3.50" in update


@pytest.mark.usefixtures("recorded")
def test_dense_arrays_stand_beside_compact_parameters():
    lines = real_gains.dense_arrays().splitlines()[2:]
    assert lines[0] == "| masks, all arrays dense | 1 | 0.95x | 0.25 | 0.90 |"
    assert len(lines) == 4


class TestTheText:
    """The text of the page, compared with the records that exist."""

    def rows(self, kind):
        program = "benchmarks.compact_parameters"
        if not stored.path_of(program).exists():
            pytest.skip("not measured")
        found = stored.load(program)["tables"]
        return [r for table in found for r in real_gains.select_kind(table, kind)]

    def test_larger_blocks_are_faster(self):
        assert "The larger the block, the faster the product" in PAGE
        speed: dict[int, list[float]] = {}
        for found in self.rows("compact"):
            if found["sparsity"] == 0.9:
                speed.setdefault(found["block"], []).append(found["speedup"]["median"])
        middle = [statistics.median(speed[block]) for block in sorted(speed)]
        assert middle == sorted(middle) and len(middle) > 1

    def test_compact_moments_cost_time_and_temporaries(self):
        assert "moments, but costs time and temporaries" in PAGE
        for moments in self.rows("compact moments"):
            assert moments["temporary_of_dense"] > 1.0 > moments["kept_of_dense"]
            assert moments["speedup"]["median"] < 1.0


def test_products_stand_beside_the_dense_ones_speed(monkeypatch, tmp_path):
    rows = [
        {"name": "dense, XLA", "median_ms": 1.0, "ratio": {"median": 1.0}},
        {"name": "BCOO", "median_ms": 4.0, "ratio": {"median": 4.0}},
    ]
    tables = [
        {"key": {"batch": batch, "width": 1000}, "baseline": "dense, XLA", "rows": rows}
        for batch in (1, 1, 50)
    ]
    monkeypatch.setattr(real_gains, "path_of", lambda program: tmp_path)
    monkeypatch.setattr(real_gains, "load", lambda program: RECORD | {"tables": tables})
    shown = real_gains.sparse_products().splitlines()
    assert shown[0] == "| product | batch 1 | batch 50 |"
    assert shown[2] == "| dense, XLA | 2 / 2 | 100 |"
    assert shown[3] == "| BCOO | 0.25 / 0.25 | 0.25 |"


def test_blocks_cost_what_the_page_says():
    """Better than single weights at 80 %, no difference at 90 %, for both methods."""
    (found,) = stored.load("studies.block_accuracy")["tables"]
    compared = [(row["sparsity"], row["lost"]) for row in found["rows"] if row["lost"]]
    assert [sparsity for sparsity, _ in compared] == [0.8, 0.9, 0.8, 0.9]
    assert all(lost["low"] > 0 for sparsity, lost in compared if sparsity == 0.8)
    assert all(lost["low"] < 0 for sparsity, lost in compared if sparsity == 0.9)
    assert "at 80 % they end ahead of single weights" in PAGE

    dense, blocks = stored.load("examples.compact_transformer")["results"]
    ends = [result["held_out"]["mean"][-1] for result in (dense, blocks)]
    assert ends[1] < ends[0] and blocks["seeds"] == 1
    assert "they end ahead of the dense network, in one run" in PAGE

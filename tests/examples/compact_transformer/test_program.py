"""The comparison of dense and compact training, at a micro size."""

import json

import pytest

from examples.compact_transformer import __main__ as program
from examples.compact_transformer import training
from examples.compact_transformer.config import Config
from tests.helpers.programs import FILES, log

ARGS = [
    *("--width", "64", "--hidden", "64", "--layers", "1", "--block", "16"),
    *("--steps", "24", "--every", "5", "--batch-size", "2", "--length", "16"),
    *("--methods", "dense", "unstructured", "blocks", "--sparsity", "0.75"),
]


def start(output, *args):
    program.main([*ARGS, "--output", str(output), *args])


@pytest.fixture(scope="module", params=["rigl", "set"])
def output(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("comparison")
    start(output, "--topology", request.param)
    return output


@pytest.mark.slow
class TestComparison:
    def test_it_writes_its_files(self, output):
        assert {path.name for path in output.iterdir()} == FILES

    def test_every_method_learns_and_keeps_what_it_says(self, output):
        dense, single, blocks = log(output)
        assert [row["method"] for row in (dense, single, blocks)] == [
            *("dense", "unstructured", "blocks"),
        ]
        for row in (dense, single, blocks):
            assert len(row["train"]) == 24 and len(row["held_out"]) == 8
            assert row["held_out"][-1] < row["held_out"][0] < 8.5
        assert single["parameter_bytes"] == dense["parameter_bytes"]
        assert blocks["parameter_bytes"] < 0.7 * dense["parameter_bytes"]
        assert blocks["optimizer_bytes"] < 0.7 * dense["optimizer_bytes"]

    def test_tables_are_those_of_the_results(self, output):
        results = json.loads((output / "results.json").read_text())
        shown = (output / "results.md").read_text()
        assert "| active blocks only |" in shown
        assert results["active_weights"] == results["sparse_weights"] / 4
        for entry in results["results"]:
            assert f"{entry['held_out']['mean'][-1]:.3f}" in shown

    def test_a_finished_comparison_trains_nothing_again(self, output, monkeypatch):
        monkeypatch.setattr(program, "Method", None)
        topology = json.loads((output / "config.json").read_text())["topology"]
        before = log(output)
        start(output, "--topology", topology)
        assert log(output) == before


def test_what_is_wrong_ends_the_program(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Config(every=0)
    with pytest.raises(SystemExit, match=r"error: Block\(shape=\(24, 24\)\)"):
        start(tmp_path, "--block", "24")


@pytest.mark.parametrize("topology", ["rigl", "set"])
def test_masks_rest_in_the_last_quarter(topology):
    config = Config(topology=topology, every=5, steps=40)
    moving = training.make_topology(config, "blocks")
    assert [n for n in range(40) if moving.due(n)] == [5, 10, 15, 20, 25]

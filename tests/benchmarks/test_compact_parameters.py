import json
import math

import jax
import pytest

import sparseopt_jax as so
from benchmarks import compact_models
from benchmarks import compact_parameters as benchmark


@pytest.fixture(scope="module", params=compact_models.NAMES)
def network(request):
    return compact_models.network(request.param, quick=False)


def test_every_block_divides_every_kernel_that_is_sparse(network):
    shapes = jax.eval_shape(network.params)
    for block in benchmark.BLOCKS:
        topology = benchmark.topology(network, benchmark.Arm("compact", block, 0.9))
        plan = so.plan(shapes, topology)
        sparse = [leaf.path for leaf in plan.leaves if not leaf.why_dense]
        kernels = [leaf.path for leaf in plan.leaves if leaf.path.endswith("kernel")]
        assert sorted(sparse) == sorted({*kernels} - {*network.dense})


def test_the_networks_have_the_sizes_that_their_titles_say(network):
    shapes = jax.tree.leaves(jax.eval_shape(network.params))
    weights = sum(math.prod(x.shape) for x in shapes)
    millions = {"MLP": 8.4, "LLaMA-shaped": 51.9, "ViT-small-like": 22.0}
    assert weights / 1e6 == pytest.approx(
        millions[network.title.replace(",", "").split()[0]], abs=0.1
    )


@pytest.mark.slow
def test_a_quick_run_measures_every_network_and_holds_it_against_the_aims(
    tmp_path, monkeypatch
):
    on_one_core = [job for job in benchmark.JOBS if job[1] == 1]
    monkeypatch.setattr(benchmark, "JOBS", on_one_core)
    output = tmp_path / "record.json"
    benchmark.main(benchmark.Options(quick=True, output=output, allow_dirty=True))
    record = json.loads(output.read_text())
    names = {table["key"]["network"] for table in record["tables"]}
    assert names == {*compact_models.NAMES}
    for table in record["tables"]:
        dense, compact = table["rows"]
        assert dense["kind"] == "dense" and dense["kept_of_dense"] == 1.0
        assert compact["speedup"]["median"] > 0 and compact["update_in_steps"] > 0
        assert 0.9 < compact["kept_of_density"] < 2.0
    limits = {
        (c["what"], c.get("at_most"), c.get("at_least")) for c in record["claims"]
    }
    assert len(limits) == 4 * len(record["tables"])

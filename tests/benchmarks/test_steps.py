import json
import math

import jax
import pytest

from benchmarks import (
    compile_time,
    packed_masks,
    removed_neurons,
    selection,
    step_overhead,
    steps,
)
from reporting import harness


@pytest.mark.parametrize(
    ("shapes", "parameters", "kernels"),
    [
        (steps.resnet_shapes(), 25_557_032, 54),
        (steps.resnet_shapes((2, 2, 2, 2), bottleneck=False), 11_689_512, 21),
    ],
    ids=["ResNet-50", "ResNet-18"],
)
def test_the_parameters_are_those_of_the_networks(shapes, parameters, kernels):
    shapes = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
    assert sum(map(math.prod, shapes)) == parameters
    assert sum(len(shape) > 1 for shape in shapes) == kernels


def test_steps_go_on_from_where_they_were():
    run = steps.looping(
        lambda total, x: total + x, jax.numpy.zeros([]), [(1.0,), (2.0,), (4.0,)], 2
    )
    assert float(run()) == 3.0
    assert float(run()) == 7.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [selection, step_overhead, packed_masks, removed_neurons, compile_time],
)
def test_a_quick_run_goes_through_and_reports_every_limit(program, tmp_path):
    output = tmp_path / "record.json"
    options = harness.Options(quick=True, rounds=1, output=output, allow_dirty=True)
    program.main(options)
    record = json.loads(output.read_text())
    rows = [row for table in record["tables"] for row in table["rows"]]
    assert all(row["median_ms"] > 0 for row in rows if "median_ms" in row)
    limits = {c["what"]: c.get("at_most") for c in record["claims"] if "met" in c}
    if program is compile_time:
        assert limits["a layer: RigL / sgd"] == 3 and len(limits) == 4
    if program is step_overhead:
        assert limits["sgd, in place: RigL / bare"] == 1.15
        assert limits["adamw, into new arrays: SET, from the host / bare"] == 1.05
        assert limits["digits: RigL + SparseOpt changing every 5 steps / dense"] == 1.05

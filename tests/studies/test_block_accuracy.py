import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

import sparseopt_jax as so
from studies import block_accuracy as study


def test_blocks_and_weights_differ_in_the_structure_alone():
    shapes = {
        "hidden_1": {"kernel": jax.ShapeDtypeStruct((128, 640), jnp.float32)},
        "head": {"kernel": jax.ShapeDtypeStruct((640, 100), jnp.float32)},
    }
    dense, *pairs = study.arms()
    assert (
        so.plan(shapes, dense.topology(500, shapes, 0)).active == 128 * 640 + 640 * 100
    )
    assert len(pairs) == 8
    for weights, blocks in zip(pairs[::2], pairs[1::2], strict=True):
        assert isinstance(blocks, study.Blocks) and type(weights) is study.Weights
        assert weights[2:] == blocks[2:]  # all but the name
        plans = [so.plan(shapes, a.topology(500, shapes, 0)) for a in (weights, blocks)]
        active = [plan.active for plan in plans]
        assert active[0] == pytest.approx(128 * 640 * (1 - weights.sparsity), abs=1)
        assert active[1] == pytest.approx(active[0], abs=64 * 64)
        assert all(plan.leaves[0].why_dense for plan in plans)


@pytest.mark.slow
def test_a_study_resumes_and_compares_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "arms", lambda every=study.arms: every()[:3])
    output, folder = tmp_path / "record.json", tmp_path / "runs"
    options = study.Options(
        quick=True, output=output, allow_dirty=True, folder=folder, seeds=2
    )
    study.main(options)
    (table,) = json.loads(output.read_text())["tables"]
    dense, weights, blocks = table["rows"]
    assert dense["lost"] is None and weights["lost"] is None
    mean = blocks["accuracy"] - weights["accuracy"]
    assert blocks["lost"]["mean"] == pytest.approx(mean)
    monkeypatch.setattr(study, "Trainer", None)
    study.main(dataclasses.replace(options, overwrite=True))

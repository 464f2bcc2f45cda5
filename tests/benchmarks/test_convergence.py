import importlib
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import sparseopt_jax as so

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# Programs, that find each other in the folder they are started from.
sys.path.append(str(BENCHMARKS))
harness = importlib.import_module("harness")
convergence = importlib.import_module("convergence")
masks_of = importlib.import_module("convergence_masks")
models = importlib.import_module("method_models")


def outcome(accuracy, epochs=None):
    return convergence.Outcome(accuracy, epochs, 1.0, 0.5)


class TestDifference:
    def test_is_the_paired_t_test(self):
        draw = np.random.default_rng(0)
        own, other = draw.normal(size=(2, 9))
        found = convergence.difference(own, other)
        wanted = stats.ttest_rel(own, other)
        interval = wanted.confidence_interval(0.95)
        np.testing.assert_allclose(found["p"], wanted.pvalue, rtol=1e-9)
        np.testing.assert_allclose(found["low"], interval.low, rtol=1e-9)
        np.testing.assert_allclose(found["high"], interval.high, rtol=1e-9)
        np.testing.assert_allclose(found["mean"], np.mean(own - other), rtol=1e-9)

    def test_without_any_spread(self):
        same = convergence.difference([0.5, 0.25], [0.5, 0.25])
        assert same == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
        assert convergence.difference([1.5, 1.25], [1.0, 0.75])["p"] == 0.0


def test_tuning_takes_the_best_mean_and_the_lower_of_equals():
    accuracies = {(0.1, 0): 0.5, (0.1, 1): 1.0, (0.2, 0): 1.0, (0.2, 1): 0.5}
    accuracies |= {(0.4, 0): 0.7, (0.4, 1): 0.7}
    best, rows = convergence.tuned(
        lambda rate, seed: outcome(accuracies[rate, seed]), (0.1, 0.2, 0.4), (0, 1)
    )
    assert best == 0.1
    assert [row["accuracy"] for row in rows] == pytest.approx([0.75, 0.75, 0.7])
    assert [row["best"] for row in rows] == [True, False, False]


def test_epochs_are_those_of_runs_that_reached_the_target():
    row = convergence.summary(0.1, [outcome(0.9), outcome(1.0, 3), outcome(1.0, 4)])
    assert row["epochs_to_target"] == 3.5
    assert row["reached"] == "2 of 3"
    assert convergence.summary(0.1, [outcome(0.9)])["epochs_to_target"] is None


def test_images_for_tuning_are_left_out_of_training():
    images = np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1)
    split = models.Split(images, np.arange(20, dtype=np.int32))
    train, left = convergence.held_out(split, 5)
    assert len(left.labels) == 5
    assert sorted([*train.labels, *left.labels]) == list(range(20))
    np.testing.assert_array_equal(left.images.ravel(), left.labels)


def test_each_epoch_sees_every_image_at_most_once():
    count = 2 * models.BATCH + 3
    split = models.Split(np.zeros((count, 1, 1, 1)), np.arange(count))
    seen = [labels for _, labels in models.batches(split, 2, np.random.default_rng(0))]
    assert len(seen) == 4
    for epoch in (seen[:2], seen[2:]):
        labels = np.concatenate(epoch)
        assert len(set(labels)) == len(labels) == 2 * models.BATCH


class TestSpreadMasks:
    @pytest.mark.parametrize(("total", "most"), [(8, 9), (40, 9), (72, 9)])
    def test_fan_ins_add_up(self, total, most):
        draw = np.random.default_rng(0)
        fan_ins = masks_of.spread_fan_ins(total, most, 8, draw)
        assert fan_ins.sum() == total
        assert fan_ins.min() >= 1 and fan_ins.max() <= most

    @pytest.mark.parametrize("total", [7, 73])
    def test_what_cannot_add_up(self, total):
        with pytest.raises(ValueError, match=f"cannot have {total} in all"):
            masks_of.spread_fan_ins(total, 9, 8, np.random.default_rng(0))

    def test_layers_keep_their_numbers_and_fan_ins_spread(self):
        params = {"a": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}}
        topology = so.static(0.9, distribution="uniform")
        masks = masks_of.spread_masks(topology, params, np.random.default_rng(0))
        mask = np.asarray(masks["a"]["kernel"])
        (plan,) = (own for own in topology.leaves(params) if own.active is not None)
        assert mask.sum() == plan.active
        fan_ins = mask.sum(axis=0)
        assert fan_ins.std() / fan_ins.mean() > 0.6  # random masks: 0.4
        assert jax.tree.leaves(so.static(masks=masks).init(jax.random.key(0), params))


def test_a_quick_run(monkeypatch, tmp_path):
    monkeypatch.setattr(convergence, "ARMS", ("none", "batch_variance"))
    output = tmp_path / "record.json"
    options = harness.Options(quick=True, output=output, allow_dirty=True)
    convergence.main(options)
    record = json.loads(output.read_text())
    tried, rows = (table["rows"] for table in record["tables"])
    assert [row["arm"] for row in rows] == ["none", "batch_variance"]
    assert rows[0]["mean"] == 0.0 and rows[0]["p"] == 1.0
    for arm, group in itertools.groupby(tried, key=lambda row: row["arm"]):
        assert sum(row["best"] for row in group) == 1, arm

import doctest
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import sparseopt_jax as so
from examples.digits.dataset import Split
from examples.digits.training import batches
from reporting import harness, statistics, stored
from studies.convergence import __main__ as program
from studies.convergence import compare, conditions, runs, same_rate
from studies.convergence import corrections as candidates
from studies.convergence import masks as masks_of
from tests.helpers.small_networks import small_network


def outcome(*accuracies):
    return runs.Outcome(accuracies, 1.0, 0.5, 0.0)


class TestDifference:
    def test_is_the_paired_t_test(self):
        draw = np.random.default_rng(0)
        one, other = draw.normal(size=(2, 9))
        found = statistics.difference(one, other)
        wanted = stats.ttest_rel(one, other)
        interval = wanted.confidence_interval(0.95)
        np.testing.assert_allclose(found["p"], wanted.pvalue, rtol=1e-9)
        np.testing.assert_allclose(found["low"], interval.low, rtol=1e-9)
        np.testing.assert_allclose(found["high"], interval.high, rtol=1e-9)
        np.testing.assert_allclose(found["mean"], np.mean(one - other), rtol=1e-9)

    def test_without_any_spread(self):
        same = statistics.difference([0.5, 0.25], [0.5, 0.25])
        assert same == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
        assert statistics.difference([1.5, 1.25], [1.0, 0.75])["p"] == 0.0


@pytest.mark.parametrize("module", [statistics], ids=lambda module: module.__name__)
def test_its_examples(module):
    assert doctest.testmod(module).failed == 0


def test_holm_steps_down_from_the_smallest():
    # By hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and the last at least those before it.
    found = statistics.holm([0.04, 0.005, 0.03, 0.01])
    assert found == pytest.approx([0.06, 0.02, 0.06, 0.03])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_tuning_takes_the_best_mean_and_the_lower_of_equals():
    accuracies = {(0.1, 0): 0.5, (0.1, 1): 1.0, (0.2, 0): 1.0, (0.2, 1): 0.5}
    accuracies |= {(0.4, 0): 0.7, (0.4, 1): 0.7}
    best, rows = compare.tuned(
        lambda rate, seed: outcome(accuracies[rate, seed]), (0.1, 0.2, 0.4), (0, 1)
    )
    assert best == 0.1
    assert [row["accuracy"] for row in rows] == pytest.approx([0.75, 0.75, 0.7])
    assert [row["best"] for row in rows] == [True, False, False]


class TestOutcome:
    def test_epochs_to_a_target(self):
        run = outcome(0.2, 0.6, 0.5, 0.7)
        assert [run.epochs_to(x) for x in (0.1, 0.6, 0.7, 0.8)] == [1, 2, 4, None]

    def test_a_ninth_of_the_epochs(self):
        assert outcome(*(n / 100 for n in range(1, 91))).early_accuracy == 0.1
        assert outcome(0.3, 0.4).early_accuracy == 0.3


class TestSummary:
    def test_ratios_are_of_seeds_with_which_both_arrive(self):
        outcomes = [outcome(0.5, 0.9), outcome(0.9, 0.9), outcome(0.1, 0.2)]
        other = [outcome(0.9, 0.8), outcome(0.5, 0.9), outcome(0.9, 0.9)]
        row = compare.summary(0.1, outcomes, other, 0.9)
        # 2 epochs against 1, and 1 against 2: equal in the geometric mean.
        assert (row["both_reach_it"], row["epochs_ratio"]) == (2, pytest.approx(1.0))
        assert row["mean"] == pytest.approx((0.1 + 0.0 - 0.7) / 3)
        assert row["early_mean"] == pytest.approx((-0.4 + 0.4 - 0.8) / 3)

    @pytest.mark.parametrize("target", [None, 0.95])
    def test_where_no_run_arrives(self, target):
        row = compare.summary(0.1, [outcome(0.9)] * 2, [outcome(0.9)] * 2, target)
        assert (row["both_reach_it"], row["epochs_ratio"]) == (0, None)


def test_images_for_tuning_are_left_out_of_training():
    images = np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1)
    split = Split(images, np.arange(20, dtype=np.int32))
    train, left = runs.held_out(split, 5)
    assert len(left.labels) == 5
    assert sorted([*train.labels, *left.labels]) == list(range(20))
    np.testing.assert_array_equal(left.images.ravel(), left.labels)


def test_synthetic_images_have_classes_in_equal_numbers():
    data = runs.draw_glyphs(200, 100, 100)
    for split, count in zip(data, (2, 1, 1), strict=True):
        assert split.images.shape == (100 * count, 16, 16, 3)
        assert (np.bincount(split.labels) == count).all()
        assert 0.5 < split.images.std() < 1.5


def test_each_epoch_sees_every_image_at_most_once():
    size, draw = 64, np.random.default_rng(0)
    count = 2 * size + 3
    split = Split(np.zeros((count, 1, 1, 1)), np.arange(count))
    seen = [labels for _, labels in batches(split, 2, draw, size)]
    assert len(seen) == 4
    for epoch in (seen[:2], seen[2:]):
        labels = np.concatenate(epoch)
        assert len(set(labels)) == len(labels) == 2 * size


class TestConditions:
    def test_masks_change_as_often_in_a_longer_run(self):
        usual, longer = conditions.Condition("a"), conditions.Condition("b", length=5)
        assert usual.every(1_000) == longer.every(5_000) == 37

    def test_names_differ_and_rates_are_those_of_a_condition_before(self):
        before = {}
        for condition in conditions.CONDITIONS:
            assert condition.name not in before
            if condition.like is not None:
                assert set(condition.arms) <= set(before[condition.like].arms)
                assert before[condition.like].like is None
            before[condition.name] = condition

    def test_the_first_arm_is_the_uncorrected_one(self):
        every = (*conditions.CONDITIONS, *conditions.FURTHER)
        assert {condition.arms[0] for condition in every} == {"none"}

    def test_what_was_added_is_tuned_by_itself(self):
        assert all(condition.like is None for condition in conditions.FURTHER)


class TestSpreadMasks:
    @pytest.mark.parametrize(("total", "most"), [(8, 9), (40, 9), (72, 9)])
    def test_fan_ins_add_up(self, total, most):
        shares = masks_of.log_normal(np.random.default_rng(0), 8)
        fan_ins = masks_of.spread_fan_ins(total, most, shares)
        assert fan_ins.sum() == total
        assert fan_ins.min() >= 1 and fan_ins.max() <= most

    @pytest.mark.parametrize("total", [7, 73])
    def test_what_cannot_add_up(self, total):
        with pytest.raises(ValueError, match=f"cannot have {total} in total"):
            masks_of.spread_fan_ins(total, 9, np.ones(8))

    def test_proportions_are_kept_where_they_fit(self):
        fan_ins = masks_of.spread_fan_ins(64, 60, np.array([1.0, 1.0, 2.0, 4.0]))
        np.testing.assert_array_equal(fan_ins, [8, 8, 16, 32])

    def test_a_power_law_has_a_tail(self):
        draw = np.random.default_rng(0)
        shares = masks_of.power_law(draw, 100_000)
        for most in (2, 10, 100):
            assert np.mean(shares >= most) == pytest.approx(1 / most, rel=0.1)

    @pytest.mark.parametrize("method", conditions.LAWS)
    def test_layers_keep_their_numbers_and_fan_ins_spread(self, method):
        params = {"a": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}}
        topology = so.static(0.9, distribution="uniform")
        draw, law = np.random.default_rng(0), conditions.LAWS[method]
        masks = masks_of.spread_masks(topology, params, draw, law)
        mask = np.asarray(masks["a"]["kernel"])
        (plan,) = (leaf for leaf in topology.leaves(params) if leaf.active is not None)
        assert mask.sum() == plan.active
        fan_ins = mask.sum(axis=0)
        assert fan_ins.std() / fan_ins.mean() > 0.6  # random masks: 0.4
        assert jax.tree.leaves(so.static(masks=masks).init(jax.random.key(0), params))


class TestCandidates:
    """Compared with loops over neurons, on fixed masks."""

    MASK = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 0]], bool)
    VARIANCES = np.array([4.0, 1.0, 0.25])

    def update(self, correction):
        draw = np.random.default_rng(0)
        weights, grads = draw.normal(size=(2, 4, 3)).astype(np.float32)
        weights *= self.MASK
        params = {"a": {"kernel": jnp.asarray(weights), "bias": jnp.ones(3)}}
        masks = {"a": {"kernel": self.MASK, "bias": optax.MaskedNode()}}
        tx = so.sparsify(correction, so.static(masks=masks))
        state = tx.init(params)
        gradient = {"a": {"kernel": jnp.asarray(grads), "bias": jnp.ones(3)}}
        stats = {"n": {"var": jnp.asarray(self.VARIANCES), "mean": jnp.zeros(3)}}
        steps = []
        for _ in range(3):
            updates: Any
            updates, state = tx.update(gradient, state, params, batch_stats=stats)
            np.testing.assert_allclose(updates["a"]["bias"], 1.0, rtol=1e-6)
            steps.append(np.asarray(updates["a"]["kernel"]))
        return weights, grads * self.MASK, steps

    @pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
    def test_power_of_the_variance(self, power):
        correction = candidates.variance_power({"a/kernel": "n"}, power)
        _, grads, (found, *_) = self.update(correction)
        wanted = grads * (self.VARIANCES / self.VARIANCES.mean()) ** power
        np.testing.assert_allclose(found, wanted, rtol=1e-4)

    def test_layers_without_a_normalisation_pass(self):
        _, grads, (found, *_) = self.update(candidates.variance_power({}, 1.0))
        np.testing.assert_array_equal(found, grads)

    def test_norms_of_weights(self):
        weights, grads, (found, *_) = self.update(candidates.weight_norm())
        norms = np.linalg.norm(weights, axis=0)
        wanted = grads * norms / np.sqrt(np.mean(norms**2))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)

    def test_from_fan_in_to_variance(self):
        links = {"a/kernel": "n"}
        correction = candidates.fan_in_then_variance(links, every=2, memory=1.0)
        _, grads, found = self.update(correction)
        fan_ins = self.MASK.sum(axis=0)
        by_fan_in = np.sqrt(fan_ins / fan_ins.mean())
        by_variance = np.sqrt(self.VARIANCES / self.VARIANCES.mean())
        for step, share in enumerate((1.0, np.exp(-1.0), 1.0)):
            factors = by_fan_in**share * by_variance ** (1.0 - share)
            np.testing.assert_allclose(found[step], grads * factors, rtol=1e-4)

    def test_all_but_the_head(self):
        params = {"a": {"kernel": 1}, "head": {"kernel": 2, "bias": 3}}
        wanted = {"a": {"kernel": True}, "head": {"kernel": False, "bias": False}}
        assert candidates.not_head(params) == wanted

    def test_gradients_as_long_as_before(self):
        correction = candidates.keeping_norms(so.scale_by_sparseopt())
        _, grads, (found, *_) = self.update(correction)
        np.testing.assert_allclose(
            np.linalg.norm(found), np.linalg.norm(grads), rtol=1e-5
        )
        fan_ins = np.sqrt(self.MASK.sum(axis=0))
        ratios = found[self.MASK] / (grads * fan_ins)[self.MASK]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "condition",
    [
        conditions.Condition("spread", method="spread", sparsity=0.5, ham=True),
        conditions.Condition("kept", "glyphs", "static", 0.5, keep_norms=True),
        conditions.Condition("power law", "glyphs", "power_law", 0.5),
    ],
    ids=lambda arm: arm.name,
)
def test_arms_train_and_differ(condition):
    network = small_network(40, 4, width=8, classes=3, batch=8, epochs=4)
    losses = set()
    arms = ("none", "fan_in", "fan_in_but_head", "batch_variance", "weight_norm")
    for arm in arms:
        outcome = runs.Trainer(network, condition, arm).run(0.5, 0, network.data.test)
        assert len(outcome.accuracies) == 4
        losses.add(outcome.early_loss)
    assert len(losses) == len(arms)


def test_growth_can_see_corrected_gradients():
    plain, corrected = (
        conditions.Condition("one", corrected_growth=on).topology(100, {}, 0)
        for on in (False, True)
    )
    assert plain.grow == so.scores.gradient
    assert corrected.grow == so.scores.corrected_gradient


@pytest.mark.slow
def test_a_quick_run(monkeypatch, tmp_path):
    (first, *_) = conditions.CONDITIONS
    short = first._replace(arms=("none", "batch_variance"))
    monkeypatch.setattr(program, "CONDITIONS", (short,))
    output = tmp_path / "record.json"
    options = harness.Options(quick=True, output=output, allow_dirty=True)
    program.main(options)
    assert output.with_suffix(".png").exists()
    record = json.loads(output.read_text())
    (tests,) = stored.select(record["tables"], kind="p_values")
    (entry,) = record["conditions"]
    tried, rows = entry["tried"], entry["arms"]
    assert [row["arm"] for row in rows] == ["none", "batch_variance"]
    assert rows[0]["mean"] == 0.0 and rows[0]["p"] == 1.0
    assert [row["arm"] for row in tests["rows"]] == ["batch_variance"]
    assert np.shape(entry["accuracies"]) == (2, 2, 2)
    for arm, group in itertools.groupby(tried, key=lambda row: row["arm"]):
        assert sum(row["best"] for row in group) == 1, arm


@pytest.mark.slow
def test_gains_with_another_rate_are_looked_at_again(monkeypatch, tmp_path):
    (first, *_) = conditions.CONDITIONS
    rates = {"none": 0.05, "fan_in": 0.1, "batch_variance": 0.05, "weight_norm": 0.1}
    ends = {"none": 0.0, "fan_in": 0.1, "batch_variance": 0.2, "weight_norm": -0.1}
    entry = {
        "condition": json.loads(json.dumps(first._asdict())),
        "arms": [{"arm": x, "rate": rates[x], "low": ends[x]} for x in rates],
        "accuracies": np.ones((4, 3, 2)).tolist(),
    }
    monkeypatch.setattr(same_rate, "load", lambda program: {"conditions": [entry]})
    output = tmp_path / "record.json"
    same_rate.main(harness.Options(quick=True, output=output, allow_dirty=True))
    (table,) = stored.select(json.loads(output.read_text())["tables"], kind="same_rate")
    (row,) = table["rows"]
    assert (row["condition"], row["arm"], row["rate"]) == (first.name, "fan_in", 0.1)
    assert row["mean"] == pytest.approx(1.0 - row["accuracy"])

import dataclasses
import doctest
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from examples.common import fashion_mnist
from examples.digits.dataset import Split
from studies.convergence import corrections as candidates
from studies.convergence.runs import Data, Network, Outcome
from studies.photographs import __main__ as program
from studies.photographs import conditions, neurons, training
from studies.photographs import networks as networks_of

NOTHING = Split(np.zeros((0, 1, 1, 1)), np.zeros(0))
NETWORK = Network(
    build=lambda _: None,  # pyright: ignore[reportArgumentType]
    data=Data(NOTHING, NOTHING, NOTHING),
    batch=1,
    epochs=1,
    rates=(0.1, 0.2, 0.4),
    targets={},
)
SHORT = conditions.Condition("short", network="resnet", arms=conditions.ARMS)


def outcome(accuracy):
    return Outcome((accuracy,), early_loss=1.0, fan_in_spread=0.5, dead=0.0)


class TestConditions:
    def test_names_are_different_and_longer_ones_come_later(self):
        names = [condition.name for condition in conditions.CONDITIONS]
        assert len({*names}) == len(names)
        for place, condition in enumerate(conditions.CONDITIONS):
            if condition.like is not None:
                assert condition.like in names[:place]
                assert condition.length > 1

    @pytest.mark.parametrize("network", ["resnet", "mlp"])
    def test_every_network_has_seeds(self, network):
        assert conditions.SEEDS[network] >= 5
        assert any(c.network == network for c in conditions.CONDITIONS)

    def test_least_fan_ins_reach_the_topology(self):
        shapes = {"hidden_1": {"kernel": jax.ShapeDtypeStruct((64, 16), jnp.float32)}}
        for condition in conditions.CONDITIONS:
            topology: Any = condition.topology(800, shapes, 0)
            assert topology.min_fan_in == condition.min_fan_in
            assert bool(condition.min_fan_in) == ("least fan-in" in condition.name)


class TestNetworks:
    def test_shrinking_takes_means(self):
        assert doctest.testmod(networks_of).failed == 0

    def test_images_are_standardised_and_held_out_once(self):
        noise = networks_of._noise()
        data = networks_of._splits(noise)
        assert [len(split.labels) for split in data] == [96, 32, 64]
        pixels = np.concatenate([data.train.images, data.validation.images])
        assert pixels.mean() == pytest.approx(0.0, abs=1e-4)
        assert pixels.std() == pytest.approx(1.0, abs=1e-4)
        assert pixels.dtype == np.float32
        means = {split.images[0].mean() for split in data}
        seen = [image.tobytes() for split in data for image in split.images]
        assert len({*seen}) == len(seen) and len(means) == 3

    def test_both_hold_out_the_same_images(self):
        resnet, mlp = networks_of.networks(None, quick=True).values()
        np.testing.assert_array_equal(
            networks_of.shrink(mlp.data.validation.images),
            resnet.data.validation.images,
        )
        np.testing.assert_array_equal(mlp.data.test.labels, resnet.data.test.labels)

    def test_missing_files_say_what_to_do(self, tmp_path):
        with pytest.raises(SystemExit, match="--data-dir the folder"):
            networks_of.networks(tmp_path, quick=False)

    def test_a_damaged_file_is_refused(self, tmp_path):
        for name in fashion_mnist.FILES.values():
            (tmp_path / name).write_bytes(b"not an image")
        with pytest.raises(ValueError, match=str(tmp_path)):
            networks_of.networks(tmp_path, quick=False)


class TestRuns:
    def test_rates_are_chosen_by_tuning_runs_alone(self, tmp_path):
        runs = training.Runs(tmp_path, quick=False)
        assert runs.rate(SHORT, "none", NETWORK) is None
        for run in runs.tuning(SHORT, "none", NETWORK):
            assert run.seed >= 1_000
            runs.outcomes[run] = outcome(0.9 if run.rate == 0.2 else 0.8)
        assert runs.rate(SHORT, "none", NETWORK) == 0.2
        assert runs.rate(SHORT, "fan_in", NETWORK) is None
        final = runs.final(SHORT, "none", NETWORK)
        assert final is not None
        assert [run.seed for run in final] == [0, 1, 2, 3, 4]
        assert {run.rate for run in final} == {0.2}
        longer = SHORT._replace(name="longer", like="short", length=3)
        assert runs.rate(longer, "none", NETWORK) == 0.2

    @pytest.mark.parametrize(
        ("best", "tried"),
        [
            (0.2, (0.1, 0.2, 0.4)),
            (0.8, (0.1, 0.2, 0.4, 0.8, 1.6)),
            (0.05, (0.025, 0.05, 0.1, 0.2, 0.4)),
            (9.0, (0.1, 0.2, 0.4, 0.8, 1.6)),
        ],
    )
    def test_further_rates_are_tried_beyond_the_best(self, tmp_path, best, tried):
        runs = training.Runs(tmp_path, quick=True)
        while runs.rate(SHORT, "none", NETWORK) is None:
            for run in runs.tuning(SHORT, "none", NETWORK):
                distance = abs(np.log(run.rate / best))
                runs.outcomes[run] = outcome(1.0 - 0.1 * distance)
        _, rows = runs.tried(SHORT, "none", NETWORK)
        assert tuple(row["rate"] for row in rows) == tried

    def test_a_condition_is_finished_with_its_last_run(self, tmp_path):
        runs = training.Runs(tmp_path, quick=True)
        for arm in SHORT.arms:
            for run in runs.tuning(SHORT, arm, NETWORK):
                runs.outcomes[run] = outcome(0.5 if run.rate == 0.2 else 0.4)
            for run in runs.final(SHORT, arm, NETWORK) or ():
                assert not runs.is_finished(SHORT, NETWORK)
                runs.outcomes[run] = outcome(0.5)
        assert runs.is_finished(SHORT, NETWORK)

    def test_gains_with_another_rate_are_looked_at_again(self, tmp_path):
        runs = training.Runs(tmp_path, quick=False)
        best = {"none": 0.2, "fan_in": 0.4, "batch_variance": 0.2}
        ends = {"none": 0.5, "fan_in": 0.6, "batch_variance": 0.7}
        for arm in SHORT.arms:
            assert runs.gains(SHORT, NETWORK) == []
            while runs.rate(SHORT, arm, NETWORK) is None:
                for run in runs.tuning(SHORT, arm, NETWORK):
                    runs.outcomes[run] = outcome(0.5 if run.rate == best[arm] else 0.4)
            for run in runs.final(SHORT, arm, NETWORK) or ():
                runs.outcomes[run] = outcome(ends[arm] + 0.01 * run.seed)
        # Batch variance gains as well, with the rate of the uncorrected runs.
        assert runs.gains(SHORT, NETWORK) == [("fan_in", 0.4)]
        wanted = runs.final(SHORT, "none", NETWORK, 0.4)
        assert wanted == [
            training.Run("short", "none", 0.4, seed, tuning=False) for seed in range(5)
        ]
        # A loss is not.
        for run in runs.final(SHORT, "fan_in", NETWORK) or ():
            runs.outcomes[run] = outcome(0.4 + 0.01 * run.seed)
        assert runs.gains(SHORT, NETWORK) == []

    def test_no_process_at_all_is_refused(self):
        with pytest.raises(SystemExit, match="--processes must be at least 1, got 0"):
            training.Options(processes=0)


@pytest.mark.slow
def test_a_study_resumes_and_compares_rules(tmp_path, monkeypatch, capsys):
    output, folder = tmp_path / "record.json", tmp_path / "runs"
    options = training.Options(
        quick=True, output=output, allow_dirty=True, folder=folder, processes=1
    )
    plain, ruled = (
        conditions.CONDITIONS[index]._replace(arms=("none", "fan_in"))
        for index in (1, 2)
    )
    monkeypatch.setattr(program, "CONDITIONS", (None, plain, ruled))
    cut = dataclasses.replace(options, minutes=0.0)
    with pytest.raises(SystemExit, match="No condition is finished"):
        program.main(cut)
    program.main(options)
    record = json.loads(output.read_text())
    assert record["missing"] == []
    assert [entry["condition"]["name"] for entry in record["conditions"]] == [
        plain.name,
        ruled.name,
    ]
    for entry in record["conditions"]:
        assert [row["arm"] for row in entry["arms"]] == ["none", "fan_in"]
        assert len(entry["tried"]) >= 2 * len(networks_of.MLP_RATES)
        dead = [row["dead"] for row in entry["arms"]]
        assert all(0.0 <= share <= 1.0 for share in dead)
    assert record["conditions"][1]["arms"][0]["dead"] == 0.0
    (table,) = [t for t in record["tables"] if t["key"] == {"kind": "least_fan_in"}]
    assert [(row["arm"], row["against"]) for row in table["rows"]] == [
        ("none", "none"),
        ("fan_in", "fan_in"),
        ("fan_in", "none"),
    ]
    monkeypatch.setattr(training, "Trainer", None)
    program.main(dataclasses.replace(options, overwrite=True))
    # A line that was cut short belongs to a run that is trained again.
    log = folder / "log.jsonl"
    log.write_text(log.read_text()[:-20])
    with pytest.raises(TypeError):
        program.main(dataclasses.replace(options, overwrite=True))
    capsys.readouterr()


@pytest.mark.slow
def test_processes_train_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # it is changed
    options = training.Options(quick=True, folder=tmp_path / "runs", processes=2)
    arms = ("none", "fan_in")
    short = conditions.CONDITIONS[1]._replace(arms=arms)
    longer = short._replace(name="longer", like=short.name, length=2)
    runs = training.train_missing(options, [short, longer])
    network = networks_of.networks(None, quick=True)[short.network]
    assert runs.is_finished(short, network) and runs.is_finished(longer, network)
    for condition in (short, longer):
        for _, rate in runs.gains(condition, network):
            again = runs.final(condition, "none", network, rate) or [None]
            assert all(run in runs.outcomes for run in again)


class TestTally:
    def test_an_update_by_hand(self):
        # Neurons with 4, 2, 1 and 0 of 4 inputs; the mean is 7/4.
        before = np.array(
            [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], bool
        )
        after = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
        grown = np.zeros_like(before)
        grown[1, 0] = grown[0, 1] = grown[0, 2] = True
        tally = neurons.Tally()
        bias = np.array([1.0, 1.0, 1.0, -1.0])
        found = tally.add(before, after, grown, bias)
        np.testing.assert_array_equal(found, after & ~before)
        # Relative fan-ins are 2.3, 1.1, 0.6 and 0.
        assert tally.standing.tolist() == [0, 1, 3]
        assert tally.dropped.tolist() == [0, 0, 1]
        assert tally.young.tolist() == [0, 2, 1]
        assert tally.kept.tolist() == [0, 1, 1]
        assert (tally.died, tally.fan_ins) == (1, [1])
        assert (tally.revived, tally.without) == (1, 1)
        assert (tally.closed, tally.revived_closed) == (1, 1)

    def test_the_first_update_has_no_weights_that_the_last_one_grew(self):
        before = np.eye(3, dtype=bool)
        tally = neurons.Tally()
        tally.add(before, np.roll(before, 1, axis=0), None, np.ones(3))
        assert tally.standing.sum() == tally.young.sum() == 0
        assert tally.died == 0


def test_relative_magnitudes_compare_a_weight_with_its_neuron():
    kernel = jnp.array([[3.0, 0.1], [4.0, 0.0], [0.0, 0.0]])
    found = neurons.RelativeMagnitude()(jax.random.key(0), kernel, kernel)
    rms = np.sqrt(25 / 2)
    np.testing.assert_allclose(
        found, [[3 / rms, 1.0], [4 / rms, 0.0], [0.0, 0.0]], rtol=1e-6
    )


def test_a_floor_holds_small_factors_up():
    # Fan-ins of 4, 2, 1 and 1 of 4: factors of sqrt(fan-in / 2).
    mask = jnp.tril(jnp.ones((4, 4), bool)).at[3, 3].set(True).at[1:, 1].set(False)
    mask = mask.at[0, 1].set(True).at[1, 1].set(True).at[3, 2].set(False)
    assert mask.sum(axis=0).tolist() == [4, 2, 1, 1]
    params = {"kernel": jnp.ones((4, 4))}
    tx = so.sparsify(
        candidates.floored_fan_in(0.9), so.static(masks={"kernel": mask}, first=False)
    )
    updates, _ = tx.update(params, tx.init(params), params)
    (found,) = jax.tree.leaves(updates)
    factors = np.maximum(np.sqrt(np.array([4, 2, 1, 1]) / 2), 0.9)
    np.testing.assert_allclose(mask * found, mask * factors, rtol=1e-6)


@pytest.mark.slow
def test_watching_neurons_runs(tmp_path):
    output = tmp_path / "record.json"
    neurons.main(training.Options(quick=True, output=output, allow_dirty=True))
    by_kind = {t["key"]["kind"]: t for t in json.loads(output.read_text())["tables"]}
    plain, corrected = by_kind["neurons"]["rows"]
    assert (plain["arm"], corrected["arm"]) == ("none", "fan_in")
    assert plain["died"] >= plain["revived"]
    assert len(by_kind["exponents"]["rows"]) == 3 * len(neurons.neuron_scales.MOMENTS)

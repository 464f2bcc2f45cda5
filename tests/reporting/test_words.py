"""The pages' statements about records, compared with the records."""

import re

import pytest

from reporting import stored
from reporting.pages import choosing
from reporting.pages.gains import at_same_rate
from tests.helpers.pages import read


def test_rigl_ends_highest_of_the_sparse_networks_on_digits():
    assert "RigL ends highest of the sparse networks" in read("README.md")
    found = {r["label"]: r for r in stored.load("examples.digits")["results"]}
    mean, sd = (
        {label: r[f"test_accuracy_{name}"] for label, r in found.items()}
        for name in ("mean", "sd")
    )
    sparse = [label for label in found if label != "dense"]
    assert max(sparse, key=mean.__getitem__) == "RigL"
    for other in sparse:
        assert mean["RigL"] - mean[other] < sd["RigL"] + sd[other]


def test_sparse_adam_keeps_two_bytes_more_for_each_weight():
    record = stored.load("examples.language_model")
    kept = {r["label"]: r["optimizer_bytes"] for r in record["results"]}
    more = kept["sparse Adam"] - kept["dense"]
    assert 2.0 <= more / record["sparse_weights"] < 2.1


def test_single_weights_of_smet_save_nothing_at_half():
    (found,) = stored.load("benchmarks.memory")["tables"]
    (row,) = (
        row
        for row in found["rows"]
        if (row["optimizer"], row["density"], row["block"]) == ("SMET", 0.5, 1)
    )
    assert row["leaf"] == pytest.approx(found["rows"][0]["leaf"], rel=0.01)


def test_what_choosing_says_of_its_table():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in choosing.methods_chosen().splitlines()[2:]
    ]
    trained = {name: share for name, share, *_ in rows}
    accuracy = {
        name: tuple(map(float, re.findall(r"[\d.]+", cell)))
        for name, _, _, cell in rows
    }
    few = [name for name, share in trained.items() if share == "10 %"]
    more = trained.keys() - {*few, "dense", "AC/DC"}
    best = max(sum(accuracy[name]) for name in few)
    assert all(accuracy[name][0] - accuracy[name][1] > best for name in more)
    assert accuracy["RigL"][0] < accuracy["SET"][0]


def test_what_when_it_helps_says_of_dying_neurons():
    page = " ".join(read("docs/when_it_helps.md").split())
    (found,) = stored.select(
        stored.load("studies.photographs.neurons")["tables"], kind="neurons"
    )
    rows = {(r["network"], r["arm"], r["rule"]): r for r in found["rows"]}
    perceptron, resnet = "perceptron, 98 %", "ResNet, 98 %"
    none, fan_in = (rows[perceptron, arm, "none"] for arm in ("none", "fan_in"))
    assert "twice as large a share of the long-standing weights" in page
    assert 1.9 < fan_in["dropped_few"] / fan_in["dropped_many"] < 2.3
    assert "half as large a share of those just grown" in page
    assert 0.4 < fan_in["kept_few"] / fan_in["kept_many"] < 0.55
    assert "it is the other way round" in page
    assert none["dropped_few"] < none["dropped_many"]
    assert none["kept_few"] > none["kept_many"]
    assert "three inputs before" in page and round(fan_in["fan_in_before"]) == 3
    relative = rows[perceptron, "fan_in", "relative magnitude"]
    assert relative["dead"] < 0.002 and relative["accuracy"] < none["accuracy"]
    assert "a tenth of the neurons die" in page
    decayed = rows[perceptron, "fan_in", "no weight decay"]
    assert 0.08 < decayed["dead"] < 0.13
    assert "three quarters of the perceptron's dead neurons" in page
    assert 0.7 < fan_in["closed"] < 0.8
    perceptrons = [row for key, row in rows.items() if key[0] == perceptron]
    assert all(row["revived_closed"] == 0 for row in perceptrons)
    assert "about half of those that die do" in page
    for arm in ("none", "fan_in"):
        row = rows[resnet, arm, "none"]
        assert 0.5 < row["revived"] / row["died"] < 0.65
    assert "more than thirty inputs" in page and none["fan_in_before"] > 30
    dead = [rows[resnet, arm, "none"]["dead"] for arm in ("none", "fan_in")]
    assert "loses a fifth of them by RigL alone, and twice as many" in page
    assert 0.18 < dead[0] < 0.25 and 1.8 < dead[1] / dead[0] < 2.2
    (milder,) = (
        entry
        for entry in stored.load("studies.photographs")["conditions"]
        if entry["condition"]["name"] == "ResNet, RigL, 95 %"
    )
    without, corrected = (row["dead"] for row in milder["arms"][:2])
    assert "no neuron by RigL alone, but 4 % of them" in page
    assert without == 0.0 and round(100 * corrected) == 4


def test_what_when_it_helps_says_of_photographs():
    page = " ".join(read("docs/when_it_helps.md").split())
    record = stored.load("studies.photographs")
    rows = {
        (entry["condition"]["name"], row["arm"]): row
        for entry in record["conditions"]
        for row in entry["arms"]
    }

    def gain(condition, arm):
        return 100 * rows[condition, arm]["mean"]

    fan_in = {name: row for (name, arm), row in rows.items() if arm == "fan_in"}
    assert "RigL: its mean gain is below zero in every condition" in page
    assert all(row["mean"] < 0 for name, row in fan_in.items() if "RigL" in name)
    assert "the short runs without the rule below, the loss is the larger the" in page
    plain = [
        row
        for name, row in fan_in.items()
        if "RigL" in name and "least" not in name and not name.endswith(" x")
    ]
    assert sorted(plain, key=lambda row: row["dead"]) == sorted(
        plain, key=lambda row: -row["mean"]
    )
    assert "With SET its mean gain lies between -0.3 and +0.4 points" in page
    with_set = {
        name: 100 * row["mean"] for name, row in fan_in.items() if "SET" in name
    }
    assert all(-0.35 < mean < 0.4 for mean in with_set.values())
    assert "It is highest at 90 %, where batch variance gains half a point" in page
    assert max(with_set, key=with_set.__getitem__) == "ResNet, SET, 90 %"
    assert "the highest one is gone where the uncorrected runs have the same" in page
    alike = at_same_rate(record)
    assert 100 * alike["ResNet, SET, 90 %", "fan_in"]["mean"] < 0.1
    assert "So the gains with SET come from the choice of the rates" in page
    assert "Those of batch variance with RigL do not" in page
    for (name, arm), row in alike.items():
        if "SET" in name:
            assert row["low"] < 0
        else:
            assert row["low"] > 0 and 100 * row["mean"] > gain(name, arm)
    assert "in the perceptron are at equal rates already" in page
    for name in ("ResNet, RigL, 95 %", "perceptron, RigL, 98 %"):
        assert rows[name, "fan_in"]["rate"] == rows[name, "none"]["rate"]
        assert rows[name, "fan_in"]["high"] < 0
    assert "at 90 % the tuning gave the uncorrected runs of SET the lowest rate" in page
    lowest = rows["ResNet, SET, 90 %", "none"]["rate"]
    assert all(
        lowest < row["rate"]
        for (name, arm), row in rows.items()
        if name.startswith("ResNet, SET") and not (arm == "none" and "90 %" in name)
    )
    assert 0.45 < gain("ResNet, SET, 90 %", "batch_variance") < 0.55
    assert "and 0.3 points in runs three times as long" in page
    assert 0.25 < gain("ResNet, SET, 90 %, 3 x", "batch_variance") < 0.35
    assert "at 90 % it made no difference" in page
    for length in ("", ", 3 x"):
        assert abs(gain(f"ResNet, RigL, 90 %{length}", "fan_in")) < 0.15
    assert "halve the loss at 97 % and make up for it at 95 %" in page
    assert abs(gain("ResNet, RigL, 95 %, 3 x", "fan_in")) < 0.2
    lost = (gain(f"ResNet, RigL, 97 %{end}", "fan_in") for end in ("", ", 3 x"))
    assert 1.8 < next(lost) / next(lost) < 2.2
    assert "it still cost almost a point at 97 %" in page
    assert -1.0 < gain("ResNet, RigL, 97 %, 3 x", "fan_in") < -0.8
    (tests,) = stored.select(record["tables"], kind="p_values")
    assert all(row["holm"] > 0.05 for row in tests["rows"])
    assert record["missing"] == []
    assert "almost two at 97 %" in page
    assert -2.0 < gain("ResNet, RigL, 97 %", "fan_in") < -1.5
    assert "It cost about a point at 95 %" in page and "four points at 98 %" in page
    resnet, perceptron = "ResNet, RigL, 98 %", "perceptron, RigL, 98 %"
    assert -1.3 < gain("ResNet, RigL, 95 %", "fan_in") < -0.8
    assert -1.3 < gain(perceptron, "fan_in") < -0.8
    assert -4.2 < gain(resnet, "fan_in") < -3.5
    assert "gains three points in the ResNet-8 at 98 %" in page
    assert gain(resnet, "batch_variance") > 3.0
    assert "elsewhere it changes at most half a point" in page
    others = {name for name, _ in rows} - {resnet}
    assert all(abs(gain(name, "batch_variance")) < 0.55 for name in others)
    (table,) = stored.select(record["tables"], kind="least_fan_in")
    ruled = {(r["condition"], r["arm"], r["against"]): r for r in table["rows"]}
    assert "by four points in the ResNet-8 at 98 %" in page
    assert 3.5 < 100 * ruled[resnet, "none", "none"]["mean"] < 4.5
    assert "the rule changes nothing" in page
    assert abs(ruled[perceptron, "none", "none"]["mean"]) < 0.002
    assert "the correction still ends behind" in page
    for network in (resnet, perceptron):
        assert rows[f"{network}, least fan-in 2", "fan_in"]["high"] < 0


def test_gains_on_synthetic_images_are_gone_at_the_same_rate():
    page = " ".join(read("docs/when_it_helps.md").split())
    alike = at_same_rate(stored.load("studies.convergence.same_rate"))
    assert "The gain of fan-in with SET at 97 % is gone" in page
    assert "The one gain with SET that stood out there is gone" in page
    found = {key: row for key, row in alike.items() if key[1] == "fan_in"}
    assert [*found] == [("SET, 97 %", "fan_in")]
    for row in found.values():
        assert abs(row["mean"]) < 0.002 and row["low"] < 0.0
    assert "only that with uniform densities is still large, and uncertain" in page
    variance = {key[0]: row for key, row in alike.items() if key[1] == "batch_variance"}
    uniform = variance.pop("RigL, 95 %, uniform")
    assert uniform["mean"] > 0.03 and uniform["low"] < 0.0
    assert all(abs(row["mean"]) < 0.002 for row in variance.values())
    # The rates of both are those of the record that it looks at again.
    for entry in stored.load("studies.convergence")["conditions"]:
        for row in entry["arms"][1:]:
            key = (entry["condition"]["name"], row["arm"])
            looked_at = row["low"] > 0 and row["rate"] != entry["arms"][0]["rate"]
            assert (key in alike) == looked_at
            assert not looked_at or alike[key]["rate"] == row["rate"]

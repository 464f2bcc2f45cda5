"""The pages' statements about records, compared with the records."""

import re

import pytest

from reporting import stored
from reporting.pages import choosing
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

"""What the pages say of photographs."""

import pytest

from reporting.pages import gains, photographs, results


def arm(name, mean, accuracy=0.8):
    return {
        "arm": name,
        "rate": 0.1,
        "accuracy": accuracy,
        "sd": 0.01,
        "mean": mean,
        "low": mean - 0.01,
        "high": mean + 0.01,
        "p": 0.03,
        "early_accuracy": 0.5,
        "early_mean": mean / 2,
        "early_p": 0.5,
        "dead": 0.25,
        "fan_in_spread": 0.5,
    }


@pytest.fixture
def record(monkeypatch):
    names = ("ResNet, RigL, 95 %", "perceptron, SET, 98 %")
    entry = {
        "arms": [arm("none", 0.0), arm("fan_in", -0.02), arm("batch_variance", 0.02)],
        "tried": [{"arm": "none", "rate": 0.1, "accuracy": 0.7, "best": True}],
    }
    tests = [
        {"condition": name, "arm": arm, "p": 0.03, "holm": holm}
        for name, holm in zip(names, (0.01, 0.2), strict=True)
        for arm in ("fan_in", "batch_variance")
    ]
    rule = {"arm": "fan_in", "against": "none", "condition": names[0]}
    rows = [rule | {"mean": 0.03, "low": 0.02, "high": 0.04, "p": 0.001}]
    alike = rows[0] | {"rate": 0.4, "accuracy": 0.9, "sd": 0.002}
    made = {
        "versions": {"jax": "0.10.2"},
        "missing": ["ResNet, SET, 90 %"],
        "conditions": [
            entry | {"condition": {"name": name}, "accuracies": [[[0.5]] * seeds]}
            for name, seeds in zip(names, (5, 10), strict=True)
        ],
        "tables": [
            {"key": {"kind": "p_values"}, "rows": tests},
            {"key": {"kind": "least_fan_in"}, "rows": rows},
            {"key": {"kind": "same_rate"}, "rows": [alike]},
        ],
    }
    monkeypatch.setattr(photographs, "load", lambda program: made)
    monkeypatch.setattr(results, "load", lambda program: made)
    return made


def test_gains_are_bold_where_they_are_significant_among_all(record):
    shown = photographs.photographs().splitlines()
    assert "| **-2.0 [-3.0, -1.0]** (0.1) | **+2.0 [+1.0, +3.0]** (0.1) |" in shown[2]
    assert "25.0, 25.0, 25.0" in shown[2] and "*" not in shown[3]
    assert "5 or 10 seeds" in shown[5]
    assert shown[-1] == "Not measured yet: ResNet, SET, 90 %."


def test_a_whole_record_lacks_nothing(record):
    record["missing"] = []
    assert "Not measured yet" not in photographs.photographs()


def test_rules_and_rates_of_the_photographs(record):
    assert "| 0.001 |" in photographs.least_fan_in()
    assert photographs.photograph_same_rate().splitlines()[-1] == (
        "| ResNet, RigL, 95 % | fan-in | 0.4 | 90.0 ± 0.2 | +3.0 [+2.0, +4.0] | 0.001 |"
    )
    assert "**70.0**" in photographs.photograph_rates()
    assert "-1.0 (p 0.5)" in photographs.photograph_starts()


def test_results_compare_convolutional_networks_with_the_paper(record):
    (line,) = results.photographs().splitlines()[2:]
    assert line.startswith("| ResNet, RigL, 95 % | +1.00 | -2.0 [-3.0, -1.0] |")
    assert line.endswith("| +3.0 [+2.0, +4.0] | *reproduced* |")
    *_, found = record["tables"]
    (row,) = found["rows"]
    found["rows"] = [row | {"low": -0.01}]
    assert results.photographs().endswith("| *undecided* |\n")
    found["rows"] = []
    assert results.photographs().endswith("| - | *not reproduced* |\n")


def test_exponents_that_were_not_found_are_dashes():
    row = {"run": "x", "share_of_training": 1.0, "pace": 0.5, "pace_sd": None}
    for name in ("deviation", "weights", "gradient"):
        row |= {name: None, f"{name}_sd": None}
    *_, line = gains.table_of_exponents([row]).splitlines()
    assert line == "| x | 1 | - | - | - | 0.50 |"

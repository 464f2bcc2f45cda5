"""The statements of ``docs/results.md`` on the papers' claims."""

import numpy as np
import pytest
import tyro

from examples.cifar import config as cifar
from examples.imagenet import config as imagenet
from reporting import stored
from reporting.pages import published, results
from studies.convergence import conditions

CONFIGS = {
    "examples.cifar": cifar.Config,
    "examples.imagenet": imagenet.Config,
}
ROWS = (*published.SPARSEOPT, *published.RIGL)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_commands_train_what_their_row_says(row):
    program, *args = row.command.split()
    config = tyro.cli(CONFIGS[program], args=args)
    recipe = config.chosen
    assert recipe.epochs == row.lengths[0]
    for method in ("dense", "static", "set"):
        assert (recipe.method == method) == (method in row.what.lower())
    if recipe.method != "dense":
        assert str(recipe.sparsity) in row.what
    assert (recipe.distribution == "erdos_renyi_kernel") or "ERK" not in row.what
    corrected = getattr(recipe, "sparseopt", None) or (
        getattr(recipe, "correction", "none") != "none"
    )
    assert corrected == (row in published.SPARSEOPT)
    assert getattr(recipe, "ham", False) == ("HAM" in row.what)
    assert len(row.numbers) == len(row.lengths)


def test_gains_are_of_conditions_that_are_measured():
    names = {condition.name for condition in conditions.CONDITIONS}
    assert {*published.GAINS, results.KEPT} <= names


def test_further_conditions_replace_those_of_their_name(monkeypatch):
    def record(mean):
        rows = [
            {"arm": arm, "low": mean, "mean": mean, "high": mean, "p": 0.5}
            for arm in ("none", "fan_in")
        ]
        condition = {"name": "RigL, 97 %"}
        curves = np.zeros((2, 8, 20)).tolist()
        entry = {"condition": condition, "arms": rows, "accuracies": curves}
        return {"conditions": [entry]}

    stored_records = {
        "studies.convergence": record(-0.01),
        "studies.convergence.further": record(0.02),
        "studies.convergence.same_rate": {
            "tables": [{"key": {"kind": "same_rate"}, "rows": []}]
        },
    }
    monkeypatch.setattr(results, "load", stored_records.__getitem__)
    shown = results.small_scale()
    assert "+2.0 [+2.0, +2.0]" in shown and "-1.0" not in shown
    assert "`python -m studies.convergence.further`" in shown


def test_early_gains_are_taken_at_the_shares_of_the_training(monkeypatch):
    def record(name, gain):
        curves = np.zeros((2, 8, 18))
        curves[1, :, [1, 5, 11]] += np.array(gain)[:, None]
        arms = [{"arm": "none"}, {"arm": "fan_in"}]
        condition = {"name": name}
        entry = {"condition": condition, "arms": arms, "accuracies": curves.tolist()}
        return {"conditions": [entry]}

    found = {
        "studies.convergence": record("SET, 97 %", (0.1, 0.05, -0.01)),
        "studies.convergence.further": record("RigL, 97 %", (0.0, 0.0, 0.02)),
    }
    monkeypatch.setattr(results, "load", found.__getitem__)
    lines = results.early().splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in cells] == ["RigL, 97 %"] * 3 + ["SET, 97 %"] * 3
    assert [row[1] for row in cells[:3]] == ["10 of 90", "30 of 90", "60 of 90"]
    assert [row[3] for row in cells[:3]] == ["2 of 18", "6 of 18", "12 of 18"]
    assert [row[4][:5] for row in cells] == [
        *("+0.0 ", "+0.0 ", "+2.0 "),
        *("+10.0", "+5.0 ", "-1.0 "),
    ]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.001, 0.02, "reproduced"),
        (-0.01, 0.02, "undecided"),
        (-0.01, 0.005, "not reproduced"),
        (-0.03, -0.01, "not reproduced"),
    ],
)
def test_verdicts(low, high, wanted):
    assert results.verdict({"low": low, "high": high}, 0.01) == f"*{wanted}*"


class TestWhatIsTakenFromIt:
    """The conclusions of ``docs/when_it_helps.md``, compared with stored results."""

    RECORD = stored.load("studies.convergence")
    SCALES = stored.load("studies.neuron_scales")

    def of(self, arm, **wanted):
        """Return the rows of an arm in all conditions with given values, by name."""
        found = {}
        for entry in self.RECORD["conditions"]:
            condition = entry["condition"]
            if all(condition[key] == value for key, value in wanted.items()):
                rows = {row["arm"]: row for row in entry["arms"]}
                if arm in rows:
                    found[condition["name"]] = rows[arm]
        return found

    def test_fan_in_with_rigl(self):
        rows = self.of("fan_in", method="rigl")
        assert len(rows) == 14
        assert all(row["mean"] < 0.0 for row in rows.values())
        clear = {name for name, row in rows.items() if row["high"] < 0.0}
        longer = {f"RigL, 95 %, {length} x" for length in (2, 3, 5)}
        assert {
            "RigL, 95 %, uniform",
            "RigL, 95 %, six hidden layers",
        } | longer <= clear
        spreads = [
            rows[name]["fan_in_spread"]
            / self.of("none", method="rigl")[name]["fan_in_spread"]
            for name in longer
        ]
        assert 1.7 < min(spreads) < max(spreads) < 2.4
        astray = [rows[name]["sd"] for name in longer]
        assert min(astray) > 0.05

    def test_what_was_added(self):
        conditions = stored.load("studies.convergence.further")["conditions"]
        found = {
            entry["condition"]["name"]: {row["arm"]: row for row in entry["arms"]}
            for entry in conditions
        }
        # Lower learning rates, and the classifier left out.
        before = self.of("fan_in")
        for name in ("RigL, 97 %", "RigL, 95 %, uniform"):
            change = found[name]["fan_in"]["mean"] - before[name]["mean"]
            assert abs(change) < 0.001
        assert found["RigL, 95 %, uniform"]["fan_in_but_head"]["mean"] < -0.03
        assert all(
            abs(found["RigL, 95 %, HAM"][arm]["mean"]) < 0.005
            for arm in ("fan_in", "batch_variance")
        )
        # Longer runs that are tuned separately.
        tuned = {n: found[f"RigL, 95 %, {n} x"]["fan_in"] for n in (2, 3, 5)}
        assert before["RigL, 95 %, 2 x"]["mean"] < tuned[2]["mean"] - 0.05
        assert all(row["high"] < 0 for row in tuned.values())
        assert tuned[2]["high"] < 0 and tuned[3]["high"] < -0.04
        assert tuned[5]["sd"] > 0.05 > tuned[3]["sd"]
        # Fixed masks, with increasingly different fan-ins.
        spread = before["static, 95 %, fan-ins spread"]["mean"]
        by_power = found["static, 95 %, power law"]
        assert by_power["fan_in"]["mean"] < spread < 0
        assert by_power["fan_in"]["high"] < 0 < by_power["batch_variance"]["high"]
        # Growth by corrected gradients, without another correction.
        grown = found["RigL, 95 %, growth corrected"]["none"]["accuracy"]
        assert 0.03 < self.of("none")["RigL, 95 %"]["accuracy"] - grown < 0.04

    def test_fan_in_with_set(self):
        rows = self.of("fan_in", method="set")
        assert len(rows) == 4
        assert all(row["mean"] > 0.0 for row in rows.values())
        assert rows["SET, 97 %"]["low"] > 0.0
        gain = published.GAINS["SET, 97 %"]
        assert 100 * rows["SET, 97 %"]["mean"] == pytest.approx(gain, abs=0.1)
        tests = self.RECORD["tables"][-1]["rows"]
        assert all(
            row["holm"] > 0.05
            for row in tests
            if row["arm"] == "fan_in" and "SET" in row["condition"]
        )

    def test_batch_variances(self):
        rows = self.of("batch_variance")
        assert min(row["mean"] for row in rows.values()) > -0.02
        assert min(row["mean"] for row in self.of("fan_in").values()) < -0.09
        at_97 = [self.of(arm)["RigL, 97 %"] for arm in ("none", "batch_variance")]
        assert at_97[0]["rate"] == at_97[1]["rate"]
        assert at_97[0]["sd"] > 5 * at_97[1]["sd"]

    def test_other_candidates(self):
        whole = self.of("variance^1")
        assert len(whole) == 2
        assert all(row["high"] < 0.0 for row in whole.values())
        assert all(
            row["mean"] < 0.0 for row in self.of("fan_in_then_variance").values()
        )
        norms = self.of("weight_norm", network="glyphs")
        lower = [row["mean"] < 0.0 for row in norms.values()]
        assert lower.count(False) == 1  # RigL at 97 %, where uncorrected runs fail
        assert norms["RigL, 97 %"]["mean"] > 0.0

    def test_reasons(self):
        exponents, jumps = (table["rows"] for table in self.SCALES["tables"])
        assert all(row["follows"] < 0.1 for row in jumps)
        dense = [
            row
            for row in exponents
            if row["run"].startswith("MLP") and "sparse-aware" not in row["run"]
        ]
        for row in dense:
            if row["share_of_training"] == 0.0:
                assert -0.45 < row["pace"] < -0.3
            elif row["share_of_training"] == 0.1:
                assert abs(row["pace"]) < 0.15
            else:
                assert row["pace"] > 0.15
        (drawn,) = (
            row
            for row in exponents
            if "sparse-aware" in row["run"] and row["share_of_training"] == 0.0
        )
        assert drawn["pace"] > 0.3

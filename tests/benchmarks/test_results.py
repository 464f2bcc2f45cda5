"""What ``docs/results.md`` says of the papers' claims."""

import importlib
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).resolve().parents[2]

# Programs, that find each other in the folders they are started from.
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "examples")]
stored = importlib.import_module("stored")
results = importlib.import_module("results_tables")
published = importlib.import_module("published")
conditions = importlib.import_module("convergence_conditions")
CONFIGS = {
    f"examples/{name}.py": importlib.import_module(f"{name}_config").Config
    for name in ("cifar", "imagenet")
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
    names = {own.name for own in conditions.CONDITIONS}
    assert {*published.GAINS, results.KEPT} <= names


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
    """What ``docs/when_it_helps.md`` ends with, held against the stored results."""

    RECORD = stored.load("convergence")
    SCALES = stored.load("neuron_scales")

    def of(self, arm, **wanted):
        """The rows of an arm in all conditions with such values, by name."""
        found = {}
        for own in self.RECORD["conditions"]:
            condition = own["condition"]
            if all(condition[key] == value for key, value in wanted.items()):
                rows = {row["arm"]: row for row in own["arms"]}
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

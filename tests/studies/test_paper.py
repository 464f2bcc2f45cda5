"""Figures of the SparseOpt paper: their mathematics by hand, and a quick run each."""

import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from reporting import figures, harness
from reporting.pages import paper_figures as paper_tables
from studies.convergence import compare
from studies.paper import (
    accuracy,
    explored,
    gradient_ratio,
    ratio_networks,
    report,
    skew,
    student,
    student_teacher,
)
from studies.paper import student_measures as measures
from tests.helpers.pages import ROOT


def quick_record(program, tmp_path):
    output = tmp_path / "record.json"
    program.main(harness.Options(quick=True, output=output, allow_dirty=True))
    assert (tmp_path / "record.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(output.read_text())
    assert record["verdict"] == report.verdict(record["claims"])
    return record


# The claims, and how they are judged.


def test_the_verdict_goes_by_the_claims_of_the_paper_alone():
    def judge(*met):
        ours = [{"met": False}, {"what": "no limit"}]
        return report.verdict([*ours, *({"published": True, "met": m} for m in met)])

    assert judge(True, True) == "reproduced"
    assert judge(True, False) == "partly reproduced"
    assert judge(False, False) == "not reproduced"
    with pytest.raises(ValueError, match="no claim of the paper"):
        judge()


def test_figures_lie_in_a_folder_of_their_own(tmp_path):
    options = harness.Options(allow_dirty=True)
    some = report.Report("studies.paper.some", options, tmp_path)
    some.published("a", 1.0, at_most=2.0)
    figure, _ = figures.panels(1, 2, (2, 1))
    some.picture(figure)
    some.store()
    folder = tmp_path / "studies" / "results" / "paper"
    assert sorted(path.name for path in folder.iterdir()) == ["some.json", "some.png"]
    assert json.loads((folder / "some.json").read_text())["verdict"] == "reproduced"


# The statements of docs/paper_figures.md on the stored results.

STORED = ROOT / "studies" / "results" / "paper"


def stored(name):
    record = json.loads((STORED / f"{name}.json").read_text())
    return record, [table["rows"] for table in record["tables"]]


def measured(record):
    return {claim["what"]: claim["measured"] for claim in record["claims"]}


@pytest.mark.parametrize("name", paper_tables.FIGURES)
def test_stored_figures_are_clean_whole_and_pictured(name):
    record, _ = stored(name)
    assert not record["dirty"] and not record["quick"]
    assert record["program"] == f"studies.paper.{name}"
    assert record["verdict"] == report.verdict(record["claims"])
    assert (STORED / f"{name}.png").stat().st_size < 1_000_000
    page = (ROOT / "docs" / "paper_figures.md").read_text()
    assert f"(../studies/results/paper/{name}.png)" in page
    assert f"python -m studies.paper.{name}\n" in page
    assert f"studies.paper.{name}\n" in (ROOT / "Makefile").read_text()


def test_what_the_page_says_of_the_skew():
    record, (rows,) = stored("skew")
    assert min(row["angle"] for row in rows) > 5
    found = measured(record)
    plain, corrected = (
        found[f"{arm}: mean angle over layers and steps, degrees"] for arm in skew.ARMS
    )
    assert plain == pytest.approx(corrected, rel=0.1)


def test_what_the_page_says_of_the_gradient_ratio():
    _, (rows, layers) = stored("gradient_ratio")

    def away(name, upto=0.9):
        return max(
            abs(row["mean"] / row["theory"] - 1)
            for row in rows
            if (row["network"], row["batch_norm"], row["init"]) == (name, True, "dense")
            and row["sparsity"] <= upto
        )

    normal, digits = gradient_ratio.MLPS
    equal = ratio_networks.EXPLAINS
    assert away(normal) < 0.011
    assert away(equal, 0.8) < away(digits, 0.8) < 0.125
    assert 0.15 < away(equal) < 0.75 * away(digits)
    assert all(
        row["mean"] == pytest.approx(1, abs=0.06)
        for row in rows
        if row["network"] == equal and not row["batch_norm"]
    )
    deep = [
        row for row in layers if "ResNet" in row["network"] and row["init"] == "dense"
    ]
    for row in deep:
        if row["batch_norm"] and "shortcut" not in row["layer"]:
            assert row["mean"] == pytest.approx(gradient_ratio.theory(0.9), rel=0.1)
        if not row["batch_norm"]:
            assert row["mean"] < 0.25


def test_what_the_page_says_of_exploration():
    _, (rows,) = stored("explored")
    for sparsity in explored.SPARSITIES:
        base, weights, both = (row for row in rows if row["sparsity"] == sparsity)
        for key in ("explored_mean", "paper"):
            assert both[key] < base[key] < weights[key]
        scatter = max(row["explored_sd"] for row in (base, weights))
        assert weights["explored_mean"] - base["explored_mean"] < 2 * scatter
        assert base["explored_mean"] - both["explored_mean"] > 2 * both["explored_sd"]
        assert base["accuracy_mean"] > max(
            row["accuracy_mean"] for row in (weights, both)
        )


def test_what_the_page_says_of_accuracies():
    record, _ = stored("accuracy")
    found = {
        entry["condition"]["name"]: {row["arm"]: row for row in entry["arms"]}
        for entry in record["conditions"]
    }
    gains = {name: arms["fan_in"] for name, arms in found.items()}
    assert all(gains[f"SET, {s} %, 1 x"]["mean"] > 0 for s in (90, 95, 97))
    lower_end = measured(record)["SET, points gained, fan_in, lower end"]
    assert -0.011 < lower_end < 0
    assert gains["SET, 95 %, 5 x"]["high"] < 0 < gains["SET, 97 %, 5 x"]["low"]
    rigl = {name: row for name, row in gains.items() if name.startswith("RigL")}
    assert all(row["low"] < 0 for row in rigl.values())
    for length in (2, 3, 5):
        astray = gains[f"RigL, 95 %, {length} x"]
        assert astray["high"] < 0 and astray["sd"] > 0.025
    (only,) = (
        entry for entry in record["claims"] if entry.get("published") and entry["met"]
    )
    assert only["what"] == "RigL, points gained more than in 5 x, fan_in, lower end"
    with_ham = [row for name, row in gains.items() if "HAM" in name]
    assert max(abs(row["mean"]) for row in with_ham) < 0.005
    assert found["RigL, 95 %, HAM, 1 x"]["none"]["accuracy"] < 0.45
    kept = [row for name, row in gains.items() if "kept" in name]
    assert len(kept) == 6 and all(row["low"] < 0 for row in kept)
    # Runs that fail.
    for length in (1, 2, 3, 5):
        arms = found[f"RigL, 97 %, {length} x"]
        assert arms["batch_variance"]["rate"] == arms["none"]["rate"]
        assert arms["batch_variance"]["sd"] < 0.012 < 0.035 < arms["none"]["sd"]
    assert found["RigL, 97 %, norms kept"]["batch_variance"]["sd"] > 0.09


def test_what_the_page_says_of_students():
    record, (one, sizes, two) = stored("student_teacher")
    for row in one:
        if row["alpha"] == 0:
            assert row["flips"] == row["flips_scaled"] == 0
        if row["alpha"] >= 10:
            assert min(row["flips"], row["flips_scaled"]) > 0.9
        if (row["alpha"], row["eta"]) == (100, 0.1):
            assert max(row["reached"], row["reached_scaled"]) < 0.1
    for row in sizes:
        if row["size"] == 1:
            assert row["steps_ratio"] > 1.5
    found = measured(record)
    words = "first weights x 0.1: steps rescaled / as they are"
    assert found[f"eta 0.01, {words}"] == pytest.approx(1, abs=0.25)
    assert found[f"eta 0.1, {words}"] == pytest.approx(0.5, abs=0.1)
    for name in ("own", "rule"):
        assert -0.1 < np.mean([r[f"off_{name}"] - r["off_none"] for r in two]) < 0
        switched, kept = (
            np.mean([r[f"{what}_{name}"] for r in two]) for what in ("switched", "kept")
        )
        assert 0 < switched < kept


def test_a_claim_with_bars_keeps_its_cells():
    lines = paper_tables.claims("student_teacher").splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in lines)
    assert any(r"\|a²" in line for line in lines)


# Figure 2: the gradient ratio.


def test_the_theory_is_that_of_the_paper():
    found = [gradient_ratio.theory(s) for s in (0.9, 0.95, 0.97)]
    np.testing.assert_allclose(found, [3.2, 4.5, 5.8], atol=0.05)


def test_per_weight_norms_count_active_weights_alone():
    grad, mask = (
        jnp.array([[3.0, 100.0], [4.0, 5.0]]),
        jnp.array([[1, 0], [1, 0]], bool),
    )
    expected = np.sqrt((9 + 16) / 2)
    assert gradient_ratio.per_weight(grad, mask) == pytest.approx(expected)
    assert gradient_ratio.per_weight(grad, jnp.zeros_like(mask)) == 0


def test_masks_have_their_density_where_layers_are_sparse():
    params = {
        name: {"kernel": jnp.ones((10, 4)), "bias": jnp.ones(4)}
        for name in ("stem", "hidden", "head")
    }
    masks = gradient_ratio.random_masks(jax.random.key(0), params, jnp.float32(0.3))
    assert [int(mask.sum()) for mask in jax.tree.leaves(masks)] == [12]
    assert masks["hidden"]["kernel"].shape == (10, 4)


def test_pixels_are_made_alike():
    images = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, 0.0], [2.0, 5.1, 1.0]])
    found = ratio_networks.equal_pixels(images.reshape(3, 3, 1, 1))
    assert found.shape == (3, 2)  # the second one hardly varies
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.var(axis=0), 1)


@pytest.mark.slow
def test_a_quick_figure_2(tmp_path):
    record = quick_record(gradient_ratio, tmp_path)
    rows, layers = (table["rows"] for table in record["tables"])
    assert len(rows) == (4 + 4 + 1 + 1) * 3 and len(layers) == 4 + 4 + 1 + 3
    assert all(row["mean"] == 1 for row in rows if row["sparsity"] == 0)
    found = {
        (row["network"], row["batch_norm"], row["init"]): row["mean"]
        for row in rows
        if row["sparsity"] == 0.5
    }
    # It also holds for noise, and only for networks with normalisations and weights
    # that do not depend on fan-ins.
    for name in gradient_ratio.MLPS:
        amplified = found.pop((name, True, "dense"))
        assert amplified == pytest.approx(2**0.5, rel=0.1)
        for norm, init in ((False, "dense"), (True, "sparse-aware")):
            assert found[name, norm, init] == pytest.approx(1, rel=0.1)


# Figure 1: the skew.


def test_factors_and_their_movement_by_hand():
    mask = jnp.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool)
    factors = skew.factors_of({"hidden": {"kernel": mask}})["hidden/kernel"]
    np.testing.assert_allclose(factors, [(4 / 2.5) ** 0.5, (1 / 2.5) ** 0.5], rtol=1e-6)
    assert skew.movement(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0


def test_a_course_is_told_apart_into_changes_and_noise():
    course = skew.Course(
        layers=("a",),
        angles=np.array([[10.0], [20.0], [21.0], [50.0], [52.0]]),
        factors=[np.array([[3.0, 4], [3, 4], [3, 4], [0, 4], [0, 4]])],
        changes=np.array([0, 2]),
        jumps=np.array([[9.0], [-28.0]]),
    )
    # Steps 1-2 and 3-4 have the same masks.
    np.testing.assert_allclose(skew.noise(course), [1.5])
    assert skew.between_changes(course, 0) == ([0, 1.5, 3.5], [10.0, 20.5, 51.0])
    np.testing.assert_allclose(skew.movements(course), [[0.0], [0.6]])
    [row] = skew.summarize("arm", [course])
    assert row["jump"] == 18.5 and row["angle"] == pytest.approx(30.6)


@pytest.mark.slow
def test_a_quick_figure_1(tmp_path):
    record = quick_record(skew, tmp_path)
    [table] = record["tables"]
    assert [row["layer"] for row in table["rows"]] == ["stem/kernel"] * 2
    for row in table["rows"]:
        assert row["angle"] > 0 and row["factor_min"] < 1 < row["factor_max"]
        assert row["factors_moved"] > 0 and row["jump"] > 0


# Figures 6 to 9: students and teachers.


@pytest.fixture(scope="module")
def small():
    """Return two seeds of a dense and a sparse neuron, in lanes that differ."""
    keys = jax.random.split(jax.random.key(0), 2)
    tasks = jax.vmap(lambda key: student.make_task(key, 6, 2, dense=1))(keys)
    kinds = (("none", 0.0), ("own", 0.0), ("rule", 0.0), ("none", 9.0))
    arms = [measures.Arm(*kind, (1, -1)) for kind in kinds]
    return tasks, student_teacher.lanes_of(arms, 6, 2)


def test_rescaling_by_hand(small):
    _, lanes = small
    factor = (2 / 6) ** 0.5
    rule = [(6 / 4) ** 0.5, (2 / 4) ** 0.5]
    expected = np.array([[1, 1], [1, factor], rule, [1, 1]]).T
    np.testing.assert_allclose(lanes.factor, expected, rtol=1e-6)
    np.testing.assert_array_equal(lanes.sign, [[1] * 4, [-1] * 4])
    one = student.rule_factors(jnp.array([[True], [False]]))
    np.testing.assert_array_equal(one, [1.0])


def test_a_teacher_is_within_the_students_reach(small):
    tasks, _ = small
    assert tasks.mask.sum(axis=1).tolist() == [[6, 2]] * 2
    np.testing.assert_array_equal(tasks.w != 0, tasks.mask)
    for z, target, mask in zip(tasks.z, tasks.target, tasks.mask, strict=True):
        # The linear part of the teacher is in the inputs that the sparse neuron sees.
        weights = np.abs(np.linalg.lstsq(z, target, rcond=None)[0])
        assert weights[~mask[:, 1]].max() < 0.3 < weights.max()


def test_the_student_is_the_formula(small):
    tasks, lanes = small
    params = student.start(tasks, lanes)
    params = {**params, "beta": params["beta"] + 0.25}
    z, w = np.asarray(tasks.z[1]), np.asarray(tasks.w[1])
    y = z @ w
    x = (y - y.mean(0)) / np.sqrt(y.var(0) + student.EPS)
    f = np.array([1, -1]) * np.maximum(x + 0.25, 0)
    found = student.outputs(params, tasks.z)[1, :, :, 0]
    np.testing.assert_allclose(found, f, atol=1e-5)
    expected = np.mean((f.sum(1) - np.asarray(tasks.target[1])) ** 2) / 2
    losses = student.losses_of(params, tasks.z, tasks.target)
    assert losses[1, 0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(student.balance(params)[1, :, 0], -(0.25**2), rtol=1e-5)


def test_gradients_are_orthogonal_to_what_keeps_the_balance(small):
    # d/dt (a^2 - gamma^2 - beta^2) / 2 under gradient flow, at any point.
    tasks, lanes = small
    params = student.start(tasks, lanes)
    draw = np.random.default_rng(0).normal
    params = {name: p + 0.3 * draw(size=p.shape) for name, p in params.items()}
    grads = jax.grad(lambda p: student.losses_of(p, tasks.z, tasks.target).sum())(
        params
    )
    flow = {name: params[name] * grads[name] for name in ("a", "gamma", "beta")}
    assert np.abs(flow["a"]).max() > 0.1
    rate = flow["a"] - flow["gamma"] - flow["beta"]
    np.testing.assert_allclose(rate, 0, atol=1e-5)


def test_ham_alone_leaves_the_balance(small):
    tasks, lanes = small
    found = student.train(tasks, lanes, eta=0.01, steps=40, points=2)
    assert found.a.shape == (2, 2, 4) and found.losses.shape == (2, 2, 4)
    assert found.heights.shape == (2, 2, 2, 4)
    drift = np.asarray(found.drift)
    assert drift[:, :3].max() < 0.01 < 0.1 < drift[:, 3].min()
    # Lanes with the same start and different rescaling end differently.
    assert (np.diff(np.asarray(found.loss)[:, :3]) != 0).all()


def outcome(**given):
    fields = dict.fromkeys(student.Outcome._fields)
    return student.Outcome(**(fields | {k: np.array(v) for k, v in given.items()}))


def test_runs_are_compared_where_both_arrive():
    one, other = outcome(reached=[9, 19, -1]), outcome(reached=[19, 199, 3])
    assert measures.faster(one, other) == pytest.approx(0.3)
    assert measures.faster(outcome(reached=[-1]), outcome(reached=[1])) is None


def test_flips_and_ends_are_told_apart():
    one = outcome(a=[[0.1], [-0.1], [-1.0]], loss=[0.0, 0.5, 1.0])
    other = outcome(a=[[0.2], [0.1], [-1.0]], loss=[0.005, 0.5, 0.9])
    assert measures.flips(one) == pytest.approx(1 / 3)
    assert measures.alike(one, other) == pytest.approx(1 / 3)
    off = measures.is_off(outcome(share=[[0.001, 1.0], [0.5, 0.5]]))
    assert off.tolist() == [True, False]


@pytest.mark.slow
def test_quick_figures_6_to_9(tmp_path):
    record = quick_record(student_teacher, tmp_path)
    one, sizes, two = (table["rows"] for table in record["tables"])
    assert len(one) == 2 * 2 and len(sizes) == 2 * 4 and len(two) == 2 * 2 * 4
    drifts = {row["alpha"]: row["drift"] for row in one if row["eta"] == 0.01}
    assert drifts[0.0] < 0.01 < drifts[10.0]


# Figures 5 and 10: exploration.


def test_runs_of_one_seed_are_compared():
    rows = [
        explored.row_of(arm, 0.9, [(0.5 + shift, 0.9), (0.7 + shift, 0.9)])
        for arm, shift in zip(explored.ARMS, (0.0, 0.1, -0.2), strict=True)
    ]
    assert rows[0]["explored_mean"] == 60.0 and rows[0]["paper"] == 74.4
    said = []
    report = types.SimpleNamespace(
        published=lambda _, measured, **limit: said.append((measured, limit))
    )
    explored.judge(report, rows)
    assert [measured for measured, _ in said] == pytest.approx([10.0, -20.0])
    assert [limit for _, limit in said] == [{"at_least": 0.0}, {"at_most": -1.0}]


def test_growth_sees_the_corrected_gradient_only_where_it_shall():
    of = explored.config(0.9, quick=True)
    arms = explored.ARMS.values()
    seen = [explored.topology(of, corrected_growth=c).grow for _, c in arms]
    gradient, corrected = so.scores.gradient, so.scores.corrected_gradient
    assert seen == [gradient, gradient, corrected]


@pytest.mark.slow
def test_quick_figures_5_and_10(tmp_path):
    record = quick_record(explored, tmp_path)
    [table] = record["tables"]
    assert [row["arm"] for row in table["rows"]] == list(explored.ARMS)
    assert all(10 < row["explored_mean"] < 100 for row in table["rows"])


# Figures 3, 4, 11, 12 and 15 to 22: accuracy over epochs.


def test_gains_are_averaged_over_conditions_seed_by_seed():
    def record(*curves):
        arms = [{"arm": arm} for arm in ("none", "fan_in")]
        return {"arms": arms, "accuracies": curves}

    # Two seeds, three epochs.
    first = record(
        [[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]], [[0.1, 0.1, 0.5], [0.2, 0.3, 0.4]]
    )
    second = record([[0, 0, 0.1], [0, 0, 0.1]], [[0.2, 0, 0.1], [0, 0, 0.3]])
    ends = accuracy.gains([first, second], "fan_in")
    np.testing.assert_allclose(ends, [10, 10])
    starts = accuracy.gains([first, second], "fan_in", share=1 / 3)
    np.testing.assert_allclose(starts, [10, 0], atol=1e-12)


def test_learning_rates_are_the_tuned_ones():
    def record(name, *rates):
        arms = zip(accuracy.ARMS, rates, strict=True)
        rows = [{"arm": arm, "rate": rate} for arm, rate in arms]
        return {"condition": {"name": name}, "arms": rows}

    tuned = [record("RigL, 90 %", 0.8, 0.4, 0.2), record("SET, 90 %", 0.1, 0.2, 0.4)]
    rates = accuracy.chosen_rates(tuned)
    wanted = {
        condition.name: rates[condition.like]
        for condition in accuracy.conditions()
        if condition.like in rates
    }
    apart = dict(zip(accuracy.ARMS, (0.8, 0.4, 0.2), strict=True))
    assert all(wanted[f"RigL, 90 %, {n} x"] == apart for n in (1, 2, 3, 5))
    # Steps have the same size with and without a correction.
    assert wanted["RigL, 90 %, norms kept"] == dict.fromkeys(accuracy.ARMS, 0.8)
    assert wanted["SET, 90 %, norms kept"] == dict.fromkeys(accuracy.ARMS, 0.1)
    assert len(wanted) == 10


def test_its_seeds_are_new():
    seen = {*range(compare.SEEDS), *compare.TUNING_SEEDS}
    assert len(accuracy.SEEDS) >= 5
    assert not seen & {*accuracy.SEEDS}


@pytest.mark.slow
def test_quick_accuracies(tmp_path):
    record = quick_record(accuracy, tmp_path)
    names = [entry["condition"]["name"] for entry in record["conditions"]]
    assert names == [
        *("RigL, 97 %, 1 x", "RigL, 97 %, 5 x"),
        *("RigL, 95 %, HAM, 1 x", "RigL, 95 %, HAM, 5 x"),
        "RigL, 97 %, norms kept",
    ]
    lengths = [np.shape(entry["accuracies"])[-1] for entry in record["conditions"]]
    assert lengths == [2, 10, 2, 10, 2]
    published = [c["what"] for c in record["claims"] if c.get("published")]
    assert published == [
        "RigL, points gained, fan_in, lower end",
        "RigL, 97 %, points gained early, fan_in, lower end",
        "RigL, points gained more than in 5 x, fan_in, lower end",
        "RigL, norms kept, points gained, fan_in, lower end",
        "RigL with HAM, points gained, fan_in, lower end",
    ]

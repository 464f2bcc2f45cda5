import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import mask_changes, method_arms, method_changes, method_models, methods
from reporting import harness, stored
from reporting.pages import methods as page
from reporting.training import IMAGE
from sparseopt_jax.topologies.catalogue import METHODS

WHEN = method_arms.When(every=100, stop=1000)


@pytest.mark.slow
def test_a_quick_run_has_its_rows_and_tables(tmp_path, monkeypatch):
    output = tmp_path / "methods.json"
    methods.main(harness.Options(quick=True, rounds=1, output=output, allow_dirty=True))
    record = json.loads(output.read_text())
    found = {table["key"]["kind"]: table["rows"] for table in record["tables"]}
    trained = found["training"]
    labels = [
        ", ".join(filter(None, (row["method"], row["structure"]))) for row in trained
    ]
    assert labels == [*method_arms.QUICK]
    assert all(0 <= row["accuracy_mean"] <= 1 for row in trained)
    rows = {label: row for label, row in zip(labels, trained, strict=True)}
    assert rows["dense"]["density"] == 1 and rows["dense"]["state_bytes"] == 0
    assert rows["static, 2:4"]["density"] == rows["STE, 2:4"]["density"] == 0.5
    assert rows["RigL, unstructured"]["density"] == pytest.approx(0.1, abs=0.02)
    assert 0 < rows["STR"]["density"] < 1

    moving = [label for label in labels if method_arms.ARMS[label].moves]
    assert [row["name"] for row in found["step"]] == labels
    assert [row["name"] for row in found["change"]] == moving
    limits = {claim["what"]: claim.get("at_most") for claim in record["claims"]}
    assert limits["ResNet: STE, 2:4 / dense"] == 1.2

    monkeypatch.setattr(stored, "path_of", lambda program: output)
    assert "| STE | 2:4 | 0.5 | " in page.method_results()
    assert "| STE, 2:4 | " in page.straight_through_steps()


@pytest.mark.slow
def test_a_quick_run_of_changes_has_its_rows_and_table(tmp_path, monkeypatch):
    output = tmp_path / "mask_changes.json"
    mask_changes.main(
        harness.Options(quick=True, rounds=1, output=output, allow_dirty=True)
    )
    record = json.loads(output.read_text())
    found = {table["key"]["method"]: table for table in record["tables"]}
    for label in method_arms.QUICK:
        if method_arms.ARMS[label].moves:
            names = [row["name"] for row in found[label]["rows"]]
            assert found[label]["key"]["weights"] == 512
            assert names == ["topology.update", "argsort"]
    limits = {claim["what"]: claim.get("at_least") for claim in record["claims"]}
    assert limits["RigL, unstructured: argsort / topology.update"] == 10

    monkeypatch.setattr(stored, "path_of", lambda program: output)
    assert "| RigL, unstructured | " in page.method_changes()


@pytest.mark.parametrize(
    "label",
    [
        "SET, 2:4",
        pytest.param("RigL, blocks of 1x4", marks=pytest.mark.slow),
        "SRigL, constant fan-in",
        pytest.param("SNFS, unstructured", marks=pytest.mark.slow),
        pytest.param("GraNet, unstructured", marks=pytest.mark.slow),
        pytest.param("Top-KAST, unstructured", marks=pytest.mark.slow),
        pytest.param("STE, 2:4", marks=pytest.mark.slow),
    ],
)
def test_sorting_gives_the_masks_of_the_library(label):
    arm = method_arms.ARMS[label]
    method, count = arm.build(WHEN, misfits=False), arm.change_at(WHEN)
    parts = 2 if label in ("SNFS, unstructured", "GraNet, unstructured") else 1
    params, grads = (mask_changes.kernels((32, 16), parts, seed) for seed in (0, 1))
    # Different layers, different gradients, so that nothing is distributed evenly.
    grads = {path: grad * (1 + i) for i, (path, grad) in enumerate(grads.items())}
    state, params = method_changes.begin(method, params, grads, count)
    # Straight-through estimators start with their own choice.
    params = jax.tree.map(lambda p, g: p + 0.1 * jnp.where(p, g, 0), params, grads)
    ours = jax.jit(functools.partial(method_changes.change, method))
    theirs = jax.jit(functools.partial(method_changes.change_by_sorting, method, count))
    found = method_changes.masks_of(ours(state, params, grads))
    expected = theirs(state, params, grads)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.leaves(found)
    assert any(
        (new != old).any()
        for new, old in zip(
            jax.tree.leaves(found),
            jax.tree.leaves(method_changes.masks_of(state)),
            strict=True,
        )
    )


def test_largest_cuts_ties_by_the_index():
    scores = jnp.array([[1.0, 3.0], [2.0, 3.0], [2.0, 0.0]])
    np.testing.assert_array_equal(
        method_changes.largest(scores, 3), [[0, 1], [1, 1], [0, 0]]
    )
    np.testing.assert_array_equal(
        method_changes.largest(scores, jnp.array([[2, 1]]), axis=0),
        [[0, 1], [1, 0], [1, 0]],
    )
    assert not method_changes.largest(scores, jnp.int32(0)).any()


def test_other_masks_are_found():
    arm = method_arms.ARMS["RigL, unstructured"]
    mask = jnp.arange(8).reshape(2, 4) < 3
    mask_changes.check_same(arm, [mask], [mask])
    with pytest.raises(AssertionError, match="differ in 2 weights"):
        mask_changes.check_same(arm, [mask], [jnp.roll(mask, 1)])


def test_rounding_may_exchange_a_few_weights_between_layers():
    arm = method_arms.ARMS["SNFS, unstructured"]
    mask = jnp.arange(200_000) % 2 == 0
    mask_changes.check_same(arm, [mask], [mask.at[:2].set(~mask[:2])])
    with pytest.raises(AssertionError, match="differ in 4 weights"):
        mask_changes.check_same(arm, [mask], [mask.at[:4].set(~mask[:4])])


def test_every_method_fits_both_networks():
    for task in method_models.tasks(quick=False):
        init = functools.partial(task.model.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), IMAGE)
        params = shapes["params"]
        for arm in method_arms.ARMS.values():
            method = arm.build(WHEN, misfits=True)
            if isinstance(method, method_models.SoftThreshold):
                assert jax.tree.leaves(method.init(params))
            elif method is not None:
                sparse = {plan.path for plan in method.leaves(params) if plan.layer}
                assert {"stem/kernel", "head/kernel"} < sparse, arm.label
                assert "position_embedding" not in sparse


def test_all_changes_come_within_a_run_of_digits():
    when = method_arms.When.of(methods.EPOCHS * 18)
    for arm in method_arms.ARMS.values():
        if arm.moves:
            method = arm.build(when, misfits=True)
            due = [step for step in range(methods.EPOCHS * 18) if method.due(step)]
            assert due, arm.label
            if arm.method not in ("STE", "SR-STE"):
                assert due[-1] <= when.stop, arm.label


def test_every_method_of_the_catalogue_has_an_arm():
    # ITOP is a schedule of SET and RigL; SMET is measured with its optimizer.
    titles = {method.title for method in METHODS.values()} - {"ITOP", "SMET"}
    assert titles <= {arm.method for arm in method_arms.ARMS.values()}

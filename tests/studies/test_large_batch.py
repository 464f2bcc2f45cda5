import functools
import io
import itertools
import json
import math
import types

import jax
import numpy as np
import pytest

from reporting import harness, stored
from reporting.pages import large_batches
from studies import pictures
from studies.large_batch import __main__ as program
from studies.large_batch import compare, picture, text
from tests.helpers.pages import ROOT


def plan(batch, images=1197, epochs=40):
    share = compare.LARGEST_WARM_UP * batch / program.BATCHES[-1]
    return compare.Plan(images, batch, epochs, share)


def outcome(steps, loss=0.01):
    return compare.Outcome(steps, loss)


def row(batch, epochs):
    return {"batch": batch, "epochs": epochs}


@pytest.mark.slow
def test_a_quick_run_has_its_rows_and_claims(tmp_path, monkeypatch):
    output = tmp_path / "large_batch.json"
    options = harness.Options(quick=True, output=output, allow_dirty=True)
    program.main(options)
    record = json.loads(output.read_text())
    names = list(compare.OPTIMIZERS)
    for density in ("dense", "sparse"):
        tables = stored.select(record["tables"], density=density, target=program.TARGET)
        (rule,) = stored.select(tables, kind="rule", seeds=1)
        rows = rule["rows"]
        assert [(row["optimizer"], row["batch"]) for row in rows] == [
            (name, batch) for name in names for batch in (32, 64)
        ]
        assert [row["of_steps"] for row in rows] == [8, 4] * len(names)
        for small, large in zip(rows[::2], rows[1::2], strict=True):
            assert large["rate"] == pytest.approx(2**0.5 * small["rate"], rel=1e-2)
        for batch in (32, 64):
            (rates,) = stored.select(tables, kind="rates", batch=batch)
            tried = rates["rows"]
            best = [row["optimizer"] for row in tried if row["best"]]
            assert best == names and len(tried) == 2 * len(names)
            assert all(math.isfinite(row["last_loss"]) for row in tried)
    limits = {claim["what"]: claim.get("at_least") for claim in record["claims"]}
    assert limits["sparse: the largest batch of LAMB / of Adam"] == compare.FURTHER
    assert limits["dense: the largest batch that SGD reaches"] is None

    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(stored, "path_of", lambda program: output)
    # Noise is not learned in two epochs.
    assert "| sparse | 64 | > 2 | > 2 | > 2 | > 2 |" in large_batches.reached(
        "studies.large_batch"
    )


def test_the_same_number_of_images_and_of_warm_up_steps_at_every_batch():
    plans = [plan(batch) for batch in program.BATCHES]
    assert [planned.steps for planned in plans] == [1496, 748, 374, 187, 93, 46]
    assert {planned.warm_up for planned in plans} == {9}
    assert plans[0].epochs_of(1197) == 32


def test_rates_rise_to_the_peak_and_fall_to_nothing():
    rates = plan(512).rates(0.5)
    assert rates.dtype == np.float32 and len(rates) == 93
    assert rates.argmax() == 8 and rates[8] == 0.5
    assert (np.diff(rates[:9]) > 0).all() and (np.diff(rates[8:]) < 0).all()
    np.testing.assert_allclose(rates[[0, -1]], [0.5 / 9, 0.5 / 85], rtol=1e-5)


@pytest.mark.parametrize("batch", program.BATCHES)
def test_masks_change_as_often_at_every_batch(batch):
    planned = plan(batch)
    topology = planned.topology("sparse")
    changes = [step for step in range(planned.steps) if topology.due(step)]
    assert 7 <= len(changes) <= 8
    assert planned.epochs_of(changes[0]) == pytest.approx(4, abs=1)


def test_the_rule_is_the_square_root():
    assert compare.scaled(0.1, 128, 32) == pytest.approx(0.2)


def test_every_image_is_seen_as_often():
    images = np.arange(7)
    network = program.Network.__new__(program.Network)
    network.images = network.labels = images
    batches = [
        chosen for chosen, _ in network.batches(plan(3, images=7, epochs=3), seed=0)
    ]
    assert [len(chosen) for chosen in batches] == [3] * 7
    assert (np.bincount(np.concatenate(batches)) == 3).all()


def test_where_a_loss_is_crossed():
    assert compare.crossing((10, 1.0), (20, 0.01), 0.1) == pytest.approx(15)
    assert compare.crossing((0, 2.0), (4, 0.5), 0.5) == 4


def test_the_best_rate_takes_the_fewest_steps_then_has_the_least_loss():
    outcomes = [
        outcome(None, math.nan),
        outcome(None, 2.0),
        outcome(None, 1.0),
        outcome(20.0),
        outcome(10.5),
    ]
    for worse, better in itertools.pairwise(outcomes):
        assert better.order() < worse.order()


def test_how_far_a_rule_reaches():
    reached = compare.reached
    assert reached([row(32, 4.0), row(64, 8.0), row(128, 8.1)]) == 64
    assert reached([row(32, 4.0), row(64, None), row(128, 4.0)]) == 32
    assert reached([row(32, 4.0), row(64, 3.0), row(128, 5.0)]) == 128
    assert reached([row(32, None), row(64, 3.0)]) == 0


def test_runs_that_do_not_reach_the_loss_are_counted():
    trainer = types.SimpleNamespace(name="SGD", plan=plan(32))
    row_of = functools.partial(compare.row_of, trainer, 0.1)
    some = row_of([outcome(598.5), outcome(None, 0.2)])
    assert some["reached"] == "1 of 2" and some["epochs"] is None
    every = row_of([outcome(598.5), outcome(598.5)])
    assert (every["epochs"], every["steps"]) == (16.0, 598.5)
    assert row_of([outcome(None, math.nan)])["last_loss"] is None


def test_both_densities_differ_by_the_masks_alone():
    for optimizer in compare.OPTIMIZERS.values():
        params = {"kernel": jax.numpy.ones((40, 30)), "bias": jax.numpy.ones(30)}
        small = {"kernel": jax.numpy.ones((40, 40)), "head": params}
        dense, sparse = (
            optimizer.make(0.1, plan(32).topology(density)).init(small)
            for density in ("dense", "sparse")
        )
        shapes = [
            jax.tree.map(lambda x: x.shape, s.inner_state) for s in (dense, sparse)
        ]
        assert shapes[0] == shapes[1]
        assert sum(m.sum() for m in jax.tree.leaves(sparse.masks)) == 280


def drawn(axes):
    """Return each optimizer's batches with their epochs, and the batches it missed."""
    lines = {line.get_label(): line for line in axes.get_lines()}
    reached = {
        name: {
            int(x): float(y)
            for x, y in zip(*lines[name].get_data(), strict=True)
            if math.isfinite(y)
        }
        for name in compare.OPTIMIZERS
    }
    missed = {
        tuple(label.removeprefix("_").split(" at "))
        for label, line in lines.items()
        if line.get_markerfacecolor() == "none"
    }
    return reached, {(name, int(batch)) for name, batch in missed}


@pytest.mark.parametrize("name", picture.TRAINED)
def test_the_picture_has_all_that_the_record_has(name):
    record = stored.load(name)
    figure = picture.draw(record)
    tables = stored.select(record["tables"], kind="rule")
    assert [axes.get_title() for axes in figure.axes] == ["dense", "sparse"]
    for axes, table in zip(figure.axes, tables, strict=True):
        assert table["key"]["density"] == axes.get_title()
        reached, missed = drawn(axes)
        rows = table["rows"]
        assert {
            (optimizer, batch, epochs)
            for optimizer, epochs_at in reached.items()
            for batch, epochs in epochs_at.items()
        } == {
            (row["optimizer"], row["batch"], row["epochs"])
            for row in rows
            if row["epochs"] is not None
        }
        assert missed == {
            (row["optimizer"], row["batch"]) for row in rows if row["epochs"] is None
        }
        assert axes.get_xscale() == axes.get_yscale() == "log"
        for line in axes.get_lines():
            if line.get_markerfacecolor() == "none":
                (height,) = line.get_ydata()
                assert rows[0]["of_epochs"] < height < axes.get_ylim()[1]
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[:-1] == [*compare.OPTIMIZERS]
    assert words[-1] == f"not all seeds within {rows[0]['of_epochs']} epochs"
    what = "Text" if name.endswith("text") else "Digits"
    assert figure.get_suptitle().startswith(f"{what}, ")


def test_a_picture_of_runs_that_all_missed():
    record = stored.load("studies.large_batch.text")
    tables = [
        {**table, "rows": [{**row, "epochs": None} for row in table["rows"][:1]]}
        for table in stored.select(record["tables"], kind="rule")
    ]
    figure = picture.draw({**record, "tables": tables})
    figure.savefig(io.BytesIO())
    (missed,) = (
        line
        for line in figure.axes[0].get_lines()
        if line.get_markerfacecolor() == "none"
    )
    assert missed.get_label() == "_SGD at 32" and list(missed.get_xdata()) == [32]


@pytest.mark.parametrize("name", picture.TRAINED)
def test_pictures_are_stored_and_shown(name):
    file = stored.path_of(name).with_suffix(".png")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size < 150_000
    page = (ROOT / "docs" / "large_batches.md").read_text()
    assert f"](../{file.relative_to(ROOT)})" in page


def test_what_is_said_of_the_picture_is_in_the_record():
    page = (ROOT / "docs" / "large_batches.md").read_text()
    assert "LAMB\ndoes not arrive at 1,024 in either panel" in page
    for axes in picture.draw(stored.load("studies.large_batch")).axes:
        reached, missed = drawn(axes)
        assert ("LAMB", 1024) in missed
        for epochs_at in reached.values():
            assert 1024 not in epochs_at or epochs_at[1024] > 2 * epochs_at[32]
    figure = picture.draw(stored.load("studies.large_batch.text"))
    points = [drawn(axes) for axes in figure.axes]
    batches = {
        x for reached, _ in points for epochs_at in reached.values() for x in epochs_at
    }
    assert batches == {32, 128}
    assert sum(len(missed) for _, missed in points) > 16  # most of 32


@pytest.mark.slow
def test_pictures_are_drawn_again_from_what_is_stored(tmp_path, monkeypatch):
    found = {name: stored.load(name) for name in pictures.PROGRAMS}
    monkeypatch.setattr(stored, "load", found.__getitem__)
    monkeypatch.setattr(stored, "path_of", lambda name: tmp_path / f"{name[8:]}.json")
    pictures.main()
    names = {f"studies.{path.stem}" for path in tmp_path.glob("*.png")}
    assert names == {*pictures.PROGRAMS}


@pytest.fixture(scope="module")
def reader():
    size = text.net.Size(width=8, hidden=16, heads=1, layers=1)
    draw = np.random.default_rng(0)
    sixteen = draw.integers(16, size=10_000, dtype=np.uint8)  # of 256 that could be
    source = text.data.Text(sixteen)
    splits = text.data.Splits(source, source, "sixteen bytes")
    return text.Reader(size, splits)


class TestText:
    def test_as_much_text_and_as_many_warm_up_steps_at_every_batch(self):
        task = compare.Task(
            *(None, text.WINDOWS, text.EPOCHS),
            *(text.BATCHES, 1.0, {}, 1),
        )
        plans = task.plans()
        assert [planned.steps for planned in plans] == [1024, 256, 64, 16]
        assert {planned.warm_up for planned in plans} == {3}
        for planned in plans:
            topology = planned.topology("sparse")
            changes = sum(bool(topology.due(step)) for step in range(planned.steps))
            assert 5 <= changes <= 8

    def test_steps_see_other_windows_and_seeds_other_ones(self, reader):
        planned = compare.Plan(6, 3, 2, 0.2)
        first, again, other = (
            np.stack(list(reader.batches(planned, seed))) for seed in (0, 0, 1)
        )
        assert first.shape == (4, 3, text.LENGTH)
        np.testing.assert_array_equal(first, again)
        rows = {tuple(row) for row in np.concatenate([*first, *other])}
        assert len(rows) == 24

    def test_learns(self, reader):
        params = reader.start(0)
        before = reader.loss(params)
        assert before == pytest.approx(math.log(256), rel=0.05)
        (windows,) = reader.batches(compare.Plan(4, 4, 1, 0.2), 0)
        grads = reader.gradient(params, windows)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        assert reader.loss(params) < before

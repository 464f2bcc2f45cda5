"""The language model, its text, its loss jumps, and the comparison at a micro size."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sparseopt_jax as so
from examples.language_model import __main__ as program
from examples.language_model import data as text
from examples.language_model import jumps as jumping
from examples.language_model import net, report
from tests.helpers.programs import FILES, help_of, log

MICRO = net.Size(width=16, hidden=24, heads=2, layers=1)
LABELS = ["dense", "sparse Adam", "SMET"]


def shapes(model):
    tokens = jnp.zeros((1, 8), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def model():
    return net.LanguageModel(MICRO)


@pytest.fixture(scope="module")
def variables(model):
    tokens = jnp.zeros((1, 8), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    # Larger matrices, so that attention is far from uniform.
    return jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, variables)


class TestModel:
    def test_a_later_token_changes_no_earlier_logit(self, model, variables):
        apply = jax.jit(model.apply)
        tokens = np.random.default_rng(0).integers(256, size=(2, 12))
        logits = np.asarray(apply(variables, tokens))
        for place in (0, 5, 11):
            other = tokens.copy()
            other[:, place] = (other[:, place] + 1) % 256
            changed = np.asarray(apply(variables, other))
            np.testing.assert_array_equal(changed[:, :place], logits[:, :place])
            assert (changed[:, place:] != logits[:, place:]).any(axis=(0, 2)).all()

    def test_order_matters(self, model, variables):
        # Attention without positions could not tell these apart.
        tokens = np.array([[1, 2, 3, 4], [2, 1, 3, 4]])
        one, other = np.asarray(jax.jit(model.apply)(variables, tokens))[:, -1]
        assert np.abs(one - other).max() > 1e-3

    def test_rotary_positions_are_relative(self):
        random = np.random.default_rng(0)
        query, key = random.normal(size=(2, 1, 3, 8)).astype(np.float32)

        def product(at_query, at_key):
            turned = (
                net.rotated(jnp.asarray(x), jnp.array([at]))
                for x, at in ((query, at_query), (key, at_key))
            )
            return np.asarray(jnp.einsum("lhf,lhf->h", *turned))

        np.testing.assert_allclose(product(9, 4), product(25, 20), atol=1e-4)
        np.testing.assert_allclose(product(7, 7), (query * key).sum((0, 2)), atol=1e-4)
        assert np.abs(product(9, 4) - product(9, 5)).max() > 0.01

    def test_a_rotation_by_hand(self):
        # Frequencies 1 and 1/100: features 0 and 2 turn by 3, 1 and 3 by 0.03.
        turned = net.rotated(jnp.array([[[1.0, 1.0, 0.0, 0.0]]]), jnp.array([3]))
        expected = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
        np.testing.assert_allclose(turned[0, 0], expected, atol=1e-6)

    @pytest.mark.parametrize(
        ("size", "vocabulary", "layers", "layer", "ends"),
        [
            # Four times width^2, three times width * hidden, two norms; then
            # embedding, head, the last norm.
            ("tiny", 256, 2, 16_384 + 33_792 + 128, 2 * 16_384 + 64),
            ("130m", 32_000, 12, 2_359_296 + 4_718_592 + 1_536, 2 * 24_576_000 + 768),
            ("350m", 32_000, 24, 4_194_304 + 8_404_992 + 2_048, 2 * 32_768_000 + 1_024),
            ("1b", 32_000, 24, 16_777_216 + 33_552_384 + 4_096, 2 * 65_536_000 + 2_048),
        ],
    )
    def test_parameters_of_the_named_sizes(self, size, vocabulary, layers, layer, ends):
        params = shapes(net.LanguageModel(net.SIZES[size], vocabulary))
        assert count(params) == layers * layer + ends
        millions = {"tiny": 0.1334, "130m": 134.1, "350m": 368.0, "1b": 1339.1}
        assert count(params) / 1e6 == pytest.approx(millions[size], rel=1e-3)

    def test_a_tied_head_is_the_embedding(self):
        model = net.LanguageModel(MICRO, tied=True)
        params = shapes(model)
        free = shapes(net.LanguageModel(MICRO))
        assert count(free) - count(params) == 16 * 256
        assert set(free) - set(params) == {"head"}
        variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))
        embedding = variables["params"]["embed"]["embedding"]
        apply = jax.jit(functools.partial(model.apply, capture_intermediates=True))
        logits, seen = apply(variables, jnp.array([[7, 9]]))
        [last] = seen["intermediates"]["norm"]["__call__"]
        np.testing.assert_allclose(logits, last @ embedding.T, rtol=1e-5, atol=1e-6)

    def test_norms_divide_by_the_root_mean_square(self):
        x = jnp.array([[3.0, -4.0, 0.0, 0.0]])
        normed = net.RMSNorm().apply({"params": {"scale": 2 * jnp.ones(4)}}, x)
        np.testing.assert_allclose(normed, 2 * x / 2.5, rtol=1e-6)

    def test_computes_in_bfloat16_on_float32_parameters(self):
        model = net.LanguageModel(MICRO, dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {
            jnp.dtype("float32")
        }
        tokens = jnp.zeros((1, 8), jnp.int32)
        logits, seen = jax.eval_shape(
            lambda params: model.apply(
                {"params": params}, tokens, capture_intermediates=True
            ),
            shapes(model),
        )
        assert logits.dtype == jnp.float32
        inner = seen["intermediates"]["layer_0_mlp"]["__call__"][0]
        assert inner.dtype == jnp.bfloat16

    def test_sparse_are_the_kernels_of_the_layers(self):
        config = program.Config()
        plan = so.plan(
            shapes(program.make_model(config)), program.make_topology(config)
        )
        reasons = {leaf.path: leaf.why_dense for leaf in plan.leaves}
        dense = {path for path, reason in reasons.items() if reason}
        assert reasons["embed/embedding"] == "embedding"
        assert reasons["head/kernel"] == "excluded by where"
        others = {path for path in reasons if path.endswith("/scale")}
        assert dense == {"embed/embedding", "head/kernel", *others}
        assert len(others) == 5 and len(reasons) - len(dense) == 2 * 7


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Return a library of 60 modules, 20 of them in packages, and of other files."""
    folder = tmp_path_factory.mktemp("lib")
    for package in ("", "pack", "pack/sub"):
        (folder / package).mkdir(exist_ok=True)
        for number in range(20):
            name = "__init__" if package and not number else f"module_{number}"
            content = f'"""Of {package or "top"}."""\n' + f"x = {number}\n" * 20
            (folder / package / f"{name}.py").write_text(content)
    for outside in ("test", "site-packages", "pack/tests", "no_package"):
        (folder / outside).mkdir()
        for name in ("__init__", "hidden"):
            if (outside, name) != ("no_package", "__init__"):
                (folder / outside / f"{name}.py").write_text("secret = 1\n" * 50)
    (folder / "data.txt").write_text("secret\n")
    (folder / "twin.py").write_text((folder / "module_3.py").read_text())
    return folder


def documents(source):
    return source.content.tobytes().split(b"\0")[:-1]


class TestStandardLibrary:
    def test_every_module_is_in_one_split(self, library):
        splits = text.standard_library(library)
        train, validation = map(documents, splits[:2])
        every = [
            path.read_bytes()
            for path in library.rglob("*.py")
            if re.match(r"(module_\d+|__init__)$", path.stem)
            and path.parent.name in (library.name, "pack", "sub")
        ]
        assert len(set(every)) == 60
        assert sorted(train + validation) == sorted(every)
        assert not set(train) & set(validation)
        assert 1 <= len(validation) <= 15
        assert not any(b"secret" in file for file in train + validation)

    def test_is_the_same_every_time(self, library):
        one, other = (text.standard_library(library) for _ in range(2))
        assert one.name == other.name
        for a, b in zip(one[:2], other[:2], strict=True):
            np.testing.assert_array_equal(a.content, b.content)

    def test_the_side_of_a_file_does_not_depend_on_the_others(self, library, tmp_path):
        splits = text.standard_library(library)
        for path in sorted(library.glob("*.py"))[::2]:
            (tmp_path / path.name).write_bytes(path.read_bytes())
        fewer = text.standard_library(tmp_path, length=0)
        assert fewer.name != splits.name
        for some, all_ in zip(fewer[:2], splits[:2], strict=True):
            assert set(documents(some)) <= set(documents(all_))

    def test_a_cap_takes_whole_files(self, library):
        splits = text.standard_library(library, most=5_000)
        total = sum(len(split.content) for split in splits[:2])
        assert 4_500 < total <= 5_000
        every = documents(text.standard_library(library).train)
        assert set(documents(splits.train)) < set(every)

    def test_too_short_a_text_is_an_error(self, tmp_path):
        (tmp_path / "a.py").write_text("x = 1\n")
        with pytest.raises(
            ValueError, match="fewer than a window of 100: use a Python"
        ):
            text.standard_library(tmp_path, length=100)

    def test_this_python_has_one(self):
        splits = text.standard_library(length=129)
        assert len(splits.train.content) > 1_000_000
        assert len(splits.validation.content) > 100_000
        assert len(splits.train.content) + len(splits.validation.content) <= 16_000_000


class TestBatches:
    @pytest.fixture(params=["text", "documents"])
    def source(self, request):
        random = np.random.default_rng(0)
        if request.param == "text":
            return text.Text(random.integers(1, 256, size=500, dtype=np.uint8))
        words = [bytes([97 + i]) * (i % 9) for i in range(26)]
        return text.Documents([{"text": word} for word in words])

    def test_a_number_decides_a_batch(self, source):
        batches = [
            text.batch(source, seed=1, number=number, rows=3, length=20)
            for number in (0, 1, 0)
        ]
        assert batches[0].shape == (3, 20)
        assert batches[0].dtype == np.int32
        np.testing.assert_array_equal(batches[0], batches[2])
        assert (batches[0] != batches[1]).any()
        other = text.batch(source, seed=2, number=0, rows=3, length=20)
        assert (batches[0] != other).any()

    def test_windows_are_pieces_of_the_text(self):
        content = np.arange(30, dtype=np.uint8)
        random = np.random.default_rng(0)
        windows = [text.Text(content).window(random, 5) for _ in range(300)]
        assert {int(window[0]) for window in windows} == set(range(26))
        for window in windows:
            np.testing.assert_array_equal(np.diff(window), 1)

    def test_documents_are_joined_until_a_window_is_full(self):
        source = text.Documents([{"text": b"abc"}, {"text": b""}])
        random = np.random.default_rng(0)
        seen = {
            bytes(text.Documents.window(source, random, 6)).decode() for _ in range(200)
        }
        assert all(
            re.fullmatch("(c|bc|abc)?(\0|\0abc)*\0?a?b?c?", window) for window in seen
        )
        assert {window[0] for window in seen} == {"a", "b", "c", "\0"}
        assert all(len(window) == 6 for window in seen)


class TestJumps:
    def test_by_hand(self):
        losses = np.concatenate([np.full(20, 2.0), np.full(9, 2.5), [3.5], np.ones(9)])
        # After step 19: (9 * 2.5 + 3.5) / 10; after 28: (3.5 + 9) / 10, from 2.45.
        np.testing.assert_allclose(jumping.jumps(losses, [19, 28]), [0.6, -1.2])

    def test_differences_to_the_twins(self):
        losses, twins = np.arange(50.0), np.ones((2, 10)) * [[1.0], [2.0]]
        np.testing.assert_array_equal(
            jumping.differences(losses, [9, 30], twins),
            [np.arange(9.0, 19.0), np.arange(29.0, 39.0)],
        )

    def test_steps_on_either_side(self):
        assert jumping.judged([0, 8, 9, 20, 40, 41], 51) == [9, 20, 40]

    def test_a_change_takes_place_after_its_steps_loss(self):
        # The loss of a step is measured at the weights that it starts from.
        topology = so.set_(0.5, every=3, stop=9, start=3)
        tx = so.sparsify(program.optax.sgd(0.0), topology)
        params = {"kernel": jnp.arange(1.0, 65.0).reshape(8, 8)}
        state = tx.init(params)
        params, seen = so.apply_masks(params, state), []
        update = jax.jit(tx.update)
        for _ in range(5):
            seen.append(float(params["kernel"].sum()))
            updates, state = update(params, state, params)
            params = program.optax.apply_updates(params, updates)
        assert seen[0] == seen[3] != seen[4]

    @pytest.mark.parametrize("method", ["sparse_adam", "smet"])
    def test_a_twin_is_the_same_but_for_the_change(self, method):
        config = program.Config(every=20, steps=60, learning_rate=0.1)
        params = {"kernel": jax.random.normal(jax.random.key(0), (16, 16))}
        state = so.linen.TrainState.create(
            apply_fn=None,
            params=params,
            tx=program.make_optimizer(config, method, key=0),
        )
        step = jax.jit(lambda state: state.apply_gradients(grads=params))
        for _ in range(20):
            state = step(state)
        masks = [
            np.asarray(so.get_masks(after.opt_state)["kernel"])
            for after in (state, step(program.without_change(state)), step(state))
        ]
        np.testing.assert_array_equal(masks[0], masks[1])
        assert (masks[0] != masks[2]).any()
        kernels = [
            np.asarray(after.params["kernel"])
            for after in (step(program.without_change(state)), step(state))
        ]
        both = masks[1] & masks[2]
        np.testing.assert_array_equal(kernels[0][both], kernels[1][both])

    def test_judged_are_those_of_the_topology(self):
        all_ = list(range(100, 1500, 100))
        assert program.changes(program.Config()) == all_
        assert program.changes(program.Config(steps=1510)) == all_
        assert program.changes(program.Config(steps=1511)) == [*all_, 1500]


@pytest.fixture(scope="module", autouse=True)
def micro():
    """Register the micro size under a name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(net.SIZES, "micro", MICRO)
        patch.setitem(program.LEARNING_RATE, "micro", 1e-2)
        patch.setattr(program, "VALIDATION_BATCHES", 2)
        yield


ARGS = [
    *("--size", "micro", "--steps", "51", "--every", "20"),
    *("--batch-size", "4", "--length", "24", "--density", "0.5"),
]


def start(output, *args):
    program.main([*ARGS, "--output", str(output), *args])


def runs_in(output):
    return [row for row in log(output) if row["event"] == "run"]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Return the folder of a finished comparison."""
    output = tmp_path_factory.mktemp("comparison")
    start(output, "--seeds", "2")
    return output


@pytest.mark.slow
class TestComparison:
    def test_writes_its_files(self, output):
        assert {path.name for path in output.iterdir()} == FILES
        config = json.loads((output / "config.json").read_text())
        rates = {"dense": 1e-2, "sparse_adam": 1e-2, "smet": 5e-3}
        assert config["learning_rate"] == rates
        assert config["text"].startswith("stdlib ")
        with Image.open(output / "figure.png") as picture:
            assert picture.size == (1760, 1280)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100

    def test_a_row_for_every_run(self, output):
        first, *rows = log(output)
        assert first["event"] == "start"
        assert [(row["label"], row["seed"]) for row in rows] == [
            (label, seed) for seed in range(2) for label in LABELS
        ]
        for row in rows:
            assert row["changes"] == [20, 40]
            assert len(row["train"]) == len(row["probe"]) == 51
            # Random bytes would take 8 bits.
            assert row["train"][0] == pytest.approx(8.0, abs=0.3)
            assert row["validation"]["step"][-1] == 51
            assert 3 < row["validation"]["bits_per_byte"][-1] < 7.5

    def test_same_batches_weights_and_masks(self, output):
        dense, adam, smet = runs_in(output)[:3]
        # The first learning rate is 0: two losses are of the initial weights.
        assert adam["train"][:2] == pytest.approx(smet["train"][:2], rel=1e-6)
        assert dense["train"][0] != adam["train"][0]
        assert adam["train"][-1] != smet["train"][-1]

    def test_twins_differ_by_the_change_alone(self, output):
        _, adam, smet = runs_in(output)[:3]
        for row in (adam, smet):
            assert np.shape(row["twins"]["probe"]) == (2, 10)
            after = np.stack([row["train"][21:31], row["train"][41:51]])
            lost = np.abs(after - row["twins"]["train"])
            assert (lost > 0).all()
            # Other batches would differ by far more.
            assert lost.max() < 0.1

    def test_results_are_what_the_runs_give(self, output):
        results = json.loads((output / "results.json").read_text())
        runs = runs_in(output)
        assert results["parameters"] == count(shapes(net.LanguageModel(MICRO)))
        assert results["active_weights"] == results["sparse_weights"] / 2
        for index, entry in enumerate(results["results"]):
            same_label = runs[index::3]
            assert [run["label"] for run in same_label] == [entry["label"]] * 2
            bits = [run["validation"]["bits_per_byte"][-1] for run in same_label]
            assert entry["bits_per_byte"]["values"] == bits
            for where in ("probe", "train"):
                losses = np.array([run[where] for run in same_label])
                after = np.stack([losses[:, 21:31], losses[:, 41:51]], axis=1)
                before = np.stack([losses[:, 11:21], losses[:, 31:41]], axis=1)
                jump = after.mean() - before.mean()
                assert entry["jump"][where]["mean"] == pytest.approx(jump)
                if entry["method"] == "dense":
                    assert entry["setback"] is None
                    continue
                twins = [run["twins"][where] for run in same_label]
                setback = after.mean() - np.mean(twins)
                assert entry["setback"][where]["mean"] == pytest.approx(setback)
        dense, adam, smet = results["results"]
        assert dense["gap_to_dense"] == 0
        assert smet["gap_to_dense"] == pytest.approx(
            smet["bits_per_byte"]["mean"] - dense["bits_per_byte"]["mean"]
        )
        for measure, ratios in results["smet_of_sparse_adam"].items():
            for where, ratio in ratios.items():
                means = [entry[measure][where]["mean"] for entry in (smet, adam)]
                assert ratio == pytest.approx(means[0] / means[1])

    def test_bytes_of_the_optimizers(self, output):
        results = json.loads((output / "results.json").read_text())
        dense, adam, smet = (entry["optimizer_bytes"] for entry in results["results"])
        parameters, sparse = results["parameters"], results["sparse_weights"]
        assert 8 * parameters <= dense < 8 * parameters + 100
        assert dense + sparse <= adam
        assert smet != adam

    def test_table(self, output):
        lines = (output / "results.md").read_text().splitlines()
        assert [line.split("|")[1].strip() for line in lines[2:5]] == LABELS
        assert "over seeds (here 2)" in lines[-1]

    def test_finished_comparison_trains_nothing_again(
        self, output, capsys, monkeypatch
    ):
        monkeypatch.setattr(program, "Trainer", None)
        before = (output / "log.jsonl").read_text()
        start(output, "--seeds", "2")
        assert "6 runs are already finished, 0 remain" in capsys.readouterr().out
        assert (output / "log.jsonl").read_text() == before

    def test_another_configuration_is_refused(self, output):
        before = (output / "log.jsonl").read_text()
        with pytest.raises(SystemExit) as error:
            start(output, "--seeds", "2", "--block", "2")
        message = str(error.value)
        assert "block was 1, is 2" in message
        assert "--overwrite" in message
        assert (output / "log.jsonl").read_text() == before

    def test_overwrite_replaces_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(program, "compare", lambda *args: None)
        start(tmp_path)
        start(tmp_path, "--block", "2", "--overwrite")
        assert json.loads((tmp_path / "config.json").read_text())["block"] == 2


def test_smet_keeps_less_than_dense():
    config = program.Config()
    params = shapes(program.make_model(config))
    dense, adam, smet = (
        so.optimizer_bytes(
            jax.eval_shape(program.make_optimizer(config, method, key=0).init, params)
        )
        for method in program.METHODS
    )
    assert smet < dense < adam


class TestReport:
    def test_no_ratio_of_jumps_that_are_none(self):
        def entry(method, *means):
            probe, train = ({"mean": mean} for mean in means)
            effects = {"probe": probe, "train": train}
            return {"method": method, "jump": effects, "setback": effects}

        adam = entry("sparse_adam", 0.4, -0.1)
        only = {"probe": pytest.approx(0.25)}
        assert report.ratios([adam, entry("smet", 0.1, 0.1)]) == {
            "jump": only,
            "setback": only,
        }
        assert report.ratios([adam]) == {}

    @pytest.mark.slow
    def test_a_run_that_diverged_is_drawn(self, output, tmp_path):
        row = json.loads(json.dumps(runs_in(output)[0]))
        row["train"] = [None] * 51
        row["probe"][30:] = [None] * 21
        report.draw([row], "", tmp_path / "a.png")
        assert (tmp_path / "a.png").exists()
        assert "+nan" in report.cells(report.summarize([row])[0])


def test_learning_rate():
    config = program.Config(learning_rate=0.1)
    rates = np.array([program.learning_rate(config, "dense")(t) for t in range(1501)])
    assert rates.argmax() == 75
    assert rates[[0, 75, 1500]] == pytest.approx([0.0, 0.1, 0.01])


@pytest.mark.slow
def test_starts_as_a_program():
    said = help_of("examples.language_model")
    assert "--density" in said
    assert "(default: 0.25)" in said


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--size", "130M"], "size: '130M' is not one of 130m, "),
            (["--size", "2b"], r"size: '2b' is not one of 1b, .*tiny"),
            (["--methods"], "at least one of dense, sparse_adam, smet"),
            (["--density", "0"], r"density must be in \(0, 1\], got 0.0"),
            (["--every", "19"], "every must be at least 20, got 19"),
            (["--steps", "110"], "steps must be at least 111, got 110"),
            (["--seeds", "0"], "seeds must be at least 1, got 0"),
            (["--lr", "nan"], "learning_rate must be above 0, got nan"),
        ],
    )
    def test_told_on_the_command_line(self, tmp_path, capsys, args, message):
        with pytest.raises(SystemExit) as error:
            program.main(["--output", str(tmp_path / "none"), *args])
        assert error.value.code == 2
        assert re.search(message, re.sub(r"[\s│]+", " ", capsys.readouterr().err))
        assert not (tmp_path / "none").exists()

    def test_no_c4(self, tmp_path):
        with pytest.raises(SystemExit) as error:
            start(tmp_path / "none", "--dataset", "c4", "--data-dir", str(tmp_path))
        message = str(error.value)
        assert f"c4 is not in {tmp_path} as ArrayRecord files" in message
        assert "--dataset stdlib" in message
        assert f"--data_dir={tmp_path}" in message
        assert not (tmp_path / "none").exists()

    def test_a_block_that_fits_no_layer(self, tmp_path):
        with pytest.raises(SystemExit, match=r"error: .*kernel"):
            start(tmp_path / "none", "--block", "7")
        assert not (tmp_path / "none").exists()

"""The site has every page and every public name, and its code runs."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml

import sparseopt_jax as so
from tests.helpers.pages import (
    ROOT,
    anchors,
    block_names,
    find,
    links,
    names,
    read,
    run_block,
)

START, CONCEPTS, QUESTIONS = (
    read(f"docs/{name}.md") for name in ("index", "concepts", "faq")
)

# Modules whose public names are used through the module's name.
MODULES = (
    *("checkpoint", "distributions", "linen", "nnx", "plot", "schedules", "scores"),
    *("structures", "topologies"),
)
# What user-defined methods need, and types of fields: these have no shorter names.
NAMED_IN_FULL = {
    "arrays.selection.top_k_mask",
    "arrays.units.Units",
    "exporting.formats.Metadata",
    "layers.axis_guesses.Guess",
    "layers.neuron_dims.Axes",
    "pruning.input_statistics.Moments",
    "reports.summary.LayerSummary",
    "topologies.memory.GradientMemory",
    "topologies.stages.Stage",
}
# Pages made of files outside of ``docs/``.
MADE = {
    "changelog.md": "CHANGELOG.md",
    "citation.md": "CITATION.cff",
    "contributing.md": "CONTRIBUTING.md",
}


def test_every_page_is_on_the_site():
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    listed = re.findall(r"[:-] ([\w/]+\.md)$", read("mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(pages | MADE.keys())


def menu(entries, section=None):
    """Return the menu's pages with their names, or else their section's name."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry, section
            continue
        ((name, below),) = entry.items()
        if isinstance(below, str):
            yield below, name
        else:
            yield from menu(below, name)


def test_headings_are_the_names_of_the_menu():
    listed = dict(menu(yaml.safe_load(read("mkdocs.yml"))["nav"]))
    assert len(listed) > 30
    for page, name in listed.items():
        source = MADE.get(page, f"docs/{page}")
        # The page made from CITATION.cff is not Markdown.
        if source.endswith(".md"):
            assert read(source).splitlines()[0] == f"# {name}", page


def test_every_public_name_is_on_one_page_of_the_api():
    pytest.importorskip("matplotlib")  # `so.plot` needs it
    pages = [page.read_text(encoding="utf-8") for page in ROOT.glob("docs/api/*.md")]
    listed = re.findall(
        r"^::: sparseopt_jax\.([\w.]+)$", "\n".join(pages), re.MULTILINE
    )
    expected = {name for name in so.__all__ if name[0] != "_"} | set(MODULES)
    for module in MODULES:
        place = getattr(so, module)
        expected |= {
            f"{module}.{name}"
            for name in place.__all__
            if getattr(so, name, None) is not getattr(place, name)
        }
    assert sorted(listed) == sorted(expected | NAMED_IN_FULL)


@pytest.fixture
def network():
    def loss(params, batch):
        return jnp.mean((batch @ params["kernel"] - 1) ** 2)

    params = {"kernel": jnp.ones((16, 8))}
    batches = [jax.random.normal(jax.random.key(i), (4, 16)) for i in range(3)]
    return {"params": params, "loss": loss, "batches": batches}


def test_the_start_runs(network, capsys):
    # The blocks before the last are the README's.
    *_, loop = block_names(START)
    grads = jax.tree.map(jnp.ones_like, network["params"])
    left = run_block(START, "start", **network, grads=grads)
    left = run_block(START, loop, **network | left)
    assert "kernel" in capsys.readouterr().out
    assert int(jnp.sum(left["params"]["kernel"] != 0)) == 13


class Layer(nn.Module):
    """The body of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(8)(x), None


class Stacked(nn.Module):
    """Twelve dense layers."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=12
        )
        return layers(name="layers")(x, None)[0]


def test_the_concepts_run(network, capsys):
    first, axes, by_hand, second = block_names(CONCEPTS)
    tx = so.sparsify(optax.sgd(0.1), so.rigl(0.9, every=10, stop=100))
    opt_state = tx.init(network["params"])
    left = run_block(CONCEPTS, first, **network, opt_state=opt_state)
    assert int(jnp.sum(left["masks"]["kernel"])) == 13
    assert "kernel" in capsys.readouterr().out
    run_block(CONCEPTS, second, **network)
    assert float(capsys.readouterr().out) == pytest.approx(0.1, abs=0.01)
    model, x = Stacked(), jnp.ones((2, 8))
    variables = model.init(jax.random.key(0), x)
    run_block(CONCEPTS, axes, model=model, variables=variables, x=x)
    shown = capsys.readouterr().out
    assert "12 x 8" in shown and "?" not in shown and "warning" not in shown
    left = run_block(CONCEPTS, by_hand)
    plans = left["topology"].leaves(variables["params"])
    assert [plan.axes for plan in plans if plan.layer] == [((0,), (1,), (2,))]


def test_every_question_that_has_code_has_a_test():
    tested = {"formats", "two_of_four", "quantised", "custom"}
    tested |= {"seeds", "late", "language_model"}
    found = block_names(QUESTIONS)
    assert set(found) == tested and len(found) == len(tested)


@pytest.mark.parametrize("name", ["index", "concepts", "tutorials", "faq"])
def test_links_lead_somewhere(name):
    found = links(read(f"docs/{name}.md"))
    assert found
    for target, anchor in found:
        assert (ROOT / "docs" / target).exists(), target
        if anchor:
            assert anchor in anchors(read(f"docs/{target}")), f"{target}#{anchor}"


def trained_sparse(topology, shape=(16, 8), key=0):
    """Return parameters and state after a few steps, as the answers find them."""
    params = {"kernel": jax.random.normal(jax.random.key(0), shape)}
    tx = so.sparsify(optax.adam(0.01), topology, key=key)
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)
    update = jax.jit(tx.update)
    for seed in range(3):
        grads = {"kernel": jax.random.normal(jax.random.key(seed), shape)}
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    return {"tx": tx, "params": params, "opt_state": opt_state}


def test_sparse_formats_multiply_as_the_dense_kernel_does():
    given = trained_sparse(so.rigl(0.9, every=2, stop=10))
    x = jax.random.normal(jax.random.key(1), (5, 16))
    left = run_block(QUESTIONS, "formats", **given, x=x)
    kernel = np.asarray(given["params"]["kernel"])
    active = int((kernel != 0).sum())
    assert left["rows"].nnz == left["bcsr"].nse == left["bcoo"].nse == active <= 13
    for sparse in ("bcsr", "bcoo"):
        np.testing.assert_array_equal(left[sparse].todense(), kernel.T)
    for product in ("in_scipy", "in_jax"):
        np.testing.assert_allclose(left[product], left["dense"], rtol=1e-5, atol=1e-6)


def test_two_of_four_are_packed_with_those_that_are_active_and_zero():
    given = trained_sparse(so.rigl(structure=so.NM(2, 4), every=2, stop=10))
    kernel = np.asarray(given["params"]["kernel"])
    mask = np.asarray(so.get_masks(given["opt_state"])["kernel"])
    assert (kernel != 0).sum() < mask.sum() == 64  # some have just been grown
    left = run_block(QUESTIONS, "two_of_four", **given)
    assert left["values"].shape == left["places"].shape == (4, 2, 8)
    assert (np.diff(left["places"], axis=1) > 0).all()
    for packed, whole in ((left["values"], kernel), (True, mask)):
        again = np.zeros((4, 4, 8), whole.dtype)
        np.put_along_axis(again, left["places"], packed, axis=1)
        np.testing.assert_array_equal(again.reshape(16, 8), whole)


def test_zeros_outlive_quantisation(network):
    given = trained_sparse(so.static(0.9))
    mask = np.asarray(so.get_masks(given["opt_state"])["kernel"])
    before = given["params"]["kernel"]
    batch = network["batches"][0]
    left = run_block(QUESTIONS, "quantised", **given, loss=network["loss"], batch=batch)
    rounded, codes = left["rounded"](left["params"]["kernel"])
    assert codes.dtype == jnp.int8 and len(np.unique(codes)) > 3
    for x in (codes, rounded, left["params"]["kernel"]):
        assert not np.asarray(x)[~mask].any()
    # Gradients are taken at the rounded weights, and the step has been made.
    at_rounded = jax.grad(network["loss"])(
        {"kernel": left["rounded"](before)[0]}, batch
    )
    np.testing.assert_allclose(left["grads"]["kernel"], at_rounded["kernel"], rtol=1e-5)
    assert (np.asarray(left["params"]["kernel"] != before)[mask]).all()


def test_models_of_ones_own_say_what_their_axes_are(capsys):
    params = {
        "blocks": {"query": {"kernel": jnp.ones((3, 16, 32))}},
        "head": {"kernel": jnp.ones((32, 8))},
    }
    topology = run_block(QUESTIONS, "custom", params=params)["topology"]
    assert "excluded by where" in capsys.readouterr().out
    masks = so.get_masks(so.sparsify(optax.sgd(0.1), topology).init(params))
    assert masks["head"]["kernel"] == optax.MaskedNode()
    # Layers of a stack have the same number each, unlike a single layer.
    numbers = masks["blocks"]["query"]["kernel"].sum(axis=(1, 2))
    assert len(set(numbers.tolist())) == 1 and 45 <= int(numbers[0]) <= 55


def test_axes_of_kernels_that_have_their_outputs_first():
    ((dense, conv),) = re.findall(
        r"dense ones have `([^`]+)`,\s+convolutions\s+`([^`]+)`", QUESTIONS
    )
    fan_in = so.ConstantFanIn()
    for dims, shape in ((dense, (8, 20)), (conv, (8, 4, 3, 3))):
        dims = eval(dims, {"so": so})
        params = {"weight": jnp.ones(shape)}
        topology = so.static(0.5, structure=fan_in, dims=dims)
        mask = so.get_masks(so.sparsify(optax.sgd(0.1), topology).init(params))
        fan_ins = mask["weight"].reshape(8, -1).sum(axis=1)
        assert set(fan_ins.tolist()) == {np.prod(shape[1:]) // 2}


def test_a_key_decides_what_is_random(network):
    made = run_block(QUESTIONS, "seeds", **network)

    def masks(key):
        topology = so.set_(0.9, every=2, stop=10)
        found = so.get_masks(trained_sparse(topology, key=key)["opt_state"])
        return np.asarray(found["kernel"])

    state = so.sparsify(optax.sgd(0.1), so.set_(0.9, every=2, stop=10), key=3)
    first, again = made["opt_state"], state.init(network["params"])
    np.testing.assert_array_equal(first.masks["kernel"], again.masks["kernel"])
    assert (masks(3) == masks(3)).all() and (masks(3) != masks(4)).any()


def test_a_late_start_is_dense_then_sparse_then_frozen():
    topology = run_block(QUESTIONS, "late")["topology"]
    dues = [step for step in range(9_000) if topology.due(step)]
    assert dues[0] == 1_000 and 4_000 in dues and dues[-1] < 8_000
    assert {step % 100 for step in dues} <= {0, 1}
    params = {"kernel": jnp.ones((16, 8))}
    state = so.sparsify(optax.sgd(0.1), topology).init(params)
    assert so.get_masks(state)["kernel"].all()
    assert so.plan(params, topology).active == 13


def test_a_language_model_is_pruned_but_for_its_head():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(32, 16, name="embed")(tokens)
            x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x)
            x = x + nn.Dense(16, name="out")(nn.relu(nn.Dense(32, name="mlp")(x)))
            return nn.Dense(32, name="head")(x)

    model, tokens = Model(), jnp.arange(24).reshape(2, 12)
    variables = model.init(jax.random.key(0), tokens)
    left = run_block(
        QUESTIONS, "language_model", model=model, variables=variables, batches=[tokens]
    )
    params, masks = left["pruned"]
    assert masks["head"]["kernel"] == optax.MaskedNode()
    assert masks["embed"]["embedding"] == optax.MaskedNode()
    np.testing.assert_array_equal(
        params["head"]["kernel"], variables["params"]["head"]["kernel"]
    )
    groups = np.asarray(masks["mlp"]["kernel"]).reshape(4, 4, 32)
    assert (groups.sum(axis=1) == 2).all()
    assert (np.asarray(params["mlp"]["kernel"]) != 0).sum() == 16 * 32 // 2


@pytest.mark.parametrize(
    "page", [START, CONCEPTS, QUESTIONS], ids=["start", "concepts", "questions"]
)
def test_names_exist(page):
    for name in names(page):
        find(name)

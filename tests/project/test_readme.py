"""The statements of the README and the docs are true."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import sparseopt_jax as so
from reporting import tables
from tests.helpers.pages import (
    ROOT,
    anchors,
    code,
    find,
    links,
    names,
    read,
    rows,
    run_block,
)

README = read("README.md")
HOW_IT_WORKS = read("docs/how_it_works.md")
SURVIVING = read("docs/surviving.md")

X = jnp.ones((4, 16))


def assert_trained(before, after):
    """Check that nine weights in ten are exactly zero, and the others have moved."""
    before, after = np.asarray(before), np.asarray(after)
    active = after != 0
    assert active.sum() == round(0.1 * after.size)
    assert (before != after)[active].all()


def test_the_first_lines_train_sparse():
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 20))}
    grads = jax.tree.map(jnp.ones_like, params)
    # The first step of RigL updates the masks, the second the weights.
    left = run_block(README, "start", params=params, grads=grads)
    updates, _ = left["tx"].update(grads, left["opt_state"], left["params"])
    new = optax.apply_updates(left["params"], updates)
    assert_trained(params["kernel"], new["kernel"])


def test_the_first_lines_are_six_and_their_imports():
    (lines,) = re.findall(r"```python start\n(.*?)```", README, re.DOTALL)
    lines = [line for line in lines.splitlines() if line]
    assert [line.startswith("import") for line in lines] == [True] * 2 + [False] * 6


@pytest.mark.parametrize("row", rows(README, "which"), ids=lambda row: row[0])
def test_every_choice_of_method_is_a_call(row):
    model, x = nn.Dense(128), jnp.ones((4, 128))
    params = model.init(jax.random.key(0), x)["params"]
    given = {"so": so, "params": params}
    if "calibration" in row[1]:
        given["calibration"] = so.calibrate(model.apply, {"params": params}, [x])
    made = eval(code(row[1]), given)
    if isinstance(made, so.Topology):
        assert so.plan(params, made).size == 128 * 128
    elif isinstance(made, so.Pruned):
        assert (np.asarray(made.params["kernel"]) == 0).mean() == 0.5
    else:
        assert isinstance(made, optax.GradientTransformation)


def test_the_linen_lines_train_sparse():
    model = nn.Dense(20)
    params = model.init(jax.random.key(0), X)["params"]
    grads = jax.tree.map(jnp.ones_like, params)
    # The first step of RigL updates the masks, the second the weights.
    left = run_block(README, "linen", model=model, params=params, grads=grads)
    state = left["state"].apply_gradients(grads=grads)
    assert_trained(params["kernel"], state.params["kernel"])


def test_the_nnx_lines_train_sparse():
    model = nnx.Linear(16, 20, rngs=nnx.Rngs(0))
    before = model.kernel.get_value()
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    left = run_block(README, "nnx", nnx=nnx, model=model, grads=grads)
    left["optimizer"].update(model, grads)
    assert_trained(before, model.kernel.get_value())


def test_the_optax_lines_train_sparse():
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 20))}
    grads = jax.tree.map(jnp.ones_like, params)
    left = run_block(
        README, "optax", params=params, grads=grads, schedule=lambda step: 0.1
    )
    updates, _ = left["tx"].update(grads, left["opt_state"], left["params"])
    new = optax.apply_updates(left["params"], updates)
    assert_trained(params["kernel"], new["kernel"])


def test_the_compact_lines_keep_the_active_blocks():
    model, x = nn.Dense(64), jnp.ones((4, 128))
    params = model.init(jax.random.key(0), x)["params"]
    tx = so.sparsify(optax.sgd(0.1), so.static(0.75, structure=so.Block((32, 32))))
    opt_state = tx.init(params)
    before = model.apply({"params": so.apply_masks(params, opt_state)}, x)
    given = {"model": model, "params": params, "opt_state": opt_state}
    left = run_block(README, "compact", **given)
    assert so.optimizer_bytes(left["params"]["kernel"].active) == 128 * 64
    after = left["apply_fn"]({"params": left["params"]}, x)
    np.testing.assert_allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("method", [so.rigl, so.set_])
def test_the_host_lines_move_the_topology(method):
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 20))}
    topology = method(0.9, every=2, stop=5)
    inner = optax.sgd(0.1, momentum=0.9)

    def gradients(params, step):
        return jax.tree.map(
            lambda p: jax.random.normal(jax.random.key(step), p.shape), params
        )

    left = run_block(
        HOW_IT_WORKS,
        "host",
        params=params,
        topology=topology,
        inner=inner,
        gradients=gradients,
        steps=6,
    )
    first = so.get_masks(left["tx"].init(params))["kernel"]
    last = so.get_masks(left["opt_state"])["kernel"]
    assert (first != last).any()
    assert int(left["opt_state"].topology_state.updated_at) == 4
    assert_trained(params["kernel"], left["params"]["kernel"])


def test_its_tables_are_those_of_the_stored_results():
    assert len(tables.PAGES) > 1
    for page in tables.PAGES:
        assert tables.render(page) == page.read_text()


def test_its_names_exist():
    for name in names(README + HOW_IT_WORKS):
        find(name)


def test_its_links_lead_somewhere():
    for target, anchor in links(README):
        assert (ROOT / target).exists(), target
        if anchor:
            assert anchor in anchors(read(target)), f"{target}#{anchor}"


def test_it_leads_to_every_page():
    pages = {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")}
    linked, found = {"README.md"}, {"README.md"}
    while linked:
        page = linked.pop()
        folder = page.rpartition("/")[0]
        targets = {f"{folder}/{target}".lstrip("/") for target, _ in links(read(page))}
        linked |= targets & pages - found
        found |= targets
    assert pages - found <= {"docs/index.md"}


def test_no_figure_of_the_first_screen_is_without_a_page():
    (facts,) = re.findall(
        r"<!-- begin facts -->\n(.*?)<!-- end facts -->", README, re.DOTALL
    )
    lines = facts.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert re.match(r"- \*\*[^*]*\d[^*]*\*\*", line) and links(line)


def test_as_many_methods_and_structures_as_it_says():
    page = read("docs/methods.md")
    methods, structures = (len(rows(page, name)) for name in ("methods", "structures"))
    assert f"**{methods} methods and {structures} structures**" in README


def test_the_lines_for_checkpoints_resume(tmp_path):
    topology = so.rigl(0.75, every=2, stop=9)

    def start():
        return so.linen.TrainState.create(
            apply_fn=None,
            params={"kernel": jax.random.normal(jax.random.key(0), (8, 8))},
            tx=so.sparse_sgd(0.1, topology),
        )

    def run(steps, directory):
        return run_block(
            SURVIVING,
            "checkpoints",
            directory=directory,
            topology=topology,
            state=start(),
            train_step=so.make_train_step(
                lambda p, x: jnp.mean((x @ p["kernel"]) ** 2)
            ),
            batch=lambda index: jax.random.normal(jax.random.key(index), (4, 8)),
            steps=steps,
        )["state"]

    assert int(run(3, tmp_path / "run").step) == 3
    assert int(run(5, tmp_path / "run").step) == 5
    with so.checkpoint.Checkpoints(tmp_path / "run", topology=topology) as checkpoints:
        checkpoints.save(5, run(5, tmp_path / "run"), {"index": 5})
    read = run_block(
        SURVIVING,
        "reading",
        Checkpoints=so.checkpoint.Checkpoints,
        directory=tmp_path / "run",
        topology=topology,
        state=start(),
    )
    assert int(read["state"].step) == 5 and read["position"] == {"index": 5}

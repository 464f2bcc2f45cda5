"""The statements of ``docs/methods.md`` are true."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from reporting.stored import load, select
from sparseopt_jax.layers.structures import Structure
from sparseopt_jax.topologies.catalogue import METHODS
from sparseopt_jax.topologies.methods.str_ import SoftThreshold
from tests.helpers.compilations import compilations
from tests.helpers.pages import block_names, code, find, names, read, rows, run_block

PAGE = read("docs/methods.md")


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0))
    return {
        "hidden": {
            "kernel": jax.random.normal(keys[0], (16, 32)),
            "bias": jnp.zeros(32),
        },
        "head": {"kernel": jax.random.normal(keys[1], (32, 8))},
    }


def loss(params, batch):
    hidden = jax.nn.relu(batch @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((hidden @ params["head"]["kernel"] - 1) ** 2)


def batches(count=3):
    return [jax.random.normal(jax.random.key(i), (4, 16)) for i in range(count)]


def run(name, params, **given):
    given |= {"params": params, "loss": loss, "batches": batches()}
    return run_block(PAGE, name, **given)


def called(row):
    return code(row[0]).split("(")[0].removeprefix("so.")


def test_every_method_is_in_the_table_once():
    listed = [called(row) for row in rows(PAGE, "methods")]
    assert len(listed) == len(set(listed)) >= 17
    assert set(listed) == {*METHODS, "phases"}


@pytest.mark.parametrize("row", rows(PAGE, "methods"), ids=called)
def test_the_calls_of_the_table_train(row, params):
    method = eval(code(row[0]), {"so": so})
    if isinstance(method, SoftThreshold):
        return
    tx = so.sparsify(optax.sgd(0.1), method)
    state = tx.init(params)
    # Types and shapes only: tests of the methods compile and run them.
    updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    dense = sum(x.size for x in jax.tree.leaves(so.get_masks(state)))
    plan = so.plan(params, method)
    assert plan.size == dense and plan.active < 0.6 * dense


@pytest.mark.parametrize("name", METHODS)
def test_a_paper_of_the_table_is_that_of_the_method(name):
    papers = {called(row): row[1] for row in rows(PAGE, "methods")}
    assert METHODS[name].arxiv in papers[name]


def test_every_structure_is_in_the_table(params):
    listed = [eval(code(row[0]), {"so": so}) for row in rows(PAGE, "structures")]
    public = {
        getattr(so, name)
        for name in so.__all__
        if inspect.isclass(getattr(so, name))
        and issubclass(getattr(so, name), Structure)
    }
    assert {type(structure) for structure in listed} == public
    for structure in listed:
        sparsity = 0.9 if structure.density is None else None
        assert so.plan(params, so.static(sparsity, structure=structure)).active


@pytest.mark.parametrize("structure", [so.NM(2, 4), so.Block((4, 4))])
def test_a_structure_that_fits_no_layer_is_an_error(structure):
    odd = {"kernel": jnp.ones((6, 9))}
    with pytest.raises(ValueError, match="is one of 1"):
        so.plan(odd, so.static(0.5, structure=structure))


@pytest.mark.parametrize("row", rows(PAGE, "decays"), ids=lambda row: code(row[0]))
def test_drop_fractions_are_those_of_the_formulas(row):
    decay = eval(code(row[0]), {"optax": optax})
    schedule = so.rigl(0.9, every=100, stop=1_000, decay=decay).schedule
    t = np.arange(0, 1_000, 100)
    expected = eval(code(row[2]), {"np": np, "x": t / 1_000, "t": t})
    np.testing.assert_allclose([schedule.fraction(s) for s in t], expected, atol=1e-6)


@pytest.mark.parametrize("row", rows(PAGE, "densities"), ids=lambda row: code(row[0]))
def test_densities_are_those_of_the_formulas(row):
    topology = eval(code(row[0]), {"so": so, "optax": optax})
    # Step t of AC/DC and one-shot is the state after it.
    t = np.arange(0, 1_001, 100)
    expected = eval(code(row[2]), {"np": np, "x": t / 1_000, "t": t})
    first, last = topology.density.initial_sparsity, topology.sparsity
    progress = np.array([topology.density.progress(s) for s in t])
    np.testing.assert_allclose(last + progress * (first - last), expected, atol=1e-6)


def test_every_block_has_a_test():
    tested = {
        *("structures", "straight_through", "soft_threshold", "guards"),
        *("sparse_init", "own", "parts", "stage", "after_training", "smaller_layers"),
    }
    assert set(block_names(PAGE)) == tested


def test_the_structures_fit(params):
    plan = so.plan(params, run("structures", params)["topology"])
    active = {leaf.path: leaf.active for leaf in plan.leaves}
    assert active["head/kernel"] == 32 * 8 // 4 and active["hidden/kernel"] % 16 == 0


def test_straight_through_trains_dense_weights(params):
    left = run("straight_through", params)
    kernel = np.asarray(left["params"]["hidden"]["kernel"])
    assert ((kernel.reshape(4, 4, 32) != 0).sum(axis=1) == 2).all()
    dense = so.metrics(params, left["opt_state"])["inactive_nonzero"]
    assert dense == (16 * 32 + 32 * 8) // 2


def test_soft_thresholds_train(params):
    left = run("soft_threshold", params)
    kernel = np.asarray(left["params"]["hidden"]["kernel"])
    mask = np.asarray(left["topology"].masks["hidden"]["kernel"])
    assert ((kernel != 0) == mask).all() and 0 < mask.mean() < 1
    assert so.plan(left["params"], left["topology"]).active


def test_the_guard_holds(params):
    left = run("guards", params)
    tx, state, params = left["tx"], left["opt_state"], left["params"]
    params, update = so.apply_masks(params, state), jax.jit(tx.update)
    for batch in batches():
        updates, state = update(jax.grad(loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        assert so.get_masks(state)["hidden"]["kernel"].any(axis=0).all()


def test_initial_weights_are_masked(params):
    left = run("sparse_init", params)
    numbers = so.metrics(left["params"], left["opt_state"])
    assert numbers["inactive_nonzero"] == 0 and numbers["density"] < 0.11
    (old, new) = (x["hidden"]["kernel"] for x in (params, left["params"]))
    assert not np.isin(np.asarray(new[new != 0]), np.asarray(old)).any()


@pytest.mark.parametrize("name", ["own", "parts", "stage"])
def test_a_method_of_ones_own_moves(name, params):
    topology = run(name, params)["topology"]
    tx = so.sparsify(optax.sgd(0.01), topology)
    state = tx.init(params)
    params, first = so.apply_masks(params, state), so.get_masks(state)
    update = jax.jit(tx.update)
    with compilations() as compiled:
        for batch in batches(5):
            updates, state = update(jax.grad(loss)(params, batch), state, params)
            params = optax.apply_updates(params, updates)
    for path in ("hidden", "head"):
        old, new = first[path]["kernel"], so.get_masks(state)[path]["kernel"]
        assert old.sum() == new.sum() and (old != new).any()
    assert compiled.count("update") == 1
    assert so.metrics(params, state)["inactive_nonzero"] == 0
    if name == "own":
        # 0.1 * 768 weights, as sqrt(512) to sqrt(256).
        active = [leaf.active for leaf in so.plan(params, topology).leaves]
        assert sorted(filter(None, active)) == [32, 45]


class Network(nn.Module):
    hidden: int = 32

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(8, use_bias=False, name="head")(x)


@pytest.fixture(scope="module")
def after_training(params):
    return run("after_training", params, model=Network())


def test_a_network_is_pruned_after_training(after_training):
    left = after_training
    half = {"hidden": 256, "head": 128}
    for layer, active in half.items():
        kernel = left["refined"].params[layer]["kernel"]
        mask = left["topology"].masks[layer]["kernel"]
        assert ((kernel != 0) == mask).all() and mask.sum() == active
    assert so.plan(left["refined"].params, left["topology"]).active == 384


def test_every_call_of_the_table_prunes(params, after_training):
    given = {
        "so": so,
        "params": params,
        "grads": jax.grad(loss)(params, batches()[0]),
        "calibration": after_training["calibration"],
        "pruned": after_training["pruned"],
    }
    calls = [code(row[0]) for row in rows(PAGE, "pruning")]
    for call in calls:
        assert eval(call, given).masks["hidden"]["kernel"].sum() == 256
    listed = [call.split('"')[1] for call in calls if '"' in call]
    with pytest.raises(ValueError, match=f"one of {', '.join(listed)}, or a"):
        so.prune(params, "none of these", sparsity=0.5)


def test_what_is_pruned_by_channels_gets_smaller(params):
    model = Network()
    left = run("smaller_layers", params, model=model, Network=Network)
    assert left["small"]["params"]["hidden"]["kernel"].shape == (16, 16)
    before = model.apply(left["variables"], left["batches"][0])
    np.testing.assert_allclose(left["outputs"], before, rtol=1e-4, atol=1e-5)


def test_averaged_gradients_take_memory(params):
    def memory(method):
        state = so.sparsify(optax.sgd(0.1), method).init(params)
        return sum(x.size for x in jax.tree.leaves(state.topology_state.memory))

    every = {"every": 100, "stop": 1_000}
    assert memory(so.rigl(0.9, **every)) == 0
    assert memory(so.rigl(0.9, averaged_steps=4, **every)) == 768
    assert memory(so.snfs(0.9, **every)) == 768


def test_its_names_exist():
    for name in names(PAGE):
        find(name)


MEMORY = read("docs/memory.md")


@pytest.mark.parametrize("name", block_names(MEMORY))
def test_the_page_about_memory_runs(name, params):
    mesh = jax.make_mesh((1,), ("model",))
    spec = jax.sharding.PartitionSpec(None, "model")
    given = {"params": params, "grads": params, "micro_batches": jnp.stack(batches())}
    given["gradient"] = jax.grad(loss)
    given["shardings"] = jax.tree.map(
        lambda p: jax.sharding.NamedSharding(
            mesh, spec if p.ndim > 1 else jax.sharding.PartitionSpec()
        ),
        params,
    )
    left = run_block(MEMORY, name, **given)
    assert so.optimizer_bytes(left["tx"].init(params))


def test_the_page_about_real_gains_trains_compact():
    model = nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(128)])
    inputs = jax.random.normal(jax.random.key(0), (3, 4, 192))
    params = jax.jit(model.init)(jax.random.key(0), inputs[0])["params"]
    seen = [(x, jnp.ones((4, 128))) for x in inputs]
    page = read("docs/real_gains.md")
    left = run_block(page, "compact", model=model, params=params, batches=seen)
    masks = so.get_masks(left["opt_state"])["layers_0"]["kernel"]
    trained = np.asarray(left["params"]["layers_0"]["kernel"])
    assert trained.shape == (192, 256) and (trained[np.asarray(masks)] != 0).any()
    assert not trained[~np.asarray(masks)].any()


PLACES = read("docs/where_sparseopt_goes.md")


def test_the_page_about_places_runs(params):
    topology = so.rigl(0.5, every=10, stop=100)
    left = run_block(PLACES, "adam", params=params, topology=topology)
    state = left["tx"].init(params)
    left["tx"].update(params, state, params)
    assert run_block(PLACES, "dying")["topology"].min_fan_in == 2


LARGE = read("docs/large_batches.md")


def test_the_page_about_large_batches_runs(params):
    lamb = run_block(LARGE, "lamb", params=params, grads=params)
    assert jax.tree.structure(lamb["updates"]) == jax.tree.structure(params)
    chain = run_block(LARGE, "chain")["tx"]
    alias = so.sparse_lamb(2e-2, so.rigl(0.9, every=100, stop=7_500), sparseopt=True)
    found, wanted = (
        jax.jit(tx.update)(params, tx.init(params), params)[0] for tx in (chain, alias)
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_how_far_batches_reach_is_what_was_measured():
    record = load("studies.large_batch")
    dense = {"LARS": 512, "SGD": 256, "LAMB": 128, "Adam": 512}
    for name, batch in dense.items():
        for density, reached in (("dense", batch), ("sparse", 512)):
            (claim,) = select(record["claims"], density=density, optimizer=name)
            assert claim["measured"] == reached
    assert "LARS reaches 512 and SGD 256, but LAMB 128 and Adam 512" in LARGE
    for density in ("dense", "sparse"):
        tables = select(record["tables"], density=density)
        (ruled,) = select(tables, kind="rule")
        (tried,) = select(tables, kind="rates", batch=1024)
        (rule,) = (
            row["rate"]
            for row in ruled["rows"]
            if (row["optimizer"], row["batch"]) == ("LAMB", 1024)
        )
        (best,) = (
            row["rate"]
            for row in tried["rows"]
            if row["optimizer"] == "LAMB" and row["best"]
        )
        assert best == pytest.approx(2 * rule, rel=1e-3)


@pytest.mark.parametrize("page", [MEMORY, PLACES, LARGE])
def test_names_of_other_pages_exist(page):
    for name in names(page):
        find(name)

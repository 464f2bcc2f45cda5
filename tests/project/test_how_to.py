"""The recipes of ``docs/how_to.md`` run, and their statements are true."""

import re
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.checkpoint import Checkpoints
from sparseopt_jax.exporting.safetensors_file import read as read_safetensors
from sparseopt_jax.exporting.safetensors_file import write as write_safetensors
from tests.helpers.pages import block_names, find, names, read, run_block
from tests.helpers.programs import events

PAGE = read("docs/how_to.md")


def init(key):
    keys = jax.random.split(key)
    return {
        "hidden": {
            "kernel": jax.random.normal(keys[0], (16, 32)) / 4,
            "bias": jnp.zeros(32),
        },
        "head": {"kernel": jax.random.normal(keys[1], (32, 8)) / 6},
    }


def loss(params, batch):
    hidden = jax.nn.relu(batch @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((hidden @ params["head"]["kernel"] - 1) ** 2)


@pytest.fixture(scope="module")
def start():
    """Return what recipes start with; no block changes it in place."""
    drawn = jax.random.normal(jax.random.key(1), (3, 8, 16))
    given = {"params": init(jax.random.key(0)), "loss": loss, "batches": list(drawn)}
    return run_block(PAGE, "setup", **given, init=init)


@pytest.fixture(scope="module")
def trained(start):
    """Return the result of the plain loop: parameters, state and a compiled step."""
    return run_block(PAGE, "plain_jax", **start)


def assert_sparse(params, opt_state):
    """Check that inactive weights are zero, and active weights as many as planned."""
    numbers = so.metrics(params, opt_state)
    assert numbers["inactive_nonzero"] == 0
    return float(numbers["density"])


def assert_same_masks(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_every_recipe_has_a_test():
    tested = re.findall(r'run_block\(\s*PAGE,\s*"(\w+)"', read(__file__))
    tested += [*LOOPS, *LOGGERS]
    assert sorted(block_names(PAGE)) == sorted({*tested})


def test_its_names_exist():
    for name in names(PAGE):
        find(name)


def test_only_the_attention_is_sparse(start, capsys):
    params = {
        "MultiHeadDotProductAttention_0": {"query": {"kernel": jnp.ones((16, 2, 8))}},
        "Dense_0": {"kernel": jnp.ones((16, 16))},
    }
    topology = run_block(PAGE, "attention", **start | {"params": params})["topology"]
    (sparse,) = (leaf for leaf in topology.leaves(params) if leaf.layer)
    assert sparse.path.endswith("query/kernel") and sparse.active == 26
    assert "excluded by where" in capsys.readouterr().out


def test_masks_of_a_checkpoint_are_kept(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, opt_state = trained["params"], trained["opt_state"]
    so.export("network.safetensors", params, opt_state)
    left = run_block(PAGE, "checkpoint_masks", **trained)
    assert_same_masks(left["masks"], so.get_masks(opt_state))
    initial = init(jax.random.key(0))
    left = run_block(PAGE, "ticket", **left | {"initial_params": initial})
    assert_same_masks(so.get_masks(left["opt_state"]), so.get_masks(opt_state))
    for layer in ("hidden", "head"):
        kernel, mask = (x[layer]["kernel"] for x in (left["params"], left["masks"]))
        expected = jnp.where(mask, initial[layer]["kernel"], 0)
        np.testing.assert_array_equal(kernel, expected)


def test_two_of_four_stay_two_of_four(start):
    topology = run_block(PAGE, "two_of_four", **start)["topology"]
    given = start | {"tx": so.sparsify(optax.adamw(1e-3), topology)}
    left = run_block(PAGE, "plain_jax", **given)
    masks = so.get_masks(left["opt_state"])
    assert masks["head"]["kernel"] == optax.MaskedNode()
    groups = masks["hidden"]["kernel"].reshape(4, 4, 32)
    assert (groups.sum(axis=1) == 2).all()
    first = so.get_masks(given["tx"].init(start["params"]))
    assert (first["hidden"]["kernel"] != masks["hidden"]["kernel"]).any()
    assert not left["params"]["hidden"]["kernel"][~masks["hidden"]["kernel"]].any()
    pruned = so.prune(start["params"], "magnitude", structure=so.NM(2, 4))
    assert int((pruned.params["head"]["kernel"] != 0).sum()) == 128


LOOPS = ("linen", "nnx", "equinox", "haiku")


def test_a_plain_loop_trains(trained, start):
    assert_sparse(trained["params"], trained["opt_state"])
    first = so.get_masks(trained["tx"].init(start["params"]))
    last = so.get_masks(trained["opt_state"])
    assert (first["hidden"]["kernel"] != last["hidden"]["kernel"]).any()
    assert trained["value"] < loss(start["params"], start["batches"][-1])


@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_module_libraries_train(name, start, capsys):
    left = run_block(PAGE, name, **start)
    shown = capsys.readouterr().out
    assert "(10." in shown and "not zero" not in shown
    if name in ("linen", "nnx"):
        return
    assert_sparse(left["params"], left["opt_state"])
    if name == "equinox":
        kernel = left["model"].layers[1].weight
        assert 0 < (kernel != 0).sum() < kernel.size
        assert left["dims"]["layers/1/weight"] == so.NeuronDims(1, 0)


def test_fine_tuning_keeps_masks(trained):
    left = run_block(PAGE, "fine_tune", **trained)
    masks = left["pruned"].masks
    left = run_block(PAGE, "plain_jax", **left)
    assert_same_masks(so.get_masks(left["opt_state"]), masks)
    assert assert_sparse(left["params"], left["opt_state"]) == pytest.approx(0.2, 0.05)


def test_an_average_is_masked_when_it_is_evaluated(start):
    moving = so.sparsify(optax.adamw(0.1), so.set_(0.9, every=1, stop=9))
    left = run_block(PAGE, "plain_jax", **start | {"tx": moving})
    left = run_block(PAGE, "ema", **left)
    opt_state = left["opt_state"]
    assert so.metrics(left["average"], opt_state)["inactive_nonzero"] > 0
    assert_sparse(left["evaluated"], opt_state)


def test_accumulated_steps_are_those_of_the_whole_batch(start):
    whole = jnp.stack(start["batches"] + start["batches"][:1])  # 4 micro-batches
    topology = so.rigl(0.9, every=1, stop=3)
    given = start | {"topology": topology}
    left = run_block(PAGE, "accumulate", **given)
    params, opt_state = left["params"], left["opt_state"]
    update, gradient = jax.jit(left["tx"].update), jax.jit(jax.grad(loss))
    plain = so.sparsify(optax.adamw(1e-3), topology)
    left |= {"tx": plain, "params": params, "opt_state": plain.init(start["params"])}
    scanned = run_block(PAGE, "accumulate_scan", **left)
    other, other_state = params, left["opt_state"]
    for _ in range(2):
        for batch in whole:
            updates, opt_state = update(gradient(params, batch), opt_state, params)
            params = optax.apply_updates(params, updates)
        other, other_state = scanned["step"](other, other_state, whole)
    assert int(opt_state.gradient_step) == int(other_state.count) == 2
    assert_same_masks(so.get_masks(opt_state), so.get_masks(other_state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, other
    )
    assert_sparse(params, opt_state)


def test_half_precision_keeps_float32_weights_and_zeros(start):
    left = run_block(PAGE, "mixed_precision", **start)
    params, opt_state = start["params"], left["tx"].init(start["params"])
    batch = start["batches"][0]
    params, opt_state = left["step"](params, opt_state, batch)
    grads = jax.eval_shape(jax.grad(left["half_loss"]), params, batch)
    types = {x.dtype for x in jax.tree.leaves((params, grads))}
    assert types == {jnp.dtype("float32")}
    assert optax.tree.get(opt_state, "mu")["head"]["kernel"].dtype == "bfloat16"
    assert_sparse(params, opt_state)


LOGGERS = ("wandb", "tensorboard", "clu")


class Recorder(list):
    """Records the calls that recipes make to loggers."""

    def init(self, *, project, config):
        assert project and config["sparsity"] == 0.9
        return self

    def log(self, data, step):
        self.append((step, data))

    def create_default_writer(self, logdir):
        assert logdir
        return self

    def write_scalars(self, step, scalars):
        self.append((step, scalars))

    def finish(self):
        self.append("closed")

    close = finish


@pytest.fixture(scope="module")
def logged(start, trained):
    given = start | {name: trained[name] for name in ("params", "opt_state")}
    return run_block(PAGE, "metrics", **given)


@pytest.mark.parametrize("name", LOGGERS)
def test_loggers_receive_every_number(name, logged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    clu = types.ModuleType("clu")
    clu.metric_writers = recorder  # pyright: ignore[reportAttributeAccessIssue]
    for module, stand_in in {"wandb": recorder, "clu": clu}.items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    left = run_block(PAGE, name, **logged)
    if name == "tensorboard":
        received = {tag: value for _, tag, value in events(tmp_path / "runs/sparse")}
    else:
        (step, received), closed = recorder
        assert step == 0 and closed == "closed"
    assert received.keys() == left["numbers"].keys()
    assert received["inactive_nonzero"] == 0 and received["loss"] > 0
    assert "dead_fraction/hidden/kernel" in received


def test_the_learning_rate_is_set_without_compiling_again(start, capsys):
    left = run_block(PAGE, "learning_rate", **start)
    assert float(capsys.readouterr().out) == pytest.approx(1e-4)
    tx, opt_state = left["tx"], left["opt_state"]
    params = so.apply_masks(start["params"], opt_state)
    update = jax.jit(tx.update)
    moved = []
    for rate in (1e-4, 1e-2):
        state = optax.tree.set(opt_state, learning_rate=jnp.float32(rate))
        _, state = update(params, state, params)  # RigL replaces the first step
        updates, _ = update(params, state, params)
        moved.append(float(jnp.abs(updates["head"]["kernel"]).max()))
    assert moved[1] == pytest.approx(100 * moved[0], rel=1e-3)
    assert update._cache_size() == 1


def test_plateaus_stand_inside(start):
    tx = run_block(PAGE, "plateau", **start)["tx"]
    opt_state = tx.init(start["params"])
    params = so.apply_masks(start["params"], opt_state)
    update = jax.jit(tx.update)
    updates, opt_state = update(params, opt_state, params, value=jnp.ones(()))
    assert_sparse(optax.apply_updates(params, updates), opt_state)


def test_line_searches_train(start):
    left = run_block(PAGE, "lbfgs", **start)
    before = loss(start["params"], start["batches"][0])
    assert left["value"] < 0.1 * before
    assert_sparse(left["params"], left["opt_state"])


def test_a_vision_transformer_is_dense_where_it_says(start, capsys):
    images = jnp.ones((2, 8, 8, 3))
    left = run_block(PAGE, "vit", **start, images=images)
    leaves = left["topology"].leaves(left["shapes"])
    sparse = {
        leaf.path.split("/")[0].rsplit("_", 1)[0] for leaf in leaves if leaf.layer
    }
    assert sparse == {"Dense", "MultiHeadDotProductAttention"}
    assert "?" not in capsys.readouterr().out


def test_a_language_model_keeps_active_moments(start, capsys):
    params = {
        "embed": {"embedding": jnp.ones((32, 16))},
        "mlp": {"kernel": jnp.ones((16, 32))},
        "head": {"kernel": jnp.ones((16, 32))},
    }
    left = run_block(PAGE, "language_model", **start | {"params": params})
    tx, params, opt_state = left["tx"], left["params"], left["opt_state"]
    assert optax.tree.get(opt_state, "mu")["mlp"]["kernel"].size == 128
    dense = {leaf.path for leaf in left["topology"].leaves(params) if not leaf.layer}
    assert dense == {"embed/embedding", "head/kernel"}
    updates, _ = jax.eval_shape(tx.update, params, opt_state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert_sparse(params, opt_state)
    assert "25.00%" in capsys.readouterr().out


def test_scanned_layers_are_sharded_and_sparse_one_by_one(start):
    left = run_block(PAGE, "scanned", **start)
    state, shardings = left["state"], left["shardings"]
    assert state.params["layers"]["up"]["kernel"].value.shape == (16, 4, 64)
    masks = so.get_masks(nn.meta.unbox(state.opt_state))["layers"]
    for name, axis in (("up", 2), ("down", 0)):
        mask = masks[name]["kernel"]
        active = mask.sum(axis=(0, 2))
        assert len(set(active.tolist())) == 1 and 0 < active[0] < mask.size / 8
        placed = shardings.opt_state.masks["layers"][name]["kernel"]
        assert placed.spec[axis] == "model"
        assert mask.sharding.is_equivalent_to(placed, mask.ndim)
    assert left["dims"]["layers/up/kernel"] == so.NeuronDims(0, 2)


@pytest.fixture
def torch_file(tmp_path, monkeypatch):
    """Return a file as PyTorch writes it, with safetensors' reader or a substitute."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (32, 16),
        "model.layers.0.mlp.up_proj.weight": (64, 16),
        "model.layers.0.mlp.up_proj.bias": (64,),
        "model.layers.0.input_layernorm.weight": (16,),
        "lm_head.weight": (32, 16),
    }
    tensors = {
        name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    with open("model.safetensors", "wb") as file:
        write_safetensors(file, tensors, {})

    def load_file(path):
        with open(path, "rb") as file:
            arrays, _ = read_safetensors(file.read())
        return {name: jnp.asarray(x) for name, x in arrays.items()}

    library = types.ModuleType("safetensors.flax")
    library.load_file = load_file  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "safetensors", types.ModuleType("safetensors"))
    monkeypatch.setitem(sys.modules, "safetensors.flax", library)
    return tensors


def test_weights_of_hugging_face_are_a_flax_tree(start, torch_file):
    left = run_block(PAGE, "hugging_face", **start)
    params, masks = left["params"], left["pruned"].masks
    layer = params["model"]["layers"]["0"]
    np.testing.assert_array_equal(
        layer["mlp"]["up_proj"]["kernel"],
        torch_file["model.layers.0.mlp.up_proj.weight"].T,
    )
    assert layer["input_layernorm"]["scale"].shape == (16,)
    assert params["model"]["embed_tokens"]["embedding"].shape == (32, 16)
    assert masks["lm_head"]["kernel"] == optax.MaskedNode()
    assert masks["model"]["embed_tokens"]["embedding"] == optax.MaskedNode()
    pruned = left["pruned"].params["model"]["layers"]["0"]["mlp"]["up_proj"]["kernel"]
    assert int((pruned == 0).sum()) == pruned.size // 2


def test_the_layout_of_pytorch_works(torch_file):
    (dims,) = re.findall(r"`dims=(\{[^`]+\})`", PAGE)
    tree = {"up_proj": {"weight": jnp.asarray(torch_file["lm_head.weight"])}}
    fan_in = so.ConstantFanIn()
    topology = so.static(0.5, structure=fan_in, dims=eval(dims, {"so": so}))
    mask = so.get_masks(so.sparsify(optax.sgd(0.1), topology).init(tree))
    assert (mask["up_proj"]["weight"].sum(axis=1) == 8).all()


def test_merged_factors_keep_the_zeros(start):
    left = run_block(PAGE, "lora", **start)
    merged, pruned = left["merged"], left["pruned"]
    mask = pruned.masks["hidden"]["kernel"]
    kernel = merged["hidden"]["kernel"]
    assert not kernel[~mask].any()
    assert (kernel != pruned.params["hidden"]["kernel"])[mask].mean() > 0.9
    np.testing.assert_array_equal(
        merged["head"]["kernel"], pruned.params["head"]["kernel"]
    )


def test_seeds_have_the_masks_that_each_has_alone(start):
    left = run_block(PAGE, "seeds", **start)
    opt_state, keys = left["opt_state"], left["keys"]
    masks = so.get_masks(opt_state)["hidden"]["kernel"]
    assert len({mask.tobytes() for mask in np.asarray(masks)}) == 4
    assert (left["numbers"]["inactive_nonzero"] == 0).all()
    alone = so.sparsify(optax.adamw(1e-3), start["topology"], key=keys[2])
    expected = so.get_masks(alone.init(init(keys[2])))
    _, first = left["create"](keys)
    assert_same_masks(jax.tree.map(lambda x: x[2], so.get_masks(first)), expected)
    assert (so.get_masks(first)["hidden"]["kernel"] != masks).any()


def test_agents_have_masks_of_their_own_that_move(start):
    def policy_loss(params, key):
        return loss(params, jax.random.normal(key, (4, 16)))

    given = {"policy_loss": policy_loss, "agents": 4, "rounds": 2}
    left = run_block(PAGE, "agents", **start | given)
    params, opt_state = left["params"], left["opt_state"]
    numbers = jax.vmap(so.metrics)(params, opt_state)
    assert (numbers["inactive_nonzero"] == 0).all() and (numbers["churn"] > 0).all()
    masks = np.asarray(so.get_masks(opt_state)["hidden"]["kernel"])
    assert len({mask.tobytes() for mask in masks}) == 4
    assert [n for n in range(200) if left["topology"].due(n)] == [49, 99, 149, 199]


def test_a_run_resumes_where_the_new_state_lies(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left = run_block(PAGE, "resume", **start)
    assert left["position"] == {"index": 0}
    saved = left["state"].replace(step=left["state"].step + 1)
    with Checkpoints("runs/sparse", topology=start["topology"]) as checkpoints:
        checkpoints.save(1, saved, {"index": 1})
        state, position = checkpoints.restore(left["state"])
    assert position == {"index": 1} and int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, saved.opt_state)
    for x, place in zip(
        *map(jax.tree.leaves, (state.params, left["split"])), strict=True
    ):
        assert x.sharding.is_equivalent_to(place, x.ndim)


def test_what_is_exported_comes_back(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left = run_block(PAGE, "export", **trained)
    jax.tree.map(np.testing.assert_array_equal, left["dense"], trained["params"])

"""Tables before and during training."""

import io

import jax
import jax.numpy as jnp
import optax
import pytest
import rich
from flax import nnx
from rich.console import Console

import sparseopt_jax as so

PARAMS = {
    "Dense_0": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)},
    "Dense_1": {"kernel": jnp.ones((16, 4)), "bias": jnp.ones(4)},
    "Embed_0": {"embedding": jnp.ones((10, 8))},
    "phase": jnp.ones((2, 2), jnp.complex64),
    "table": jnp.ones((2, 2), jnp.int32),
}
MASK = jnp.arange(4)[:, None] < jnp.array([4, 2, 0])


def in_colours(printed):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, color_system="256")
    console.print(printed)
    return file.getvalue()


def of_masks(masks, dims=None):
    params = jax.tree.map(lambda mask: jnp.where(mask, 1.0, 0.0), masks)
    # Leaves without active weights cannot be passed: they arise later from masks.
    full = jax.tree.map(jnp.ones_like, masks)
    tx = so.sparsify(optax.sgd(0.1), so.static(masks=full, dims=dims))
    return so.summary(params, tx.init(params)._replace(masks=masks), dims=dims)


def test_the_plan_says_what_how_much_and_why_not():
    plan = so.plan(PARAMS, so.static(0.75, distribution={"Dense_1/*": 0.5}))
    assert plan.active == 32 + 32
    assert plan.size == 128 + 64
    assert plan.parameters == 300
    lines = str(plan).splitlines()
    head = ["layer", "shape", "inputs", "outputs", "density", "active", "why", "dense"]
    assert lines[0].split() == head
    assert lines[2].split() == ["Dense_0/kernel", "8x16", "8", "16", "25.00%", "32"]
    assert lines[4].split() == ["Dense_1/kernel", "16x4", "16", "4", "50.00%", "32"]
    assert lines[5].endswith("embedding")
    assert lines[6].endswith("complex64 is not a real floating-point dtype")
    assert lines[7].endswith("int32 is not a real floating-point dtype")
    assert (
        "64 of 192 weights active in sparse leaves (33.33%); 108 parameters dense, "
        "300 in all." in lines
    )
    assert "simulated" in lines[-1] and "nothing at run time" in lines[-1]
    assert repr(plan) == str(plan)


def test_the_plan_needs_shapes_only_and_is_what_init_makes():
    shapes = jax.eval_shape(lambda: PARAMS)
    topology = so.rigl(0.8, every=10, stop=100)
    plan = so.plan(shapes, topology)
    masks = so.get_masks(so.sparsify(optax.sgd(0.1), topology).init(PARAMS))
    counts = {leaf.path: leaf.active for leaf in plan.leaves if leaf.layer}
    assert counts == {
        f"Dense_{i}/kernel": int(masks[f"Dense_{i}"]["kernel"].sum()) for i in (0, 1)
    }


def test_the_plan_of_a_stack_counts_all_copies():
    params = {"kernel": jnp.ones((3, 8, 4)), "bias": jnp.ones((3, 4))}
    plan = so.plan(params, so.static(0.75, dims=so.NeuronDims(1, 2)))
    assert plan.active == 3 * 8
    assert plan.forward_flops == (2 * 3 * 8, 2 * 3 * 32)


def shown_axes(params, dims=None):
    """Return, by path, the axes of sparse leaves that the plan shows."""
    plan = so.plan(params, so.static(0.5, dims=dims))
    columns = [plan.page().head.index(name) for name in ("inputs", "outputs")]
    return {
        row[0]: tuple(row[column] for column in columns)
        for leaf, row in zip(plan.leaves, plan.page().rows, strict=True)
        if leaf.layer
    }


def kernel(*shape, bias=None, name="kernel"):
    beside = {} if bias is None else {"bias": jnp.ones(bias)}
    return {name: jnp.ones(shape)} | beside


def test_the_plan_shows_inputs_outputs_and_stacks():
    params = {
        "query": kernel(64, 4, 16, bias=(4, 16)),
        "out": kernel(4, 16, 64, bias=(64,)),
        "qkv": kernel(64, 3, 4, 16),
        "Conv_0": kernel(3, 3, 8, 16),
        "stem": kernel(4, 4, 3, 16),
        "conv": kernel(5, 8, 16),
        "stack": kernel(12, 8, 4, bias=(12, 4)),
    }
    assert shown_axes(params, {"stack/*": so.NeuronDims(1, 2)}) == {
        "query/kernel": ("64", "4x16"),
        "out/kernel": ("4x16", "64"),
        "qkv/kernel": ("64", "3x4x16"),
        "Conv_0/kernel": ("3x3x8", "16"),
        "stem/kernel": ("4x4x3", "16"),
        "conv/kernel": ("5x8", "16"),
        "stack/kernel": ("12 x 8", "4"),
    }


@pytest.mark.parametrize(
    ("params", "path", "note"),
    [
        ({"experts": jnp.ones((4, 8, 16))}, "experts", "do not show what its 3 axes"),
        ({"query": kernel(6, 64, 4, 16)}, "query/kernel", "what its 4 axes are"),
        ({"query": kernel(12, 64, 64)}, "query/kernel", "what its 3 axes are"),
        ({"out": kernel(4, 16, 64)}, "out/kernel", "what its 3 axes are"),
        ({"a": kernel(8, 4, name="weight")}, "a/weight", "in Equinox and PyTorch"),
        ({"a": kernel(8, 4, name="weight_ih")}, "a/weight_ih", "Equinox and PyTorch"),
        (
            {
                "s": {
                    "Conv_0": kernel(6, 3, 3, 8, 8),
                    "norm": {"scale": jnp.ones((6, 8))},
                }
            },
            "s/Conv_0/kernel",
            "vectors beside it are stacked 6 times",
        ),
        # The leading axis may be the stack, or the inputs: the bias fits both.
        ({"query": kernel(4, 4, 16, bias=(4, 16))}, "query/kernel", "stacked 4 times"),
    ],
)
def test_the_plan_marks_axes_that_are_a_guess(params, path, note):
    plan = so.plan(params, so.static(0.5))
    assert list(plan.guesses) == [path] and not plan.page().warnings
    assert shown_axes(params)[path][1].endswith("?")
    *_, remedy, reason = plan.page().notes
    assert remedy.startswith(
        "? marks axes that are a guess: give the topology dims=so.i"
    )
    assert reason.startswith(f"? {path}: ") and note in reason
    # Given axes are not a guess.
    ndim = max(len(leaf.shape) for leaf in jax.tree.leaves(params))
    dims = {path: so.NeuronDims(0, tuple(range(1, ndim)))}
    assert not so.plan(params, so.static(0.5, dims=dims)).guesses


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (kernel(64, 4, 16, bias=(4, 16)), r"(4, 16) lies along axes (1, 2), but"),
        (kernel(6, 8, 4, bias=(6, 4)), r"(6, 4) lies along axes (0, 2), but"),
        (kernel(8, 4, bias=(8,), name="weight"), r"(8,) lies along axes (0,), but"),
        (
            kernel(8, 4, 3, 3, bias=(8, 1, 1), name="weight"),
            r"(8,) lies along axes (0,)",
        ),
    ],
)
def test_the_plan_warns_where_a_bias_has_other_outputs(leaf, reason):
    page = so.plan({"a": leaf, "b": leaf}, so.static(0.5)).page()
    (warning,) = page.warnings
    name = min(leaf.keys() - {"bias"})
    assert warning.startswith(f"a/{name}, b/{name}: its bias of shape {reason}")
    assert warning.endswith("dims=so.infer_dims(apply_fn, variables, *inputs).")


def test_a_bias_that_fits_leaves_no_doubt():
    params = {
        "a": kernel(8, 4, bias=(4,), name="weight"),
        "b": kernel(8, 4, 16, bias=(16,)),
        "c": kernel(8, 8, bias=(8,)),
        "w": {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 3)), "b": jnp.ones(8)},
    }
    plan = so.plan(params, so.static(0.5))
    assert not plan.guesses and not plan.page().warnings


def test_the_plan_compares_with_what_the_model_does():
    params = {"w": jnp.ones((3, 8, 8)), "v": jnp.ones((4, 8))}

    def model(params, x):
        for layer in range(3):
            x = x @ params["w"][layer]
        return x @ params["v"].T

    dims = so.infer_dims(model, params, jnp.ones((2, 8)))
    plan = so.plan(params, so.static(0.5), dims=dims)
    assert plan.page().warnings == (
        "v: the model sums over axes (1,) and has its neurons along (0,), the topology "
        "takes (0,) and (1,): give it these dims.",
        "w: the model sums over axes (1,) and has its neurons along (2,), the topology "
        "takes (0, 1) and (2,): give it these dims.",
    )
    assert not plan.guesses
    plan = so.plan(params, so.static(0.5, dims=dims), dims=dims)
    assert not plan.page().warnings and not plan.guesses
    # Axes that the model leaves open stay a guess, with the reason.
    dims = so.infer_dims(lambda params, x: x @ params["v"].T, params, jnp.ones((2, 8)))
    plan = so.plan(params, so.static(0.5, dims=dims))
    assert plan.guesses["w"].reason.endswith(
        "axes are; infer_dims: not used by apply_fn"
    )


@pytest.mark.parametrize("packed", [False, True])
def test_the_plan_knows_what_masks_will_take(packed):
    params = {"a": jnp.ones((3, 17)), "b": jnp.ones((2, 8)), "c": jnp.ones(5)}
    topology = so.static(0.5)
    plan = so.plan(params, topology)
    # Packed, plus as many bytes as the last byte of a row holds entries.
    assert (plan.mask_bytes, plan.packed_mask_bytes) == (51 + 16, 3 * 3 + 1 + 2 + 8)
    state = so.sparsify(optax.sgd(0.1), topology, packed=packed).init(params)
    taken = so.summary(params, state).mask_bytes
    assert taken == (plan.packed_mask_bytes if packed else plan.mask_bytes)
    assert "Masks take 67 bytes, packed 20 bytes." in str(plan)


def test_the_flops_of_the_plan_by_hand():
    params = {
        "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "Dense_0": {"kernel": jnp.ones((4, 8))},
        "Embed_0": {"embedding": jnp.ones((10, 8))},
        "head": jnp.ones((8, 2)),
        "table": jnp.ones((2, 2), jnp.int32),
    }

    def where(path, leaf):
        return path != "head"

    given = {"distribution": {"Conv_0/*": 0.75, "Dense_0/*": 0.5}, "where": where}
    # Active 18 of 72, 16 of 32, and 16 of 16 in the dense head.
    plan = so.plan(params, so.static(0.5, **given))
    assert plan.forward_flops == (2 * (18 + 16 + 16), 2 * (72 + 32 + 16))
    assert plan.inference_flops == plan.training_flops == 50 / 120
    assert "41.67% for inference, 41.67% for training (1 position" in str(plan)

    schedule = {"every": 10, "stop": 100}
    positions = {"Conv_0/kernel": 100, "Conv_*": 7}
    dense, sparse = 7200 + 32 + 16, 1800 + 16 + 16
    plan = so.plan(params, so.set_(0.5, **schedule, **given), positions=positions)
    assert plan.inference_flops == plan.training_flops == sparse / dense
    assert "at the given positions, 1 elsewhere" in str(plan)
    plan = so.plan(params, so.rigl(0.5, **schedule, **given), positions=positions)
    assert plan.inference_flops == sparse / dense
    assert plan.training_flops == pytest.approx(
        (3 * sparse * 10 + 2 * sparse + dense) / 11 / (3 * dense)
    )
    assert "for training with dense gradients in 9.09% of steps" in str(plan)


def test_no_flops_without_counts():
    def number(mask):
        plan = so.plan({"k": jnp.ones((4, 3))}, so.static(masks={"k": mask}))
        assert plan.inference_flops != plan.inference_flops
        assert "- for inference, - for training" in str(plan)
        return mask

    jax.jit(number)(MASK)


@pytest.mark.parametrize(
    ("positions", "error", "match"),
    [
        ({"Dense_7/*": 2}, ValueError, "positions: the pattern 'Dense_7/.' matches no"),
        ({"Dense_0/*": 0}, ValueError, "integers of at least 1, got 0 for 'Dense_0/."),
        ({"Dense_0/*": 1.5}, ValueError, "integers of at least 1, got 1.5"),
        ({"Dense_0/*": True}, ValueError, "integers of at least 1, got True"),
        (196, TypeError, "positions must map globs over paths to integers, got 196"),
    ],
)
def test_positions_that_mean_nothing(positions, error, match):
    topology = so.static(0.5)
    with pytest.raises(error, match=match):
        so.plan(PARAMS, topology, positions=positions)
    state = so.sparsify(optax.sgd(0.1), topology).init(PARAMS)
    with pytest.raises(error, match=match):
        so.summary(PARAMS, state, positions=positions)


def test_the_summary_by_hand():
    tx = so.sparsify(
        optax.adam(0.1), so.static(masks={"k": MASK, "b": None, "d": None})
    )
    params = {"k": jnp.ones((4, 3)), "b": jnp.ones(3), "d": jnp.ones((2, 2))}
    state = tx.init(params)
    summary = so.summary(params, state)
    [layer] = summary.layers
    assert (layer.active, layer.fan_in, layer.dead) == (6, (0, 2.0, 4), 1)
    assert (layer.neurons, layer.copies, layer.collapsed) == (3, 1, 0)
    assert layer.density == 0.5
    assert layer.factor == (0.0, pytest.approx(2**0.5))
    assert (summary.active, summary.size, summary.parameters) == (6, 12, 19)
    assert summary.mask_bytes == 12
    # Two moments of 19 weights, and four bytes for: the steps of adam and of sparsify,
    # the last change, what it turned on, the fan-ins of three neurons; eight for a key.
    assert summary.state_bytes == 2 * 19 * 4 + 4 * (1 + 1 + 1 + 1 + 3) + 8
    assert summary.inference_flops == (6 + 4) / (12 + 4)
    assert so.summary(params, state, positions={"k": 10}).inference_flops == 64 / 124
    lines = str(summary).splitlines()
    row = "k 4x3 50.00% 6 0 / 2.0 / 4 0.00-1.41 1"
    assert lines[1].split() == row.split()
    assert "62.50% for inference (1 position" in lines[4]
    assert so.summary(so.apply_masks(params, state), state).inactive_nonzero == 0


def test_masks_of_the_past_are_masks():
    params = {"k": jnp.ones((4, 16))}
    for packed, size in ((False, 64), (True, 8 + 8)):
        sizes = []
        for track in (False, True):
            topology = so.rigl(0.5, every=1, stop=9, track_explored=track)
            tx = so.sparsify(optax.sgd(0.1), topology, packed=packed)
            summary = so.summary(params, tx.init(params))
            sizes.append(summary.state_bytes)
            assert summary.mask_bytes == size * (1 + track)
        assert sizes[0] == sizes[1]


def test_warns_of_what_has_collapsed_or_died():
    summary = of_masks(
        {
            "fine": jnp.ones((4, 4), bool),
            "half": jnp.arange(4) < jnp.array([[2], [2], [2]]),
            "most": jnp.arange(4) < jnp.array([[1], [1], [1]]),
            "gone": jnp.zeros((2, 2), bool),
            "stack": jnp.zeros((3, 2, 2), bool).at[0].set(True),
            "vector": jnp.zeros(3, bool),
        },
        {"stack": so.NeuronDims(1, 2)},
    )
    assert summary.collapsed == ("gone", "stack", "vector")
    assert summary.mostly_dead == ("gone", "most", "stack")
    assert summary.dying == ("gone", "half", "most", "stack")
    first, second = str(summary).splitlines()[-2:]
    assert first == (
        "warning: no active weight is left in gone, stack (2 of 3 layers), vector"
    )
    assert second.startswith(
        "warning: dead neurons, without active inputs, in half (2 of 4), most (3 of "
        "4), stack (4 of 6): min_fan_in=2 in the topology keeps every neuron alive"
    )
    assert "\x1b[1;31mwarning: no active weight" in in_colours(summary)


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compact": True}])
def test_the_summary_warns_of_dims_that_are_not_the_topologys(options):
    params = {"w": jnp.ones((3, 8, 4))}
    dims = so.NeuronDims(1, 2)
    tx = so.sparsify(optax.sgd(0.1), so.static(0.5, dims=dims), **options)
    state = tx.init(params)
    params = so.apply_masks(params, state)
    assert not so.summary(params, state, dims=dims).warnings
    (warning,) = so.summary(params, state).warnings
    assert warning.startswith("w: neurons are assumed to sum over axes (0, 1), but the")
    assert warning.endswith("over (1,): pass the topology's dims")


def test_rich_prints_the_same_in_colours(capsys):
    plan = so.plan({"a[0]": PARAMS}, so.static(0.75))
    summary = so.summary(
        PARAMS, so.sparse_sgd(0.1, so.static(0.5), sparseopt=True).init(PARAMS)
    )
    for printed, cells in (
        (plan, ("a[0]/Dense_0/kernel", "8x16", "embedding")),
        (summary, ("Dense_0/kernel", "8x16", "fan-in")),
    ):
        colours = in_colours(printed)
        assert "\x1b[" in colours and "\x1b[" not in str(printed)
        for text in (*cells, "simulated on dense arrays", "FLOPs in theory"):
            assert text in colours, text
        rich.print(printed)
        assert printed.page().notes[0][:40] in capsys.readouterr().out


def test_a_train_state_and_an_nnx_optimizer():
    tx = so.sparse_adamw(0.1, so.static(0.5), sparseopt=True)
    params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    plain = so.summary(params, tx.init(params))
    state = so.linen.TrainState.create(apply_fn=None, params=params, tx=tx)
    assert str(so.summary(params, state)) == str(plain)
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    assert str(so.summary(nnx.state(model, nnx.Param), optimizer)) == str(plain)


def test_errors_come_before_training():
    with pytest.raises(ValueError, match="no parameter can be made sparse"):
        so.plan({"bias": jnp.ones(3)}, so.static(0.5))
    with pytest.raises(ValueError, match="no masks found"):
        so.summary(PARAMS, optax.EmptyState())

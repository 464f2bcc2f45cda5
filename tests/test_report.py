"""Tables before and during training."""

import jax
import jax.numpy as jnp
import optax
import pytest

import sparseopt_jax as so

PARAMS = {
    "Dense_0": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)},
    "Dense_1": {"kernel": jnp.ones((16, 4)), "bias": jnp.ones(4)},
    "Embed_0": {"embedding": jnp.ones((10, 8))},
    "phase": jnp.ones((2, 2), jnp.complex64),
    "table": jnp.ones((2, 2), jnp.int32),
}


def test_the_plan_says_what_how_much_and_why_not():
    plan = so.plan(PARAMS, so.static(0.75, distribution={"Dense_1/*": 0.5}))
    assert plan.active == 32 + 32
    assert plan.size == 128 + 64
    lines = str(plan).splitlines()
    assert lines[2].split() == ["Dense_0/kernel", "8x16", "25.00%", "32"]
    assert lines[4].split() == ["Dense_1/kernel", "16x4", "50.00%", "32"]
    assert lines[5].endswith("embedding")
    assert lines[6].endswith("complex64 is not a real floating-point type")
    assert lines[7].endswith("int32 is not a real floating-point type")
    assert "64 of 192 weights active in sparse leaves (33.33%); 108 parameters" in str(
        plan
    )
    assert "simulated" in lines[-1]
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


def test_the_summary_by_hand():
    mask = jnp.arange(4)[:, None] < jnp.array([4, 2, 0])
    tx = so.sparsify(optax.sgd(0.1), so.static(masks={"k": mask, "b": None}))
    params = {"k": jnp.ones((4, 3)), "b": jnp.ones(3)}
    summary = so.summary(params, tx.init(params))
    [layer] = summary.layers
    assert (layer.active, layer.fan_in, layer.dead) == (6, (0, 2.0, 4), 1)
    assert layer.factor == (0.0, pytest.approx(2**0.5))
    assert (summary.active, summary.size, summary.parameters) == (6, 12, 15)
    assert summary.mask_bytes == 12
    row = str(summary).splitlines()[1].split()
    assert row == [
        "k",
        "4x3",
        "50.00%",
        "6",
        "0",
        "/",
        "2.0",
        "/",
        "4",
        "0.00-1.41",
        "1",
    ]


def test_errors_come_before_training():
    with pytest.raises(ValueError, match="no parameter can be made sparse"):
        so.plan({"bias": jnp.ones(3)}, so.static(0.5))
    with pytest.raises(ValueError, match="no masks found"):
        so.summary(PARAMS, optax.EmptyState())

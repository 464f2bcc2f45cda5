"""Masks worked by hand, and what a topology refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

KEY = jax.random.key(0)


def array(*values):
    return jnp.array(values, jnp.float32)


def bits(*values):
    return jnp.array(values, bool)


def changed(topology, mask, param, grad, count=0):
    """The mask after one change of a single leaf."""
    masks, state = topology.init(KEY, {"w": param})
    masks, state = topology.update(
        KEY, jnp.int32(count), {"w": mask}, state, {"w": param}, {"w": grad}
    )
    return masks["w"]


def rigl(mask, **kwargs):
    options = {"every": 10, "stop": 100, "drop_fraction": 0.5, "decay": "constant"}
    return so.rigl(masks={"w": mask}, **(options | kwargs))


def test_rigl_drops_the_smallest_and_grows_by_gradient():
    # Active |w| = 4 3 2 1: half are dropped, 2 and 1. Of the inactive gradients
    # 0 0 (just dropped) 5 1 7 2, the two largest are 7 and 5.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    new = changed(
        rigl(mask),
        mask,
        array(4, -3, 2, -1, 0, 0, 0, 0),
        array(9, 9, 0, 0, 5, -1, -7, 2),
    )
    np.testing.assert_array_equal(new, bits(1, 1, 0, 0, 1, 0, 1, 0))


def test_what_was_just_dropped_may_come_back():
    # Dropped: 2 and 1; the gradient of the second, -8, is the largest of all inactive.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    new = changed(
        rigl(mask),
        mask,
        array(4, -3, 2, -1, 0, 0, 0, 0),
        array(9, 9, 0, -8, 5, 1, 7, 2),
    )
    np.testing.assert_array_equal(new, bits(1, 1, 0, 1, 0, 0, 1, 0))


def test_what_is_kept_is_not_grown_again():
    # The kept weights have the largest gradients of all; growth looks elsewhere.
    mask = bits(1, 1, 0, 0, 0, 0)
    new = changed(rigl(mask), mask, array(2, 1, 0, 0, 0, 0), array(99, 3, 1, 5, 4, 2))
    np.testing.assert_array_equal(new, bits(1, 0, 0, 1, 0, 0))


def test_ties_keep_and_grow_the_lowest_index():
    mask = bits(0, 1, 1, 1, 1, 0, 0, 0)
    new = changed(rigl(mask), mask, array(0, 1, 1, 1, 1, 0, 0, 0), jnp.zeros(8))
    np.testing.assert_array_equal(new, bits(1, 1, 1, 1, 0, 0, 0, 0))


def test_the_number_dropped_is_rounded_down():
    # 0.3 of 5 active weights is 1.5: one moves.
    mask = bits(1, 1, 1, 1, 1, 0, 0, 0)
    topology = rigl(mask, drop_fraction=0.3)
    new = changed(
        topology, mask, array(5, 4, 3, 2, 1, 0, 0, 0), array(0, 0, 0, 0, 0, 1, 2, 3)
    )
    np.testing.assert_array_equal(new, bits(1, 1, 1, 1, 0, 0, 0, 1))


def test_the_cosine_slows_the_change():
    # alpha / 2 (1 + cos(pi 90 / 100)) = 0.5 * 0.0245: nothing of 8 weights moves.
    mask = bits(1, 1, 1, 1, 1, 1, 1, 1, 0, 0)
    topology = rigl(mask, decay="cosine")
    param, grad = jnp.arange(10.0), jnp.arange(10.0)
    np.testing.assert_array_equal(changed(topology, mask, param, grad, 90), mask)
    assert int((changed(topology, mask, param, grad, 0) & mask).sum()) == 4 + 2


def test_layers_of_a_stack_change_separately():
    # The second layer's weights and gradients are 100 times those of the first.
    mask = bits(1, 1, 0, 0)[:, None]
    stack = jnp.stack([mask, mask])
    param = jnp.stack([array(2, 1, 0, 0)[:, None], 100 * array(1, 2, 0, 0)[:, None]])
    grad = jnp.stack([array(0, 0, 1, 2)[:, None], 100 * array(0, 0, 2, 1)[:, None]])
    topology = rigl(stack, dims=so.NeuronDims(1, 2))
    new = changed(topology, stack, param, grad)
    np.testing.assert_array_equal(new[0, :, 0], bits(1, 0, 0, 1))
    np.testing.assert_array_equal(new[1, :, 0], bits(0, 1, 1, 0))


def test_set_drops_by_magnitude_and_grows_anywhere():
    mask = bits(*[1] * 4, *[0] * 12)
    topology = so.set_(
        masks={"w": mask}, every=1, stop=10, drop_fraction=0.5, decay="constant"
    )
    _, state = topology.init(KEY, {"w": mask.astype(jnp.float32)})
    param = jnp.arange(16, 0, -1.0) * mask

    @jax.jit
    def change(key):
        masks, _ = topology.update(
            key, jnp.int32(0), {"w": mask}, state, {"w": param}, {"w": param}
        )
        return masks["w"]

    news = np.stack([change(jax.random.key(seed)) for seed in range(300)])
    np.testing.assert_array_equal(news.sum(1), 4)
    assert news[:, :2].all()
    # Two of the fourteen others, those just dropped included: probability 1/7 each,
    # within five standard deviations of 300 draws.
    np.testing.assert_allclose(news[:, 2:].mean(0), 1 / 7, atol=0.101)


@pytest.mark.parametrize(
    "grad", [0.0, 1.0, np.nan, np.inf, -np.inf], ids=["0", "1", "nan", "inf", "-inf"]
)
def test_counts_are_conserved_whatever_the_gradient(grad):
    mask = jax.random.bernoulli(KEY, 0.3, (6, 9))
    new = changed(rigl(mask), mask, jnp.ones((6, 9)) * mask, jnp.full((6, 9), grad))
    assert int(new.sum()) == int(mask.sum())


def test_nan_gradients_are_grown_last():
    mask = bits(1, 1, 0, 0, 0, 0)
    grad = array(0, 0, np.nan, -np.inf, 0, 1)
    new = changed(rigl(mask), mask, array(2, 1, 0, 0, 0, 0), grad)
    np.testing.assert_array_equal(new, bits(1, 0, 0, 1, 0, 0))


def test_first_masks_have_the_planned_counts_and_depend_on_the_name_alone():
    params = {
        "a": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)},
        "b": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    }
    topology = so.static(0.7)
    masks, state = topology.init(KEY, params)
    plan = {leaf.path: leaf.active for leaf in topology.leaves(params)}
    assert int(masks["a"]["kernel"].sum()) == plan["a/kernel"]
    assert int(masks["b"]["kernel"].sum()) == plan["b/kernel"]
    assert plan["a/kernel"] + plan["b/kernel"] == round(0.3 * (48 + 72))
    assert masks["a"]["bias"] == optax.MaskedNode()
    assert int(state.updated_at) == -1 and state.turned == ()
    np.testing.assert_array_equal(
        state.fan_ins["a"]["kernel"][0], masks["a"]["kernel"].sum(0)
    )
    other, _ = so.static(0.7, distribution={"a/*": 1 - plan["a/kernel"] / 48}).init(
        KEY, {"0": jnp.ones(1), "a": params["a"]}
    )
    np.testing.assert_array_equal(other["a"]["kernel"], masks["a"]["kernel"])


def test_each_layer_of_a_stack_gets_its_own_budget():
    params = {"kernel": jnp.ones((5, 8, 6))}
    masks, _ = so.static(0.75, dims=so.NeuronDims(1, 2)).init(KEY, params)
    np.testing.assert_array_equal(masks["kernel"].sum((1, 2)), 12)


def test_explored_is_everything_that_was_ever_active():
    mask = bits(1, 1, 0, 0, 0, 0)
    topology = rigl(mask, track_explored=True)
    masks, state = topology.init(KEY, {"w": jnp.ones(6)})
    np.testing.assert_array_equal(state.explored["w"], mask)
    for step, grad in enumerate([array(0, 0, 5, 0, 0, 0), array(0, 0, 0, 0, 5, 0)]):
        masks, state = topology.update(
            KEY,
            jnp.int32(step),
            masks,
            state,
            {"w": array(2, 1, 1, 1, 1, 1)},
            {"w": grad},
        )
    np.testing.assert_array_equal(masks["w"], bits(1, 0, 0, 0, 1, 0))
    np.testing.assert_array_equal(state.explored["w"], bits(1, 1, 1, 0, 1, 0))
    assert int(state.updated_at) == 1


def test_given_masks_need_no_sparsity():
    mask = jax.random.bernoulli(KEY, 0.5, (4, 4))
    masks, _ = so.static(masks={"a": mask, "b": None}).init(
        KEY, {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    )
    np.testing.assert_array_equal(masks["a"], mask)
    assert masks["b"] == optax.MaskedNode()


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.2, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [so.static, lambda s: so.rigl(s, every=1, stop=2)])
def test_sparsity_out_of_range(make, sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        make(sparsity)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"sparsity": None}, ValueError, "sparsity must be given"),
        ({"sparsity": "high"}, TypeError, "sparsity must be a number, got 'high'"),
        ({"distribution": "erk"}, ValueError, "erdos_renyi_kernel, uniform, got 'erk'"),
        ({"distribution": 3}, TypeError, "distribution must be a name"),
        ({"distribution": {"a": 1.0}}, ValueError, r"distribution\['a'\] must be in"),
        ({"where": "kernel"}, TypeError, "where must be a function"),
        ({"dims": (0, 1)}, TypeError, "dims must be None, a NeuronDims"),
        ({"masks": {"a": jnp.ones(3)}}, ValueError, "at 'a' stands float32"),
    ],
)
def test_bad_arguments_are_named_at_construction(kwargs, error, message):
    with pytest.raises(error, match=message):
        so.static(**({"sparsity": 0.5} | kwargs))


PARAMS = {"a": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}


@pytest.mark.parametrize(
    ("topology", "params", "message"),
    [
        (so.static(0.99), PARAMS, "'a/kernel' 0 of 16 weights"),
        (
            so.static(0.5),
            {"bias": jnp.ones(3)},
            "no parameter can be made sparse.*bias",
        ),
        (so.static(0.5, where=lambda path, _: False), PARAMS, "excluded by where"),
        (so.static(0.5, distribution={"b/*": 0.5}), PARAMS, r"'b/\*' matches no leaf"),
        (so.static(0.5, dims={"b": so.NeuronDims()}), PARAMS, "dims: the pattern 'b'"),
        (
            so.static(0.5, dims={"a/kernel": so.NeuronDims(0, 2)}),
            PARAMS,
            "exceeds the rank of 'a/kernel'",
        ),
        (
            so.static(masks={"a": {"kernel": jnp.ones((2, 2), bool), "bias": None}}),
            PARAMS,
            r"at 'a/kernel' has shape \(2, 2\), its parameter \(4, 4\)",
        ),
        (
            so.static(masks={"b": {"kernel": jnp.ones((4, 4), bool), "bias": None}}),
            PARAMS,
            "structure of the parameters.*b/kernel.*a/kernel",
        ),
        (
            so.static(masks={"a": {"kernel": None, "bias": None}}),
            PARAMS,
            "no bool array",
        ),
        (
            so.static(masks={"a": jnp.ones(3, bool)}),
            {"a": jnp.ones(3, jnp.int32)},
            "parameter of dtype int32",
        ),
    ],
)
def test_what_does_not_fit_the_parameters_fails_at_init(topology, params, message):
    with pytest.raises(ValueError, match=message):
        so.sparsify(optax.sgd(0.1), topology).init(params)


def test_a_glob_of_dims_passes_over_leaves_that_stay_dense():
    params = {
        "stack": {
            "kernel": jnp.ones((3, 4, 5)),
            "bias": jnp.ones((3, 5)),
            "gate": jnp.ones((4, 5)),
            "steps": jnp.ones(3),
        }
    }
    dims = {"stack/*": so.NeuronDims(1, 2)}
    topology = so.static(0.5, dims=dims, where=lambda path, x: "gate" not in path)
    plans = {plan.path: plan for plan in topology.leaves(params)}
    assert plans["stack/kernel"].axes == ((0,), (1,), (2,))
    assert [path for path, plan in plans.items() if plan.layer] == ["stack/kernel"]
    with pytest.raises(ValueError, match="exceeds the rank of 'stack/gate'"):
        so.static(0.5, dims=dims).leaves(params)
    with pytest.raises(ValueError, match=r"the pattern 'stack/\*' fits no leaf"):
        so.static(0.5, dims={"stack/*": so.NeuronDims(1, 3)}).leaves(params)

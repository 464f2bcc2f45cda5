"""What structures refuse, and that every update respects them."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sparseopt_jax as so
from tests.helpers.examples import examples

KEY = jax.random.key(0)
PARAMS = {
    "a": {"kernel": jnp.ones((6, 8)), "bias": jnp.ones(8)},
    "b": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)},
}
STACK = so.NeuronDims(1, 2)


# What is refused.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: so.NM(3, 2), ValueError, "1 <= n <= m and m >= 2, got n = 3, m = 2"),
        (lambda: so.NM(0, 2), ValueError, "got n = 0, m = 2"),
        (lambda: so.NM(-1, 2), ValueError, "got n = -1, m = 2"),
        (lambda: so.NM(1, 1), ValueError, "got n = 1, m = 1"),
        (lambda: so.NM(1.0, 2), TypeError, "n must be an integer, got 1.0"),
        (lambda: so.NM(1, "2"), TypeError, "m must be an integer, got '2'"),
        (lambda: so.NM(1, 2, axis=0.0), TypeError, "axis must be an integer, got 0.0"),
        (lambda: so.Block(0), ValueError, "extents of at least 1, got 0"),
        (lambda: so.Block(()), ValueError, r"extents of at least 1, got \(\)"),
        (lambda: so.Block((2, -1)), ValueError, r"at least 1, got \(2, -1\)"),
        (lambda: so.Block(2.5), TypeError, "shape must be an integer, got 2.5"),
        (lambda: so.Channel(None), TypeError, "axis must be an integer, got None"),
        (
            lambda: so.Channel((0, 1)),
            TypeError,
            r"axis must be an integer, got a tuple",
        ),
    ],
)
def test_bad_structures_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "structure", [2, "NM(2, 4)", so.NM, None, {"a/*": "2:4"}, (2, 4)]
)
def test_what_is_no_structure_is_refused(structure):
    with pytest.raises(
        TypeError, match=r"structure must be Unstructured\(\), NM\(n, m"
    ):
        so.static(0.5, structure=structure)


@pytest.mark.parametrize(
    ("structure", "sparsity", "message"),
    [
        (
            so.NM(2, 4),
            None,
            r"axis 0 of 'a/kernel' with shape \(6, 8\) to be a multiple of 4; 6 is one "
            "of 1, 2, 3, 6.*with a mapping.*with where",
        ),
        (
            so.Block((2, 3)),
            0.5,
            r"axis 1 of 'a/kernel'.*multiple of 3; 8 is one of 1, ",
        ),
        (so.Block((1, 1, 2)), 0.5, "has more axes than 'a/kernel'"),
        (so.NM(1, 2, axis=2), None, r"names axis 2 of 'a/kernel'.*which it has not"),
        (so.Channel(-3), 0.5, r"names axis -3 of 'a/kernel'.*which it has not"),
        ({"c/*": so.NM(1, 2)}, 0.5, r"structure: the pattern 'c/\*' matches no leaf"),
        ({"a/*": so.NM(1, 2)}, None, "sparsity must be given: the structure of b/ker"),
        (so.NM(1, 2), 0.75, r"sparsity 0.75 cannot hold for 'a/kernel'.*sparsity 0.5;"),
        ({"*": so.NM(1, 2)}, 0.4, "sparsity 0.4 cannot hold for 'a/kernel'"),
    ],
)
def test_what_does_not_fit_a_kernel_is_named(structure, sparsity, message):
    with pytest.raises(ValueError, match=message):
        so.static(sparsity, structure=structure).leaves(PARAMS)


def test_a_sparsity_is_needed_where_no_structure_fixes_it():
    with pytest.raises(ValueError, match="sparsity must be given"):
        so.static(structure=so.Block(2))
    (a, b) = [p for p in so.static(structure=so.NM(1, 2)).leaves(PARAMS) if p.layer]
    assert (a.active, b.active) == (24, 16)
    # The same sparsity may be given twice.
    assert so.static(0.5, structure=so.NM(1, 2)).leaves(PARAMS)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (so.Block((2, 1, 1)), "spans axis 0 of 'kernel'.*stacks separate"),
        (so.Channel(0), "names axis 0 of 'kernel'.*stacks separate layers"),
        (so.NM(1, 3, axis=0), "names axis 0 of 'kernel'.*stacks separate layers"),
    ],
)
def test_a_stack_is_not_reached_over(structure, message):
    topology = so.static(2 / 3, structure=structure, dims=STACK)
    with pytest.raises(ValueError, match=message):
        topology.leaves({"kernel": jnp.ones((6, 4, 2))})


@pytest.mark.parametrize(
    ("structure", "columns", "message"),
    [
        (so.NM(1, 2), [[1, 1], [0, 1], [1, 0], [0, 0]], "between 0 and 2 active"),
        (so.NM(1, 2), [[1, 1], [1, 1], [1, 1], [1, 1]], "between 2 and 2 active"),
        (so.ConstantFanIn(), [[1, 1], [0, 1], [1, 0], [0, 1]], "between 2 and 3"),
        (so.Block((2, 1)), [[1, 0], [1, 0], [0, 1], [0, 0]], "a unit of 2 weights is"),
        (
            so.Channel(),
            [[1, 0], [1, 0], [1, 0], [1, 1]],
            "a unit of 4 weights is only partly act",
        ),
    ],
)
def test_masks_that_are_not_legal_are_refused(structure, columns, message):
    masks = {"kernel": jnp.array(columns, bool)}
    topology = so.static(masks=masks, structure=structure)
    with pytest.raises(ValueError, match=f"'kernel' is not legal for .*{message}"):
        topology.init(KEY, {"kernel": jnp.ones((4, 2))})


def test_masks_that_are_legal_are_taken():
    mask = jnp.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    for structure in (so.NM(1, 2), so.ConstantFanIn(), so.Unstructured(), so.Block(1)):
        masks, _ = so.rigl(
            masks={"kernel": mask}, structure=structure, every=1, stop=2
        ).init(KEY, {"kernel": jnp.ones((4, 2))})
        np.testing.assert_array_equal(masks["kernel"], mask)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_fan_in": -1}, ValueError, "min_fan_in must be at least 0, got -1"),
        ({"min_fan_in": 1.0}, TypeError, "min_fan_in must be an integer, got 1.0"),
        ({"min_fan_in": True}, TypeError, "min_fan_in must be an integer, got True"),
        (
            {"min_fan_in": 7},
            ValueError,
            "min_fan_in = 7 needs 56 active weights in 'a/kernel', which has 24 of 48, "
            "6 for each of 8 neurons",
        ),
        (
            {"min_fan_in": 4},
            ValueError,
            "min_fan_in = 4 needs 32 active weights in 'a/kernel'",
        ),
        (
            {"min_fan_in": 1, "structure": so.Block(2)},
            ValueError,
            r"min_fan_in applies to single weights, not to Block\(shape=\(2,\)\)",
        ),
    ],
)
def test_a_fan_in_that_cannot_be_kept_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        so.static(0.5, distribution="uniform", **options).leaves({"a": PARAMS["a"]})


def test_a_fan_in_is_kept_with_given_masks_of_single_weights_only():
    masks = {"kernel": jnp.ones((4, 2), bool)}
    topology = so.rigl(
        masks=masks, structure=so.Block(2), min_fan_in=1, every=1, stop=2
    )
    with pytest.raises(ValueError, match="min_fan_in applies to single weights"):
        topology.init(KEY, {"kernel": jnp.ones((4, 2))})


@pytest.mark.parametrize("structure", [so.NM(1, 2), so.ConstantFanIn()])
def test_one_threshold_for_all_weights_keeps_no_cells(structure):
    topology = so.gradual_magnitude(
        0.5, structure={"a/*": structure}, scope="global", every=1, stop=2
    )
    with pytest.raises(
        ValueError, match=r"global pruning cannot keep .* of 'a/kernel'"
    ):
        topology.init(KEY, PARAMS)


# A mapping gives each leaf its own.


def test_a_mapping_gives_leaves_their_own_structures():
    structure = {"a/*": so.NM(1, 2), "b/*": so.Channel()}
    topology = so.static(0.75, structure=structure)
    plans = {plan.path: plan for plan in topology.leaves(PARAMS) if plan.layer}
    # The sparsity applies where the structure does not fix it: one of four channels is
    # left.
    assert [plan.active for plan in plans.values()] == [24, 8]
    masks, _ = topology.init(KEY, PARAMS)
    groups = np.asarray(masks["a"]["kernel"]).reshape(3, 2, 8)
    np.testing.assert_array_equal(groups.sum(1), 1)
    columns = np.asarray(masks["b"]["kernel"]).sum(0)
    assert sorted(columns.tolist()) == [0, 0, 0, 8]


# Updates respect the structure.


@dataclasses.dataclass(frozen=True)
class Case:
    """A leaf, and its structure's numbers.

    Attributes:
      shape: shape of the leaf.
      structure: structure of the topology.
      groups: the shape in which axis ``axis`` is a group.
      axis: axis of ``groups``.
      dims: the axes of the leaf; None for the convention.
      method: method of the topology.
    """

    shape: tuple[int, ...]
    structure: so.NM
    groups: tuple[int, ...]
    axis: int
    dims: so.NeuronDims | None = None
    method: Callable = so.rigl


CASES = [
    Case((8, 3), so.NM(2, 4), (2, 4, 3), 1),
    Case((2, 6), so.NM(2, 3, axis=1), (2, 2, 3), 2, method=so.set_),
    Case((3, 1, 4, 2), so.NM(1, 4), (3, 1, 4, 2), 2),
    Case((2, 6, 2), so.NM(1, 2), (2, 3, 2, 2), 2, STACK, so.set_),
    Case((40, 2), so.NM(7, 40), (40, 2), 0),  # too long a group to be ranked
]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-38, 3e38, np.nan, np.inf, -np.inf]


def arrays(shape):
    normal = st.integers(0, 1000).map(
        lambda seed: np.random.default_rng(seed).normal(size=shape)
    )
    special = st.sampled_from(SPECIAL)
    return st.one_of(
        normal,
        special.map(lambda value: np.full(shape, value)),
        hnp.arrays(np.float64, shape, elements=special),
    ).map(lambda values: jnp.asarray(values, jnp.float32))


@functools.cache
def compiled(case):
    """Compile a topology that replaces all at step 0, and nothing in the end."""
    topology = case.method(
        structure=case.structure, dims=case.dims, every=1, stop=8, drop_fraction=1.0
    )

    @jax.jit
    def change(key, count, masks, param, grad):
        params = {"w": param}
        _, state = topology.init(key, params)
        masks, _ = topology.update(key, count, masks, state, params, {"w": grad})
        return masks

    return jax.jit(lambda key, param: topology.init(key, {"w": param})[0]), change


@examples(80)
@given(case=st.sampled_from(CASES), data=st.data())
def test_every_group_keeps_exactly_n(case, data):
    init, change = compiled(case)
    param = data.draw(arrays(case.shape), "weights")
    grad = data.draw(arrays(case.shape), "gradients")
    count = data.draw(st.integers(0, 8), "step")
    key = jax.random.key(data.draw(st.integers(0, 99), "seed"))
    first = init(key, param)
    for masks in (first, change(key, count, first, param, grad)):
        counts = np.asarray(masks["w"]).reshape(case.groups).sum(case.axis)
        np.testing.assert_array_equal(counts, case.structure.n)
    held = np.asarray(first["w"]) & ~np.isfinite(param)
    assert np.asarray(masks["w"])[held].all()


def test_groups_are_refilled_where_their_gradients_are():
    # Half of 4 active weights are dropped, 1 and 2, both of the second group, which
    # grows its two largest gradients; the gradients of the first group change nothing.
    mask = jnp.array([1, 1, 0, 0, 1, 1, 0, 0], bool)[:, None]
    param = jnp.array([5.0, 4, 0, 0, 1, 2, 0, 0])[:, None]
    grad = jnp.array([0.0, 0, 99, 98, 0, 1, 2, 3])[:, None]
    new = changed(so.NM(2, 4), mask, param, grad)
    np.testing.assert_array_equal(new[:, 0], [1, 1, 0, 0, 0, 0, 1, 1])


def test_fan_ins_are_refilled_where_their_gradients_are():
    # The three smallest of six are dropped: both of the second neuron, one of the
    # third.
    mask = jnp.array([[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]], bool)
    param = jnp.array([[9.0, 1, 8], [7, 2, 3], [0, 0, 0], [0, 0, 0]])
    grad = jnp.array([[0.0, 4, 0], [0, 0, 0], [9, 3, 1], [9, 5, 2]])
    new = changed(so.ConstantFanIn(), mask, param, grad)
    np.testing.assert_array_equal(new, [[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]])


def test_blocks_move_by_the_sums_of_their_scores():
    # Of the blocks 3 + 3 and 5 + 0 the second is dropped, though it has the largest
    # weight; the block of gradients 2 + 2 is grown before that of 3 + 0.
    mask = jnp.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)
    param = jnp.array([[3.0, -3, 5, 0], [0, 0, 0, 0]])
    grad = jnp.array([[0.0, 0, 0, 0], [3, 0, 2, -2]])
    new = changed(so.Block(2), mask, param, grad)
    np.testing.assert_array_equal(new, [[1, 1, 0, 0], [0, 0, 1, 1]])


def test_channels_move_by_the_sums_of_their_scores():
    mask = jnp.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)
    param = jnp.array([[3.0, 5, 0, 0], [3, 0, 0, 0]])
    grad = jnp.array([[0.0, 0, 3, 2], [0, 0, 0, 2]])
    new = changed(so.Channel(), mask, param, grad)
    np.testing.assert_array_equal(new, [[1, 0, 0, 1], [1, 0, 0, 1]])


def changed(structure, mask, param, grad):
    """Return the mask after one update of half of it."""
    topology = so.rigl(
        *(None,),
        masks={"w": mask},
        structure=structure,
        every=1,
        stop=2,
        drop_fraction=0.5,
        decay="constant",
    )
    masks, state = topology.init(KEY, {"w": param})
    masks, _ = topology.update(
        KEY, jnp.int32(0), masks, state, {"w": param}, {"w": grad}
    )
    return masks["w"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_dropped_for_what_scores_infinity(bad):
    # The sum over the first block overflows; the second holds a weight that no update
    # can turn into zero.
    mask = jnp.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)
    param = jnp.array([[3e38, 3e38, bad, 1], [0, 0, 0, 0]], jnp.float32)
    grad = jnp.array([[0.0, 0, 0, 0], [3, 0, 2, -2]])
    np.testing.assert_array_equal(
        changed(so.Block(2), mask, param, grad), [[0, 0, 1, 1], [0, 0, 1, 1]]
    )


def test_ablated_neurons_are_legal_under_a_constant_fan_in():
    mask = jnp.array([[True, False, True], [True, False, True], [False] * 3])
    params = {"w": jnp.ones((3, 3))}
    topology = so.static(masks={"w": mask}, structure=so.ConstantFanIn())
    masks, _ = topology.init(jax.random.key(0), params)
    np.testing.assert_array_equal(masks["w"], mask)


@pytest.mark.parametrize("is_inferred", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_two_of_four_lie_along_the_inputs_of_an_attention(heads, is_inferred):
    model = nn.MultiHeadDotProductAttention(heads, use_bias=False)
    x = jnp.ones((1, 2, 16))
    variables = model.init(jax.random.key(0), x)
    dims = so.infer_dims(model.apply, variables, x) if is_inferred else None
    topology = so.static(structure=so.NM(2, 4), dims=dims)
    masks, _ = topology.init(jax.random.key(0), variables["params"])
    for name in ("query", "key", "value"):
        groups = np.asarray(masks[name]["kernel"]).reshape(4, 4, 16)
        assert (groups.sum(1) == 2).all()
    out = np.asarray(masks["out"]["kernel"]).reshape(4, 4, 16)
    assert (out.sum(1) == 2).all()


def test_two_of_four_pass_over_an_axis_of_size_1():
    params = {"attn": {"out": {"kernel": jnp.ones((8, 1, 6))}}}
    masks, _ = so.static(structure=so.NM(2, 4)).init(jax.random.key(0), params)
    mask = np.asarray(masks["attn"]["out"]["kernel"]).reshape(2, 4, 6)
    assert (mask.sum(1) == 2).all()

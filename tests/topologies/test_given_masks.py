"""Continuing from a sparse network: its masks, and methods with density schedules."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.ranking import largest

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(20, 30)).astype(np.float32)
PARAMS = {
    "kernel": jnp.where(jnp.abs(WEIGHTS) > 0.7, WEIGHTS, 0),
    "bias": jnp.zeros(30),
}
PRESENT = int((PARAMS["kernel"] != 0).sum())


def trained(topology, steps, params=PARAMS):
    """Return masks, initially and after each step, with gradients everywhere."""
    tx = so.sparsify(optax.sgd(0.01), topology)
    state = tx.init(params)
    params = so.apply_masks(params, state)
    update, found = jax.jit(tx.update), [np.asarray(so.get_masks(state)["kernel"])]
    for step in range(steps):
        rng = np.random.default_rng(step)
        grads = jax.tree.map(
            lambda p, r=rng: jnp.float32(r.normal(size=p.shape)), params
        )
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(so.get_masks(state)["kernel"]))
    return found


# The masks of a checkpoint.


def test_masks_of_kernels_alone():
    masks = so.masks_of(PARAMS)
    np.testing.assert_array_equal(masks["kernel"], PARAMS["kernel"] != 0)
    assert masks["bias"] == optax.MaskedNode()
    (first,) = trained(so.static(masks=masks), 0)
    np.testing.assert_array_equal(first, PARAMS["kernel"] != 0)


def test_a_kernel_without_zeros_has_a_full_mask_and_nan_is_active():
    params = {"a": jnp.ones((3, 4)), "b": jnp.full((3, 4), jnp.nan).at[0].set(0)}
    masks = so.masks_of(params)
    assert masks["a"].all() and int(masks["b"].sum()) == 8


def test_what_is_a_kernel_can_be_said():
    params = {"a": jnp.eye(4), "b": jnp.eye(4)}
    masks = so.masks_of(params, where=lambda path, leaf: path == "a")
    assert masks["b"] == optax.MaskedNode() and int(masks["a"].sum()) == 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: so.masks_of({"a": jnp.zeros((4, 4))}),
            ValueError,
            "'a' is zero throughout",
        ),
        (
            lambda: so.masks_of({"a": jax.ShapeDtypeStruct((4, 4), jnp.float32)}),
            TypeError,
            "must hold arrays.*'a'",
        ),
        (
            lambda: so.masks_of(PARAMS, structure=so.NM(1, 2)),
            TypeError,
            "argument 'structure'",
        ),
        (lambda: so.masks_of(PARAMS, wher=None), TypeError, "argument 'wher'"),
    ],
)
def test_what_says_nothing_of_masks_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda masks: so.static(masks=masks),
        lambda masks: so.rigl(masks=masks, every=1, stop=5),
        lambda masks: so.gradual_magnitude(0.9, masks=masks, every=1, stop=5),
        lambda masks: so.phases((0, so.static(masks=masks)), (5, so.static(0.9))),
    ],
)
def test_zero_biases_are_no_masks(make):
    masks = jax.tree.map(lambda p: p != 0, PARAMS)
    with pytest.raises(ValueError, match=r"'bias' has no active weight.*so\.masks_of"):
        so.sparsify(optax.sgd(0.1), make(masks)).init(PARAMS)


# Density schedules with given masks.

MASKS = so.masks_of(PARAMS)
MOVING = {
    "gradual": lambda **options: so.gradual_magnitude(
        0.9, every=2, stop=9, masks=MASKS, **options
    ),
    "global": lambda **options: so.gradual_magnitude(
        0.9, every=2, stop=9, masks=MASKS, scope="global", **options
    ),
    "scheduled": lambda **options: so.gradual_magnitude(
        schedule=optax.linear_schedule(0.0, 0.9, 8),
        every=2,
        stop=9,
        masks=MASKS,
        **options,
    ),
    "one_shot": lambda **options: so.one_shot(0.9, at=3, masks=MASKS, **options),
}


@pytest.mark.parametrize("name", MOVING)
def test_what_is_pruned_is_not_grown_again(name):
    masks = trained(MOVING[name](), 11)
    np.testing.assert_array_equal(masks[0], MASKS["kernel"])
    for old, new in itertools.pairwise(masks):
        assert not (new & ~old).any()
    assert masks[-1].sum() == 60


@pytest.mark.parametrize("name", MOVING)
def test_sparser_masks_stay_as_they_are(name):
    masks = {"kernel": largest(WEIGHTS, 40), "bias": None}
    topology = MOVING[name](distribution={"*": 0.9} if name != "scheduled" else {})
    topology = so.topologies.Rewiring(**{**_fields(topology), "masks": masks})
    for mask in trained(topology, 11):
        np.testing.assert_array_equal(mask, masks["kernel"])
    assert topology.leaves(PARAMS)[1].active == 40


def _fields(topology):
    return {name: getattr(topology, name) for name in type(topology).__match_args__} | {
        name: getattr(topology, name) for name in topology.__dataclass_fields__
    }


def test_given_masks_are_pruned_to_the_initial_sparsity():
    topology = so.gradual_magnitude(
        0.9, every=2, stop=9, masks=MASKS, initial_sparsity=0.75
    )
    (first,) = trained(topology, 0)
    np.testing.assert_array_equal(first, largest(WEIGHTS, 150))
    # From shapes alone only the masks are known.
    shapes = jax.eval_shape(lambda: PARAMS)
    masks, _ = topology.init(KEY, shapes)
    assert int(masks["kernel"].sum()) == 150
    assert not (masks["kernel"] & ~MASKS["kernel"]).any()


def test_granet_prunes_and_moves_given_masks():
    topology = so.granet(0.9, every=2, stop=9, masks=MASKS)
    masks = trained(topology, 11)
    np.testing.assert_array_equal(masks[0][~MASKS["kernel"]], False)
    counts = [int(mask.sum()) for mask in masks]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 60
    assert any((new & ~old).any() for old, new in itertools.pairwise(masks))


def test_ac_dc_grows_where_its_schedule_rises():
    topology = so.ac_dc(0.9, compress=[2, 6], decompress=[4], masks=MASKS)
    counts = [int(mask.sum()) for mask in trained(topology, 8)]
    assert counts == [PRESENT] * 3 + [60] * 2 + [600] * 2 + [60] * 2


def test_a_pruned_network_is_handed_on():
    topology = so.phases(
        (0, so.static(0.8)),
        (3, so.gradual_magnitude(0.9, every=2, start=3, stop=10)),
        (10, so.static(masks=so.PREVIOUS_MASKS)),
    )
    masks = trained(topology, 12)
    counts = [int(mask.sum()) for mask in masks]
    assert counts[0] == 120 and counts[-1] == 60
    for old, new in itertools.pairwise(masks):
        assert not (new & ~old).any()


def test_one_shot_does_not_grow_what_is_handed_on():
    topology = so.phases((0, so.static(0.9)), (3, so.one_shot(0.5, at=4)))
    first, *_, last = trained(topology, 6)
    np.testing.assert_array_equal(first, last)


def test_a_schedule_that_rises_grows():
    topology = so.phases(
        (0, so.static(0.9)),
        (2, so.gradual_magnitude(0.5, initial_sparsity=0.8, every=2, start=2, stop=9)),
    )
    counts = [int(mask.sum()) for mask in trained(topology, 10)]
    assert counts[0] == 60 and counts[-1] == 300

"""SNFS: redistribution between layers, worked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.topologies.methods.snfs import share
from tests.helpers.single_updates import ALWAYS, KEY, array, bits, updated


def test_snfs_shares_out_what_all_layers_drop():
    # Layers a and b drop 2 of 4 each. The mean momenta of their active weights are 0.1
    # times 3 and 1, so of the 4 lost weights a gets 3 and b gets one.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    param = array(4, -3, 2, -1, 0, 0, 0, 0)
    masks = {"a": mask, "b": mask, "bias": optax.MaskedNode()}
    grads = {
        "a": array(3, 3, 3, 3, 8, 7, 6, 5),
        "b": array(-1, 1, 1, 1, 8, 9, 7, 6),
        "bias": array(99),
    }
    params = {"a": param, "b": param, "bias": array(1)}
    new = updated(so.snfs(masks=masks, **ALWAYS), masks, params, grads)
    np.testing.assert_array_equal(new["a"], bits(1, 1, 0, 0, 1, 1, 1, 0))
    np.testing.assert_array_equal(new["b"], bits(1, 1, 0, 0, 0, 1, 0, 0))


def test_snfs_counts_the_momentum_of_what_it_drops():
    # As above, but the momentum of a is that of the two weights it drops.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    param = array(4, -3, 2, -1, 0, 0, 0, 0)
    masks = {"a": mask, "b": mask}
    grads = {"a": array(0, 0, 6, 6, 8, 7, 6, 5), "b": array(1, 1, 1, 1, 8, 9, 7, 6)}
    new = updated(
        so.snfs(masks=masks, **ALWAYS), masks, {"a": param, "b": param}, grads
    )
    assert [int(new[name].sum()) for name in "ab"] == [5, 3]


def test_snfs_grows_by_the_mean_of_all_gradients():
    mask = bits(1, 1, 0, 0)
    topology = so.snfs(momentum=0.5, masks={"w": mask}, every=3, stop=9)
    params = {"w": array(2, 1, 0, 0)}
    _, state = topology.init(KEY, params)
    for count, grad in enumerate(
        [array(0, 0, 8, 0), array(0, 0, 0, 2), array(1, 0, 0, 2)]
    ):
        state = topology.observe(jnp.int32(count), state, {"w": grad})
    # 8 / 8 against 2 / 4 + 2 / 2.
    np.testing.assert_array_equal(state.memory["w"], array(0.5, 0, 1, 1.5))
    bad = {"w": array(np.nan, np.inf, -np.inf, 0)}
    state = topology.observe(jnp.int32(3), state, bad)
    np.testing.assert_array_equal(state.memory["w"], array(0.25, 0, 0.5, 0.75))


def test_snfs_conserves_the_total_within_any_room():
    # The first layer has room for only one more weight.
    topology = so.snfs(0.4, distribution={"a": 0.1}, **ALWAYS | {"stop": 9})
    params = {"a": jnp.ones((2, 5)), "b": jnp.ones((4, 6))}
    masks, state = topology.init(KEY, params)
    first = {name: int(mask.sum()) for name, mask in masks.items()}
    assert first == {"a": 9, "b": 14}
    observe, update = jax.jit(topology.observe), jax.jit(topology.update)
    seen = set()
    for step in range(6):
        key = jax.random.key(step)
        grads = {
            name: jax.random.normal(jax.random.fold_in(key, i), mask.shape)
            * (100 if i == step % 2 else 1)
            for i, (name, mask) in enumerate(masks.items())
        }
        state = observe(jnp.int32(step), state, grads)
        params = so.apply_masks(grads, masks)
        masks, state = update(key, jnp.int32(step), masks, state, params, grads)
        counts = [int(mask.sum()) for mask in masks.values()]
        assert sum(counts) == 23
        seen.add(tuple(counts))
    assert len(seen) > 2


def test_snfs_needs_single_weights_and_a_momentum():
    with pytest.raises(
        ValueError, match=r"needs a memory .* and Unstructured\(\), got"
    ):
        dataclasses.replace(so.snfs(0.5, every=1, stop=2), structure=so.Channel())
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.0"):
        so.snfs(0.5, momentum=1.0, every=1, stop=2)


@pytest.mark.parametrize(
    ("total", "weights", "room", "expected"),
    [
        (6, [3, 1, 1], [2, 9, 9], [2, 2, 2]),
        (6, [3, 1, 2], [9, 9, 9], [3, 1, 2]),
        # Remainders 1/2 and 1/2: the first layer gets the odd one.
        (3, [1, 1], [9, 9], [2, 1]),
        (5, [0, 0, 0], [9, 9, 9], [2, 2, 1]),
        (5, [1, 0, 0], [2, 9, 9], [2, 2, 1]),
        (5, [np.nan, 1, 0], [9, 9, 9], [0, 5, 0]),
        (9, [1, 1], [3, 4], [3, 4]),
        (0, [1, 2], [3, 4], [0, 0]),
        # Beyond what a float32 counts.
        (2**24 + 3, [1, 0], [2**25, 2**25], [2**24 + 3, 0]),
        (2**25 + 6, [1, 1], [2**26, 2**26], [2**24 + 3, 2**24 + 3]),
        # Sums beyond the largest float32.
        (3000, [3e38, 3e38], [5000, 5000], [1500, 1500]),
    ],
)
def test_shares_by_hand(total, weights, room, expected):
    shares = share(jnp.int32(total), jnp.array(weights, jnp.float32), jnp.array(room))
    assert sum(shares.tolist()) == sum(expected)
    np.testing.assert_allclose(shares, expected, atol=4 if total > 2**24 else 0)

"""Masks of one bit per weight."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sparseopt_jax as so
from sparseopt_jax.masks.packing import is_packed, pack, unpack
from tests.helpers.examples import examples
from tests.helpers.optimizers import SCHEDULE, gradients, one_step, random_tree, start

# Rows of less than a byte, of whole bytes and of more: one program for each shape.
SHAPES = [(1,), (7,), (8,), (20,), (3, 9), (5, 2, 16), (2, 1, 3, 17)]


@examples()
@given(hnp.arrays(np.bool_, st.sampled_from(SHAPES), elements=st.booleans()))
def test_nothing_is_lost(mask):
    tree = {"kernel": jnp.asarray(mask), "bias": optax.MaskedNode()}
    packed = pack(tree)
    assert packed["kernel"].bits.dtype == jnp.uint8
    assert packed["kernel"].bits.shape == (*mask.shape[:-1], -(-mask.shape[-1] // 8))
    restored = unpack(packed)
    assert restored["bias"] == optax.MaskedNode()
    assert restored["kernel"].dtype == jnp.bool_
    np.testing.assert_array_equal(restored["kernel"], mask)


def test_the_first_weight_is_the_lowest_bit():
    mask = jnp.array([True, False, False, True] + [False] * 4 + [True])
    np.testing.assert_array_equal(pack(mask).bits, [0b1001, 1])


FULL_CONV = {"conv/*": 0.0, "dense/*": 0.5}
METHODS = {
    "rigl_beside_a_full_layer": so.rigl(0.5, distribution=FULL_CONV, **SCHEDULE),
    "set_beside_a_full_layer": so.set_(0.5, distribution=FULL_CONV, **SCHEDULE),
    "static": so.static(0.5),
    "set": so.set_(0.5, **SCHEDULE, track_explored=True),
    "rigl": so.rigl(0.5, **SCHEDULE, track_explored=True),
}
INNER = optax.chain(so.scale_by_sparseopt(), optax.sgd(0.1, momentum=0.9))


def topology_tracks(method):
    return METHODS[method].track_explored


def train(method, **options):
    topology = METHODS[method]
    tx = so.sparsify(INNER, topology, **options)
    step = jax.jit(one_step(tx))
    change = jax.jit(functools.partial(so.update_topology, tx))
    now = start(tx, random_tree(0))
    for count in range(8):
        grads = gradients(count)
        due = bool(options.get("host_updates") and topology.due(count))
        if due and topology.replaces_step:
            state, params = change(grads, now.state, now.params)
            now = now._replace(params=params, state=state)
        now = step(grads, *now)
        if due and not topology.replaces_step:
            state, params = change(grads, now.state, now.params)
            now = now._replace(params=params, state=state)
    return now


@pytest.mark.parametrize(
    ("method", "host_updates"),
    [
        *(("static", False), ("set", False), ("rigl", True)),
        *(("rigl_beside_a_full_layer", False), ("set_beside_a_full_layer", True)),
        *(
            pytest.param(method, host, marks=pytest.mark.slow)
            for method, host in (
                *(("static", True), ("set", True), ("rigl", False)),
                *(("rigl_beside_a_full_layer", True),),
                *(("set_beside_a_full_layer", False),),
            )
        ),
    ],
)
def test_a_run_is_the_same_to_the_last_bit(method, host_updates):
    plain = train(method, host_updates=host_updates)
    packed = train(method, host_updates=host_updates, packed=True)
    chex.assert_trees_all_equal(packed.params, plain.params)
    masks, expected = so.get_masks(packed.state), so.get_masks(plain.state)
    assert jax.tree.structure(masks) == jax.tree.structure(expected)
    chex.assert_trees_all_equal(masks, expected)
    for part in ("inner_state", "count"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(packed.sparse, part),
            getattr(plain.sparse, part),
        )
    stored = packed.sparse.masks
    assert is_packed(stored["conv"]["kernel"]) and is_packed(stored["dense"]["kernel"])
    assert so.metrics(packed.params, packed.state) == so.metrics(
        plain.params, plain.state
    )
    if method != "static":
        assert packed.changed_at == plain.changed_at == 5
    if topology_tracks(method):
        assert is_packed(packed.sparse.topology_state.explored["conv"]["kernel"])


def test_it_takes_an_eighth():
    def size(state):
        return sum(x.nbytes for x in jax.tree.leaves(state.masks))

    params = {"kernel": jnp.ones((64, 128))}
    plain = so.sparsify(INNER, METHODS["rigl"]).init(params)
    packed = so.sparsify(INNER, METHODS["rigl"], packed=True).init(params)
    # Eight bytes more give the number of entries in the last byte of a row.
    assert size(plain) == 8 * (size(packed) - 8) == 64 * 128

"""An unpublished method in one file: only a new stage.

An update drops the largest weights of every layer in addition to the smallest, so that
no layer depends on a few. Storages, structures, checkpoints and plans are the
library's.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.topologies import Draft, Drop, Grow, LayerStage, Rewiring

# The method.


@dataclasses.dataclass(frozen=True)
class DropLargest(LayerStage):
    """Also drop the units of each layer with the highest scores.

    Attributes:
      count: number of units.
    """

    count: int

    def __call__(self, draft: Draft) -> Draft:
        units, free = draft.units, draft.kept & ~draft.held
        largest = units.select(draft.drop, self.count, where=free, within="layer")
        return draft._replace(kept=draft.kept & ~(largest & free))


def humble(sparsity: float, *, count: int = 1, every: int, stop: int, **options):
    return Rewiring(
        name="humble",
        sparsity=sparsity,
        schedule=so.schedules.UpdateSchedule(every, 0, stop, drop_fraction=0.25),
        stages=(Drop(), DropLargest(count), Grow(again=False)),
        **options,
    )


# Tests that it works.

PARAMS = {
    "first": {"kernel": jax.random.normal(jax.random.key(1), (8, 12))},
    "second": {"kernel": jax.random.normal(jax.random.key(2), (12, 4))},
}
STORAGES = {
    "bytes": {},
    "bits": {"packed": True},
    "active weights": {"compact": True},
    "from the host": {"host_updates": True},
}


TOPOLOGY = humble(0.5, every=2, stop=9)


@functools.cache
def train(storage):
    """Return the first masks, and masks and weights after each of four steps."""
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), TOPOLOGY, **STORAGES[storage])
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    moments = [(so.get_masks(state), params)]
    step = jax.jit(tx.update)
    update_masks = jax.jit(functools.partial(so.update_topology, tx))
    for count in range(4):
        grads = jax.tree.map(jnp.cos, params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        if storage == "from the host" and TOPOLOGY.due(count):
            state, params = update_masks(grads, state, params)
        moments.append((so.get_masks(state), params))
    return moments


def updated(topology):
    """Return the first masks, and those after one update."""

    @jax.jit
    def both():
        masks, state = topology.init(jax.random.key(0), PARAMS)
        new, _ = topology.update(
            jax.random.key(1), jnp.int32(0), masks, state, PARAMS, PARAMS
        )
        return masks, new

    return both()


def pairs(tree, other):
    return zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_made_up_method_trains_in_every_storage(storage):
    moments = train(storage)
    for (masks, params), (expected, _) in zip(moments, train("bytes"), strict=True):
        jax.tree.map(np.testing.assert_array_equal, masks, expected)
        for mask, param in pairs(masks, params):
            assert not np.where(mask, 0, param).any()
    for count, ((old, _), (new, _)) in enumerate(itertools.pairwise(moments)):
        for before, after in pairs(old, new):
            assert (before != after).any() == TOPOLOGY.due(count)
            assert before.sum() == after.sum()


def test_the_largest_weights_are_given_up():
    masks, new = updated(humble(0.5, count=2, every=1, stop=9))
    for name, layer in PARAMS.items():
        before, after = (tree[name]["kernel"].ravel() for tree in (masks, new))
        sizes = np.where(before, np.abs(layer["kernel"].ravel()), 0)
        assert not after[np.argsort(-sizes)[:2]].any()
        assert after.sum() == before.sum()


@pytest.mark.parametrize(
    "structure",
    [so.NM(2, 4), so.ConstantFanIn(), so.Block((2, 2)), so.Channel()],
    ids=str,
)
def test_it_keeps_to_any_structure(structure):
    sparsity = None if structure.density else 0.5
    masks, new = updated(humble(sparsity, every=1, stop=9, structure=structure))
    so.static(masks=new, structure=structure).leaves(
        PARAMS
    )  # raises if one is not legal
    assert all((before != after).any() for before, after in pairs(masks, new))


def test_it_says_what_it_does():
    topology = humble(0.5, every=2, stop=9)
    assert topology.keeps_counts and not topology.crosses_layers
    assert topology.dense_gradients == 0.0
    assert topology == humble(0.5, every=2, stop=9)
    assert topology != humble(0.5, count=2, every=2, stop=9)
    assert "Masks are updated 5 times" in str(so.plan(PARAMS, topology))

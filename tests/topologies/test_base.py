"""A mechanism that no rewiring expresses: a user-defined topology."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.checkpoint.record import describe_topology
from sparseopt_jax.topologies.memory import GradientMemory
from sparseopt_jax.topologies.schedules import FOREVER

FIRST = so.static(0.5)


@dataclasses.dataclass(frozen=True)
class Rolling(so.Topology):
    """Masks that shift by one neuron at an interval.

    Attributes:
      every: steps between updates.
    """

    every: int
    name: ClassVar[str] = "rolling"
    keeps_counts: ClassVar[bool] = True
    dense_gradients: ClassVar[float] = 0.0

    def leaves(self, params):
        return FIRST.leaves(params)

    def init(self, key, params):
        return FIRST.init(key, params)

    def due(self, count):
        return count % self.every == 0

    def update(self, key, count, masks, state, params, grads):
        del key, params, grads

        def roll(mask):
            return jnp.roll(mask, 1, -1)

        new = jax.tree.map(roll, masks)
        return new, state._replace(
            updated_at=jnp.asarray(count, jnp.int32),
            fan_ins=jax.tree.map(roll, state.fan_ins),
            grown=jax.tree.map(lambda m, n: jnp.sum(n & ~m), masks, new),
        )


PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (6, 8)), "bias": jnp.ones(8)}
STORAGES = {
    "bytes": {},
    "bits": {"packed": True},
    "active weights": {"compact": True},
    "from the host": {"host_updates": True},
}


@pytest.mark.parametrize("storage", STORAGES)
def test_a_topology_of_ones_own_trains_in_every_storage(storage):
    topology, options = Rolling(every=2), STORAGES[storage]
    tx = so.sparsify(optax.adam(0.1), topology, **options)
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    first = np.asarray(so.get_masks(state)["kernel"])
    step = jax.jit(tx.update)
    for count in range(4):
        grads = jax.tree.map(jnp.sin, params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        if "host_updates" in options and topology.due(count):
            state, params = so.update_topology(tx, grads, state, params)
        mask = so.get_masks(state)["kernel"]
        np.testing.assert_array_equal(mask, np.roll(first, count // 2 + 1, -1))
        assert not np.where(mask, 0, params["kernel"]).any()


def test_the_next_step_that_is_due_is_searched():
    assert [int(Rolling(3).next_due(jnp.int32(n))) for n in range(5)] == [0, 3, 3, 3, 6]
    assert Rolling(2**20).next_due(jnp.int32(1)) == FOREVER


def test_it_is_planned_and_recorded_like_any_other():
    plan = so.plan(PARAMS, Rolling(every=2))
    assert plan.active == 24
    record = describe_topology(Rolling(every=2))
    assert record["method"] == "rolling" and record["every"] == 2
    assert record != describe_topology(Rolling(every=3))


def test_it_trains_in_smet():
    topology = Rolling(every=2)
    with pytest.raises(ValueError, match="rolling names no sparsity"):
        so.smet(0.1, topology)
    tx = so.smet(0.1, topology, density_exponent=0)
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
    assert not np.where(so.get_masks(state)["kernel"], 0, params["kernel"]).any()


@pytest.mark.parametrize(
    ("base", "missing"),
    [
        (so.Topology, "(due|init|leaves|name|update)"),
        (so.structures.Structure, "units"),
        (so.scores.DeclaredScore, "__call__"),
        (GradientMemory, "(dense_gradients|observe)"),
    ],
)
def test_what_a_part_lacks_is_told_when_it_is_made(base, missing):
    unfinished = type("Unfinished", (base,), {})
    with pytest.raises(TypeError, match=f"abstract.*{missing}"):
        unfinished()

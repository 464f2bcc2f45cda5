"""Checkpoints of runs on several devices, restored on other devices.

Needs eight devices: ``tests/distributed/test_devices.py`` provides them.
"""

import functools

import flax.jax_utils
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import sparseopt_jax as so
from sparseopt_jax.arrays.checksum import checksum
from sparseopt_jax.checkpoint import Checkpoints
from tests.helpers.checkpoint_program import (
    batch,
    gradients,
    leaves,
    new_state,
    new_state_on,
    shapes_on,
    shardings_on,
    topology,
    train_step,
    train_step_on,
)

both_methods = pytest.mark.parametrize("method", ["set", "rigl"])


def assert_same_bits(actual, expected):
    actual, expected = leaves(actual), leaves(expected)
    assert list(actual) == list(expected)
    for path, x in expected.items():
        assert actual[path].tobytes() == x.tobytes(), path


def assert_same_masks(state, other):
    jax.tree.map(
        np.testing.assert_array_equal, so.get_masks(state), so.get_masks(other)
    )


def mesh_of(*sizes, kind=AxisType.Auto):
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    names = ("data", "model")[: len(sizes)]
    return Mesh(devices, names, axis_types=(kind,) * len(sizes))


def shardings(state):
    return jax.tree.map(lambda x: x.sharding, state)


def trained(state, start, stop, step=train_step):
    for index in range(start, stop):
        state = step(state, index)
    return state


# Masks are updated at steps 2, 5 and 8: once in each part of a run.


@pytest.mark.parametrize(
    ("method", "sizes"), [("set", (8,)), ("rigl", (8,)), ("rigl", (4, 2))]
)
def test_a_resumed_run_on_a_mesh_is_the_uninterrupted_one(method, sizes, tmp_path):
    mesh = mesh_of(*sizes)
    step = train_step_on(mesh, method)
    with Checkpoints(tmp_path) as checkpoints:
        state = trained(new_state_on(mesh, method), 0, 4, step)
        checkpoints.save(4, state)
        expected = trained(state, 4, 7, step)
        state, _ = checkpoints.restore(shapes_on(mesh, method))
    assert shardings(state) == shardings_on(mesh, method)
    assert_same_bits(trained(state, 4, 7, step), expected)


@both_methods
def test_a_resumed_run_under_pmap_is_the_uninterrupted_one(method, tmp_path):
    @functools.partial(jax.pmap, axis_name="devices", donate_argnums=0)
    def replica_step(state, x, y):
        grads = jax.lax.pmean(gradients(state, x, y), "devices")
        return state.apply_gradients(grads=grads)

    def step(state, index):
        parts = (a.reshape(8, -1, a.shape[-1]) for a in batch(index))
        return replica_step(state, *parts)

    replicate, unreplicate = flax.jax_utils.replicate, flax.jax_utils.unreplicate
    with Checkpoints(tmp_path / "one") as one, Checkpoints(tmp_path / "all") as all_:
        state = trained(replicate(new_state(method)), 0, 4, step)
        one.save(4, unreplicate(state))
        all_.save(4, state)
        expected = trained(state, 4, 7, step)
        state, _ = one.restore(new_state(method))
        assert_same_bits(trained(replicate(state), 4, 7, step), expected)
        # Replicas may still be saved, for the same number of devices.
        state, _ = all_.restore(replicate(new_state(method)))
        assert_same_bits(trained(state, 4, 7, step), expected)


@both_methods
def test_masks_are_the_same_on_ever_fewer_devices(method, tmp_path):
    eight, four = mesh_of(8), mesh_of(2, 2)
    alone = trained(new_state(method), 0, 4)
    state = trained(new_state_on(eight, method), 0, 4, train_step_on(eight, method))
    assert_same_masks(state, alone)

    fewer = [
        (4, 7, shapes_on(four, method), train_step_on(four, method)),
        (7, 10, new_state(method), train_step),
    ]
    for start, stop, template, step in fewer:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(start, state, {"index": start})
            restored, data = checkpoints.restore(template)
        assert data == {"index": start}
        assert_same_bits(restored, state)
        assert shardings(restored) == shardings(template)
        state = trained(restored, start, stop, step)
        alone = trained(alone, start, stop)
        assert_same_masks(state, alone)
    for path, x in leaves(alone).items():
        np.testing.assert_allclose(leaves(state)[path], x, rtol=1e-4, atol=1e-5)


def test_another_run_is_named_on_a_mesh_too(tmp_path):
    mesh = mesh_of(8)
    with Checkpoints(tmp_path, topology=topology("set")) as checkpoints:
        checkpoints.save(1, new_state_on(mesh, "set"))
    with (
        Checkpoints(tmp_path, topology=topology("set", 0.75)) as checkpoints,
        pytest.raises(
            ValueError, match=r"sparsity: 0\.5 .* 0\.75(.|\n)*active weights"
        ),
    ):
        checkpoints.restore(new_state("set", sparsity=0.75))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_checksum_does_not_depend_on_the_mesh(kind):
    x = jax.random.normal(jax.random.key(0), (16, 8))
    expected = checksum(x)
    for sizes in [(8,), (4, 2), (2, 4)]:
        mesh = mesh_of(*sizes, kind=kind)
        spec = jax.sharding.PartitionSpec(*mesh.axis_names)
        sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        assert checksum(sharded) == expected

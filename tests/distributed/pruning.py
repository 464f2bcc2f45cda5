"""Calibration and pruning of sharded networks: one device's results, sharded alike.

Needs eight devices: ``tests/distributed/test_devices.py`` provides them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparseopt_jax as so

X = jax.random.normal(jax.random.key(0), (96, 48)) + 0.5
KERNEL = jax.random.normal(jax.random.key(1), (48, 16))


def dense(params, x):
    return x @ params["kernel"]


def calibration_on_one_device():
    return so.calibrate(dense, {"kernel": KERNEL}, [X])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [(None, "model"), ("data", "model"), ()])
def test_a_sharded_network(kind, spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    params = {"kernel": jax.device_put(KERNEL, sharding)}
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data", None)))

    def apply(params, x):
        # Gathered before the product, as explicit axes require.
        whole = NamedSharding(mesh, PartitionSpec(None, None))
        kernel = params["kernel"]
        if kind == AxisType.Explicit:
            kernel = jax.sharding.reshard(kernel, whole)
        return x @ kernel

    expected = calibration_on_one_device()
    with jax.set_mesh(mesh):
        calibration = so.calibrate(apply, params, [x])
    for name in ("mean", "variance", "norm", "gram"):
        np.testing.assert_allclose(
            getattr(calibration["kernel"], name),
            getattr(expected["kernel"], name),
            rtol=1e-4,
            atol=1e-4,
        )

    def assert_same(pruned, alone):
        mask, kernel = pruned.masks["kernel"], pruned.params["kernel"]
        np.testing.assert_array_equal(mask, alone.masks["kernel"])
        np.testing.assert_allclose(kernel, alone.params["kernel"], rtol=1e-3, atol=1e-5)
        assert kernel.sharding.is_equivalent_to(sharding, 2)
        assert mask.sharding.is_equivalent_to(sharding, 2)

    for method in ("magnitude", "random", "wanda", "sparsegpt"):
        alone = so.prune({"kernel": KERNEL}, method, sparsity=0.5, calibration=expected)
        with jax.set_mesh(mesh):
            pruned = so.prune(params, method, sparsity=0.5, calibration=calibration)
        assert_same(pruned, alone)
    refined_alone = so.dsnot(*alone, expected, {"kernel": KERNEL})
    with jax.set_mesh(mesh):
        refined = so.dsnot(*pruned, calibration, params)
    assert_same(refined, refined_alone)
    options = {"sparsity": 0.5, "scope": "global"}
    with jax.set_mesh(mesh):
        pruned = so.prune(params, **options)
    assert_same(pruned, so.prune({"kernel": KERNEL}, **options))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_images_split_over_devices(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    images = jax.random.normal(jax.random.key(2), (8, 5, 5, 4))
    params = {"kernel": jax.random.normal(jax.random.key(3), (3, 3, 2, 6))}

    def apply(params, x):
        return jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    expected = so.calibrate(apply, params, [images])["kernel"]
    split = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        inputs = so.calibrate(apply, replicated, [split, split])["kernel"]
    assert float(inputs.count) == 400
    np.testing.assert_allclose(inputs.gram, 2 * expected.gram, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(inputs.mean, expected.mean, rtol=1e-3, atol=1e-5)
    assert jnp.isfinite(inputs.variance).all()


def test_random_masks_and_weights_outside_of_set_mesh():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Explicit,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    whole = {"kernel": KERNEL}
    split = {"kernel": jax.device_put(KERNEL, sharding)}

    def results(params):
        masks = so.prune(params, "random", sparsity=0.5).masks
        state = so.sparsify(optax.sgd(0.1), so.static(0.5)).init(params)
        filled = so.sparse_init(params, masks, 0)
        return masks["kernel"], so.get_masks(state)["kernel"], filled["kernel"]

    for found, expected in zip(results(split), results(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert found.sharding.is_equivalent_to(sharding, 2)

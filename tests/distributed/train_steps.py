"""One train step for a single device, a mesh, ``pmap`` and ``shard_map``: one result.

Needs eight devices: ``tests/distributed/test_devices.py`` provides them.
"""

import functools

import flax.linen as nn
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so

REPLICAS = 8
BATCH = 32

COMPILATIONS = []


@jax.monitoring.register_event_duration_secs_listener
def note_compilation(event, seconds, **_):
    if event.endswith("backend_compile_duration"):
        COMPILATIONS.append(seconds)


def run(step, state, steps, prepare):
    """Train, and return the last state and metrics.

    Wait for each step: with more steps queued than cores, one device could wait for
    another that never gets to run.
    """
    metrics = None
    for count in range(steps):
        batch = prepare(batch_at(count))
        COMPILATIONS.clear()
        state, metrics = jax.block_until_ready(step(state, batch))
        assert len(COMPILATIONS) == (1 if count == 0 else 0)
    return state, metrics


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(24)(x)))


class NormNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(24)(x)
        x = nn.BatchNorm(use_running_average=False, momentum=0.5)(x)
        return nn.Dense(3)(nn.relu(x))


def loss_fn(params, batch):
    x, y = batch
    loss = jnp.mean((Net().apply({"params": params}, x) - y) ** 2)
    return loss, {"mean_y": jnp.mean(y)}


def norm_loss_fn(params, batch_stats, batch):
    x, y = batch
    out, changed = NormNet().apply(
        {"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"]
    )
    return jnp.mean((out - y) ** 2), ({}, changed["batch_stats"])


def batch_at(step):
    """Return inputs, and noisy outputs of a fixed function of them."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(BATCH, 8)).astype(np.float32)
    y = np.stack([x[:, 0] * x[:, 1], np.sin(x[:, 2]), x[:, 3]], 1)
    return x, (y + 0.1 * rng.normal(size=y.shape)).astype(np.float32)


def split(tree):
    return jax.tree.map(lambda x: x.reshape(REPLICAS, -1, *x.shape[1:]), tree)


def make_state(method, model=Net, **options):
    topology = method(0.7, every=10, stop=900, **options)
    variables = model().init(jax.random.key(0), jnp.ones((1, 8)))
    return so.linen.TrainState.create(
        apply_fn=None,
        tx=so.sparse_sgd(0.05, topology, momentum=0.9, sparseopt=True),
        **variables,
    )


def kernels(tree):
    return {name: np.asarray(layer["kernel"]) for name, layer in tree.items()}


def all_replicas_are_equal(tree):
    def is_key(x):
        return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

    arrays = [
        np.asarray(jax.random.key_data(x) if is_key(x) else x)
        for x in jax.tree.leaves(tree)
    ]
    return all((x == x[:1]).all() for x in arrays)


@functools.cache
def trained_alone(method, steps):
    state = make_state(method)
    step = jax.jit(so.make_train_step(loss_fn), donate_argnums=0)
    return run(step, state, steps, lambda batch: batch)[0]


@pytest.mark.parametrize("method", [so.set_, so.rigl])
def test_replicas_agree_bit_for_bit_after_a_thousand_steps(method):
    state = jax_utils.replicate(make_state(method))
    first = kernels(so.get_masks(state))
    state, metrics = run(so.pmap_train_step(loss_fn), state, 1000, split)
    assert all_replicas_are_equal((state.params, state.opt_state))
    _, y = batch_at(999)
    np.testing.assert_allclose(metrics["mean_y"], np.mean(y), rtol=1e-5)

    # Replicas sum in another order than one device, which changes weights by rounding:
    # masks are equal if no two scores at the threshold are that close.
    alone = trained_alone(method, 1000)
    masks, expected = (kernels(so.get_masks(s)) for s in (state, alone))
    for name, mask in masks.items():
        assert (mask != first[name]).any()
        np.testing.assert_array_equal(mask[0], expected[name])
    for name, kernel in kernels(state.params).items():
        np.testing.assert_allclose(
            kernel[0], kernels(alone.params)[name], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    "topology",
    [
        so.rigl(structure=so.NM(2, 4), every=10, stop=900),
        so.srigl(0.7, gamma_sal=0.5, every=10, stop=900),
        so.snfs(0.7, every=10, stop=900),
        so.sr_ste(0.7),
    ],
    ids=["rigl_n_of_m", "srigl", "snfs", "sr_ste"],
)
def test_replicas_agree_whatever_the_method(topology):
    variables = Net().init(jax.random.key(0), jnp.ones((1, 8)))
    tx = so.sparse_sgd(0.05, topology, momentum=0.9, sparseopt=True)
    state = so.linen.TrainState.create(apply_fn=None, tx=tx, **variables)
    state = jax_utils.replicate(state)
    first = kernels(so.get_masks(state))
    state, _ = run(so.pmap_train_step(loss_fn), state, 200, split)
    assert all_replicas_are_equal((state.params, state.opt_state))
    masks = kernels(so.get_masks(state))
    assert any((masks[name] != first[name]).any() for name in masks)
    assert all(np.isfinite(kernel).all() for kernel in kernels(state.params).values())


def by_shard_map(mesh, check_vma):
    axes = mesh.axis_names
    step = so.make_train_step(loss_fn, axis_name=axes)
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(P(), P(axes)),
        out_specs=(P(), P()),
        check_vma=check_vma,
    )


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("method", [so.set_, so.rigl])
def test_under_shard_map(method, check_vma):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    step = jax.jit(by_shard_map(mesh, check_vma), donate_argnums=0)
    state = jax.device_put(make_state(method), NamedSharding(mesh, P()))
    state, metrics = run(step, state, 30, lambda batch: batch)
    assert_like_alone(state, method, 30)
    np.testing.assert_allclose(metrics["mean_y"], np.mean(batch_at(29)[1]), rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("method", [so.set_, so.rigl])
def test_over_a_mesh(method, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        step = jax.jit(so.make_train_step(loss_fn), donate_argnums=0)
        state = jax.device_put(make_state(method), NamedSharding(mesh, P()))
        by_data = NamedSharding(mesh, P("data"))
        state, _ = run(step, state, 30, lambda batch: jax.device_put(batch, by_data))
    assert_like_alone(state, method, 30)


def assert_like_alone(state, method, steps):
    alone = trained_alone(method, steps)
    masks, expected = (kernels(so.get_masks(s)) for s in (state, alone))
    first = kernels(so.get_masks(make_state(method)))
    for name, mask in masks.items():
        assert (mask != first[name]).any()
        np.testing.assert_array_equal(mask, expected[name])
    for name, kernel in kernels(state.params).items():
        np.testing.assert_allclose(
            kernel, kernels(alone.params)[name], rtol=1e-4, atol=1e-5
        )


def test_batch_statistics_are_averaged_before_the_optimizer_sees_them():
    seen = []

    def spy():
        def update(updates, state, params=None, *, batch_stats, **_):
            del state, params
            seen.append(batch_stats)
            return updates, batch_stats

        def init(params):
            del params
            return make_state(so.rigl, NormNet).batch_stats

        return optax.GradientTransformationExtraArgs(init, update)

    tx = so.sparsify(optax.chain(spy(), optax.sgd(0.1)), so.static(0.5))
    variables = NormNet().init(jax.random.key(0), jnp.ones((1, 8)))
    state = so.linen.TrainState.create(apply_fn=None, tx=tx, **variables)
    step = so.pmap_train_step(norm_loss_fn, has_batch_stats=True)
    x, y = batch_at(0)
    new, _ = step(jax_utils.replicate(state), split((x, y)))

    single_step = so.make_train_step(norm_loss_fn, has_batch_stats=True)
    parts = split((x, y))
    expected = [
        single_step(state, jax.tree.map(lambda x, i=i: x[i], parts))[0].batch_stats
        for i in range(REPLICAS)
    ]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *expected)
    assert all_replicas_are_equal((new.params, new.opt_state, new.batch_stats))
    for actual in (new.batch_stats, new.opt_state.inner_state[0]):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-6),
            actual,
            expected,
        )


@pytest.mark.parametrize("method", [so.set_, so.rigl])
def test_masks_do_not_depend_on_the_number_of_devices(method):
    def square_loss(params, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ params["kernel"]) - y[:, :1]) ** 2)

    kernel = jax.random.normal(jax.random.key(0), (8, 16))
    tx = so.sparse_sgd(
        0.05, method(0.5, every=5, stop=900), momentum=0.9, sparseopt=True
    )
    runs = {}
    for devices in (1, 2, 4, 8):
        mesh = jax.make_mesh((devices,), ("model",), devices=jax.devices()[:devices])
        sharding = NamedSharding(mesh, P(None, "model"))
        params = jax.device_put({"kernel": kernel}, sharding)
        shardings = so.state_sharding(tx, params, sharding)
        opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
        first = np.asarray(opt_state.masks["kernel"])
        state = so.linen.TrainState(
            step=jnp.zeros([], jnp.int32),
            apply_fn=None,
            params=so.apply_masks(params, opt_state),
            tx=tx,
            opt_state=opt_state,
        )
        step = jax.jit(so.make_train_step(square_loss))
        for count in range(20):
            state, _ = jax.block_until_ready(step(state, batch_at(count)))
        mask = so.get_masks(state)["kernel"]
        assert mask.sharding.is_equivalent_to(sharding, 2)
        runs[devices] = first, np.asarray(mask)
    assert (runs[1][0] != runs[1][1]).any()
    for masks in runs.values():
        jax.tree.map(np.testing.assert_array_equal, masks, runs[1])

"""The train step on one device; ``tests/distributed`` tests several."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(12, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(3)(nn.relu(x))


def loss_fn(params, batch_stats, batch):
    x, y = batch
    logits, changed = Net().apply(
        {"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    accuracy = jnp.mean(jnp.argmax(logits, -1) == y)
    return loss, ({"accuracy": accuracy}, changed["batch_stats"])


def square_loss(params, batch):
    return jnp.mean((batch @ params["kernel"]) ** 2)


@functools.cache
def compiled_state(topology):
    tx = so.sparse_sgd(0.1, topology, momentum=0.9, sparseopt=True)

    def create():
        variables = Net().init(jax.random.key(0), jnp.ones((1, 6)))
        return so.linen.TrainState.create(apply_fn=None, tx=tx, **variables)

    return jax.jit(create)


def make_state(topology):
    return compiled_state(topology)()


def make_kernel_state():
    tx = so.sparse_sgd(0.1, so.static(0.5), sparseopt=True)
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 8))}
    return so.linen.TrainState.create(apply_fn=None, params=params, tx=tx)


def batches(steps):
    x = jax.random.normal(jax.random.key(1), (steps, 16, 6))
    return x, jnp.argmax(x[..., :3], -1)


RIGL = so.rigl(0.6, every=3, stop=20)


def test_it_is_the_step_written_by_hand():
    def by_hand(state, batch):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, batch_stats)), grads = gradient(
            state.params, state.batch_stats, batch
        )
        new = state.apply_gradients(grads=grads, batch_stats=batch_stats)
        return new, {"loss": loss, **metrics}

    step = so.make_train_step(loss_fn, has_batch_stats=True)

    @jax.jit
    def both(state, batch):
        return step(state, batch), by_hand(state, batch)

    x, y = (part[0] for part in batches(1))
    (new, found), (expected, metrics) = both(make_state(RIGL), (x, y))
    assert found == metrics
    for part in ("params", "batch_stats", "step"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(new, part), getattr(expected, part)
        )


def test_it_learns_compiles_once_and_donates():
    state = make_state(RIGL)
    step, traces = so.make_train_step(loss_fn, has_batch_stats=True), []

    def traced(state, batch):
        traces.append("one")
        return step(state, batch)

    compiled = jax.jit(traced, donate_argnums=0)
    first = np.asarray(so.get_masks(state)["Dense_0"]["kernel"])
    losses = []
    for batch in zip(*batches(40), strict=True):
        old = state
        state, metrics = compiled(state, batch)
        assert all(x.is_deleted() for x in jax.tree.leaves(old.params))
        losses.append(float(metrics["loss"]))
    assert len(traces) == 1
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert (first != so.get_masks(state)["Dense_0"]["kernel"]).any()


def test_it_is_the_body_of_a_scan():
    step = so.make_train_step(loss_fn, has_batch_stats=True)
    steps = 8
    scanned, metrics = jax.lax.scan(step, make_state(RIGL), batches(steps))
    assert metrics["loss"].shape == (steps,)
    state = make_state(RIGL)
    compiled = jax.jit(step)
    for batch in zip(*batches(steps), strict=True):
        state, _ = compiled(state, batch)
    masks, expected = so.get_masks(scanned), so.get_masks(state)
    chex.assert_trees_all_equal(masks, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        *(scanned.params, state.params),
    )


def test_a_plain_loss_needs_no_metrics():
    step = so.make_train_step(square_loss)
    state, metrics = step(make_kernel_state(), jnp.ones((2, 4)))
    assert list(metrics) == ["loss"] and int(state.step) == 1


@pytest.mark.parametrize(
    ("loss", "has_batch_stats", "expected"),
    [
        (lambda *_: (0.0, jnp.ones(3)), False, "loss or .loss, metrics."),
        (lambda *_: None, False, "loss or .loss, metrics."),
        (lambda *_: (0.0, {}), True, "batch_stats"),
        (lambda *_: 0.0, True, "batch_stats"),
    ],
)
def test_another_result_of_the_loss_is_refused(loss, has_batch_stats, expected):
    step = so.make_train_step(loss, has_batch_stats=has_batch_stats)
    with pytest.raises(ValueError, match=f"loss_fn must return .*{expected}"):
        step(make_state(RIGL), None)


def test_missing_batch_statistics_are_named():
    step = so.make_train_step(loss_fn, has_batch_stats=True)
    with pytest.raises(ValueError, match="has_batch_stats needs a state with"):
        step(make_kernel_state(), None)


def test_a_loss_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="loss_fn must be a function, got 1"):
        so.make_train_step(1)

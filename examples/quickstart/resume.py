"""Train a sparse network with metrics, interrupt it, and resume it bit for bit."""

import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparseopt_jax as so

STEPS, STOP, BATCH = 240, 130, 64
TOPOLOGY = so.rigl(0.9, every=40, stop=200, min_fan_in=2, track_explored=True)


class Net(nn.Module):
    """A hidden layer with Batch Normalization."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(64, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(momentum=0.9, use_running_average=not train)(x))
        return nn.Dense(10)(x)


def new_state():
    """Return the state before the first step, also a template to restore into."""
    model = Net()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64)), train=False)
    tx = so.sparse_sgd(0.1, TOPOLOGY, momentum=0.9, key=1)
    return so.linen.TrainState.create(apply_fn=model.apply, tx=tx, **variables)


@jax.jit
def train_step(state, images, labels):
    """Take one step and return its loss and the counts of so.metrics."""

    def loss_fn(params):
        logits, new = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new["batch_stats"]

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads, batch_stats=stats)
    return state, {"loss": loss, **so.metrics(state.params, state.opt_state)}


def run(state, data, first, last):
    """Run steps ``first`` to ``last``; a step's images depend on its number alone."""
    for step in range(first, last):
        chosen = np.random.default_rng(step).choice(len(data[0]), BATCH)
        state, numbers = train_step(state, *(x[chosen] for x in data))
        if step % 40 == 39:
            names = ("loss", "density", "inactive_nonzero", "explored")
            shown = ", ".join(f"{name} {float(numbers[name]):.3g}" for name in names)
            print(f"  step {step + 1}: {shown}")
    return state


def main():
    """Train without and with an interruption, and compare every bit."""
    images, labels = load_digits(return_X_y=True)
    data = images.astype(np.float32) / 16, labels

    print("uninterrupted")
    whole = run(new_state(), data, 0, STEPS)

    with tempfile.TemporaryDirectory() as folder:
        print(f"stopped after {STOP} steps")
        with so.checkpoint.Checkpoints(folder, topology=TOPOLOGY) as checkpoints:
            checkpoints.save(STOP, run(new_state(), data, 0, STOP))
        # From here on it could be another process, on other devices.
        with so.checkpoint.Checkpoints(folder, topology=TOPOLOGY) as checkpoints:
            found = checkpoints.restore(new_state())
        assert found is not None  # None if nothing has been saved
        restored, _ = found
        print(f"restored at step {int(restored.step)}")
        halves = run(restored, data, int(restored.step), STEPS)

    pairs = zip(*map(jax.tree.leaves, (whole, halves)), strict=True)
    same = all(bool(jnp.all(a == b)) for a, b in pairs)
    print(f"all arrays are equal bit for bit: {same}")
    print(so.summary(whole.params, whole.opt_state))


if __name__ == "__main__":
    main()

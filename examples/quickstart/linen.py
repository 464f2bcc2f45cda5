"""Sparse training in Flax linen: RigL on handwritten digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sparseopt_jax as so

EPOCHS, BATCH = 12, 64


class Net(nn.Module):
    """Two convolutions, each followed by Batch Normalization, and a dense layer."""

    @nn.compact
    def __call__(self, x, train):
        for features in (32, 64):
            x = nn.Conv(features, (3, 3), strides=(2, 2), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(momentum=0.9, use_running_average=not train)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


@jax.jit
def train_step(state, images, labels):
    """Take one step; sparsity is handled entirely by the optimizer."""

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = state.apply_fn(
            variables, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new["batch_stats"]

    grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats)


def main():
    """Train with 90 % of the weights at zero and print the result."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=600, stratify=labels, random_state=0
    )
    steps = EPOCHS * (len(train_x) // BATCH)
    schedule = optax.cosine_decay_schedule(0.1, steps)

    model = Net()
    variables = model.init(jax.random.key(0), test_x[:1], train=False)
    topology = so.rigl(sparsity=0.9, every=10, stop=3 * steps // 4)
    print(so.plan(variables["params"], topology))

    # tx = optax.sgd(schedule, momentum=0.9)
    tx = so.sparse_sgd(schedule, topology, momentum=0.9)
    # state = train_state.TrainState.create(
    state = so.linen.TrainState.create(apply_fn=model.apply, tx=tx, **variables)

    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = rng.permutation(len(train_x))
        for batch in order[: steps // EPOCHS * BATCH].reshape(-1, BATCH):
            state = train_step(state, train_x[batch], train_y[batch])

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = jnp.asarray(model.apply(variables, test_x, train=False))
    print(f"\ntest accuracy: {jnp.mean(logits.argmax(-1) == test_y):.1%}\n")
    print(so.summary(state.params, state.opt_state))


if __name__ == "__main__":
    main()

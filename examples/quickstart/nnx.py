"""Sparse training in Flax NNX: RigL on handwritten digits."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sparseopt_jax as so

EPOCHS, BATCH = 12, 64


class Net(nnx.Module):
    """Two convolutions, each followed by Batch Normalization, and a dense layer."""

    def __init__(self, rngs):
        conv = {"strides": (2, 2), "use_bias": False, "rngs": rngs}
        self.conv_1 = nnx.Conv(1, 32, (3, 3), **conv)
        self.norm_1 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.conv_2 = nnx.Conv(32, 64, (3, 3), **conv)
        self.norm_2 = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(2 * 2 * 64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm_1(self.conv_1(x)))
        x = nnx.relu(self.norm_2(self.conv_2(x)))
        return self.head(x.reshape(len(x), -1))


@nnx.jit
def train_step(model, optimizer, images, labels):
    """Take one step, the same as for a dense network."""

    def loss_fn(model):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
        return losses.mean()

    grads = nnx.grad(loss_fn)(model)
    optimizer.update(model, grads)


def main():
    """Train with 90 % of the weights at zero and print the result."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=600, stratify=labels, random_state=0
    )
    steps = EPOCHS * (len(train_x) // BATCH)
    schedule = optax.cosine_decay_schedule(0.1, steps)

    model = Net(nnx.Rngs(0))
    topology = so.rigl(sparsity=0.9, every=10, stop=3 * steps // 4)
    print(so.plan(nnx.state(model, nnx.Param), topology))

    # tx = optax.sgd(schedule, momentum=0.9)
    tx = so.sparse_sgd(schedule, topology, momentum=0.9)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    so.nnx.mask_model(model, optimizer)

    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = rng.permutation(len(train_x))
        for batch in order[: steps // EPOCHS * BATCH].reshape(-1, BATCH):
            train_step(model, optimizer, train_x[batch], train_y[batch])

    model.eval()
    logits = model(test_x)
    print(f"\ntest accuracy: {jnp.mean(logits.argmax(-1) == test_y):.1%}\n")
    print(so.summary(nnx.state(model, nnx.Param), optimizer))


if __name__ == "__main__":
    main()

"""Make the animation in the README: a mask that RigL updates during training.

python -m examples.quickstart.moving_topology --file moving.gif --sparsity 0.8
"""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import tyro
from sklearn.datasets import load_digits

import sparseopt_jax as so

LAYER = "Dense_0/kernel"


class Net(nn.Module):
    """A hidden layer with Batch Normalization."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(112, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(10)(nn.relu(x))


@jax.jit
def train_step(state, images, labels):
    """Take one step; the running statistics are not needed here."""

    def loss_fn(params):
        logits, _ = state.apply_fn({"params": params}, images, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def main(
    file: Path = Path("docs/images/moving_topology.gif"),
    sparsity: float = 0.9,
    steps: int = 900,
    every: int = 20,
) -> None:
    """Train on scanned digits and write the masks of the first layer.

    Args:
      file: the GIF to write.
      sparsity: fraction of zeros.
      steps: number of steps; masks are updated in the first three quarters.
      every: steps between updates, and between frames.
    """
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32) / 16
    params = Net().init(jax.random.key(0), images)["params"]
    topology = so.rigl(sparsity, every=every, stop=3 * steps // 4, min_fan_in=2)
    tx = so.sparse_sgd(0.1, topology, momentum=0.9)
    state = so.linen.TrainState.create(apply_fn=Net().apply, params=params, tx=tx)

    frames, titles = [jax.device_get(so.get_masks(state))], ["at random"]
    rng = np.random.default_rng(0)
    for step in range(steps):
        batch = rng.integers(len(images), size=64)
        state, loss = train_step(state, images[batch], labels[batch])
        if topology.due(step):
            frames.append(jax.device_get(so.get_masks(state)))
            titles.append(f"step {step}, loss {loss:.2f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    so.plot.animate_masks(frames, LAYER, file, titles=titles)
    print(f"{file}: {len(frames)} frames, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    tyro.cli(main)

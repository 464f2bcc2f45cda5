"""How benchmarks and studies train small networks on scanned digits."""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.digits import dataset

BATCH = 64
IMAGE = np.zeros((1, 8, 8, 1), np.float32)


class Split(NamedTuple):
    """Images (n, 8, 8, 1) and labels (n,)."""

    images: np.ndarray
    labels: np.ndarray


def load_digits(quick: bool) -> tuple[Any, Any]:
    """The training and the test split of the scanned digits; noise, if quick."""
    if quick:
        draw = np.random.default_rng(0)
        images = draw.standard_normal((2 * BATCH, 8, 8, 1), np.float32)
        noise = Split(images, draw.integers(10, size=2 * BATCH, dtype=np.int32))
        return noise, noise
    with tempfile.TemporaryDirectory() as folder:
        return dataset.load(Path(folder))


def batches(
    train: Any, epochs: int, draw: np.random.Generator, size: int = BATCH
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The full batches of some epochs, each in a random order of its own.

    Args:
      train: images and labels.
      epochs: how many.
      draw: decides the orders.
      size: images in a batch.

    Yields:
      Images and labels of a batch.
    """
    for _ in range(epochs):
        order = draw.permutation(len(train.labels))
        for first in range(0, len(order) - size + 1, size):
            chosen = order[first : first + size]
            yield train.images[chosen], train.labels[chosen]


def learning_rate(peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine to nearly nothing."""
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, max(1, steps // 10), steps, 1e-3 * peak
    )


def is_kernel(params: Any) -> Any:
    """What weight decay is for: a tree of bools like the parameters."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def loss_of(model: nn.Module) -> Any:
    """The loss that ``so.make_train_step`` takes, with batch statistics or none."""

    def loss_fn(params, batch_stats, batch):
        images, labels = batch
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, ({}, changed.get("batch_stats", {}))

    return loss_fn


@functools.partial(jax.jit, static_argnames="model")
def accuracy_of(
    model: nn.Module, variables: Any, images: Any, labels: Any
) -> jax.Array:
    """The fraction of images that are told right."""
    logits: Any = model.apply(variables, images, train=False)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

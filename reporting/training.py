"""Training of small networks on scanned digits, for benchmarks and studies."""

import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import optax

from examples.digits.dataset import Split, load

BATCH = 64
IMAGE = np.zeros((1, 8, 8, 1), np.float32)


def load_digits(quick: bool) -> tuple[Split, Split]:
    """Return the training and the test split of the scanned digits; noise, if quick."""
    if quick:
        draw = np.random.default_rng(0)
        images = draw.standard_normal((2 * BATCH, 8, 8, 1), np.float32)
        noise = Split(images, draw.integers(10, size=2 * BATCH, dtype=np.int32))
        return noise, noise
    with tempfile.TemporaryDirectory() as folder:
        return load(Path(folder))


def loss_of(model: nn.Module) -> Any:
    """Return a loss for ``so.make_train_step``, with or without batch statistics."""

    def loss_fn(params, batch_stats, batch):
        images, labels = batch
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, ({}, changed.get("batch_stats", {}))

    return loss_fn

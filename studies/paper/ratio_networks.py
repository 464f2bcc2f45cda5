"""The networks of ``gradient_ratio`` and their batches."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from examples.common.mlp import MLP
from examples.digits.model import ResNet
from reporting.training import load_digits

BATCH, HIDDEN, CLASSES = 512, 128, 10
MLPS = ("MLP, normal inputs", "MLP, digits")
EXPLAINS = "MLP, digits, equal pixels"
VARY = 0.1  # a pixel varies if its deviation is at least this fraction of the largest

Batch = tuple[jax.Array, jax.Array]


class Network(NamedTuple):
    """One of the networks.

    Attributes:
      name: its name in tables.
      model: called with inputs and ``train``.
      batch: returns inputs and labels of a seed.
    """

    name: str
    model: nn.Module
    batch: Callable[[int], Batch]


def networks(quick: bool) -> list[Network]:
    """Return all four networks; if quick, the last one is tiny and learns noise."""
    train, _ = load_digits(quick)
    batch = min(BATCH, len(train.labels))
    shape = (batch, 8, 8, 1) if quick else (batch, 16, 16, 1)

    def normal(seed):
        draw = np.random.default_rng(seed)
        inputs = draw.standard_normal(shape, np.float32)
        labels = draw.integers(CLASSES, size=batch, dtype=np.int32)
        return jnp.asarray(inputs), jnp.asarray(labels)

    def digits(seed, images=train.images):
        chosen = np.random.default_rng(seed).permutation(len(train.labels))[:batch]
        return jnp.asarray(images[chosen]), jnp.asarray(train.labels[chosen])

    def equal_digits(seed):
        return digits(seed, equal_pixels(train.images))

    mlp = MLP(layers=1, width=HIDDEN, classes=CLASSES)
    resnet = ResNet(4, strides=(2,)) if quick else ResNet(16)
    return [
        Network(MLPS[0], mlp, normal),
        Network(MLPS[1], mlp, digits),
        Network(EXPLAINS, mlp, equal_digits),
        Network("ResNet, digits", resnet, digits),
    ]


def equal_pixels(images: np.ndarray) -> np.ndarray:
    """Return the pixels that vary, each with mean 0 and variance 1 (n, pixels).

    >>> equal_pixels(np.array([[[1.0, 5.0]], [[3.0, 5.0]]]))
    array([[-1.],
           [ 1.]])
    """
    pixels = images.reshape(len(images), -1)
    deviation = pixels.std(axis=0)
    kept = deviation >= VARY * deviation.max()
    return ((pixels - pixels.mean(axis=0)) / np.maximum(deviation, 1e-9))[:, kept]

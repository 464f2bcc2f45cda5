"""Two networks that a CPU can train, and the photographs that they learn."""

import functools
from pathlib import Path

import numpy as np

from examples.common import fashion_mnist
from examples.common.mlp import MLP
from examples.digits.dataset import Split
from examples.digits.model import ResNet
from studies.convergence.runs import Data, Network

VALIDATION = 2_000  # images held out of training, to choose learning rates with
RESNET_IMAGES = 20_000
RESNET_RATES, MLP_RATES = (0.1, 0.2, 0.4), (0.05, 0.1, 0.2)


@functools.cache
def networks(folder: Path | None, quick: bool) -> dict[str, Network]:
    """Return the networks by name; a process reads the images once.

    Args:
      folder: where the files of Fashion-MNIST are; None for the system's folder.
      quick: whether to learn a little noise instead, with few neurons.

    Returns:
      ``"resnet"``, a ResNet-8 of width 16 for images averaged down to 14x14, and
      ``"mlp"``, a perceptron of three hidden layers of 256 for whole images. Both have
      Batch Normalization, and both split the same held-out images from the training
      images.

    Raises:
      SystemExit: if the files are not found.
    """
    train, validation, test = _splits(_noise() if quick else _photographs(folder))
    shrunk = Data(*(Split(shrink(x), y) for x, y in (train, validation, test)))
    few = Split(*(array[:RESNET_IMAGES] for array in shrunk.train))
    width, epochs, batch = (4, 2, 32) if quick else (16, 4, 128)
    return {
        "resnet": Network(
            build=lambda _: ResNet(width, strides=(1, 2, 2)),
            data=shrunk._replace(train=few),
            batch=batch,
            epochs=epochs,
            rates=RESNET_RATES,
            targets={},
        ),
        "mlp": Network(
            build=lambda condition: MLP(3, 16 * width, 10, condition.momentum),
            data=Data(train, validation, test),
            batch=batch,
            epochs=epochs if quick else 9,
            rates=MLP_RATES,
            targets={},
        ),
    }


def shrink(images: np.ndarray) -> np.ndarray:
    """Return images of half the height and width: means of 2x2 pixels.

    >>> shrink(np.arange(16.0).reshape(1, 4, 4, 1))[0, ..., 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    count, height, width, channels = images.shape
    pairs = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    return pairs.mean(axis=(2, 4))


def _splits(images: fashion_mnist.Images) -> Data:
    """Return standardised images in random order; the last ones are held out."""
    pixels = images.train_images
    mean, deviation = pixels.mean(), pixels.std()
    order = np.random.default_rng(0).permutation(len(pixels))
    held_out = min(VALIDATION, len(pixels) // 4)

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        scaled = (images.astype(np.float32) - mean) / deviation
        return Split(scaled.astype(np.float32), labels)

    train, validation = (
        split(pixels[indices], images.train_labels[indices])
        for indices in (order[:-held_out], order[-held_out:])
    )
    return Data(train, validation, split(images.test_images, images.test_labels))


def _photographs(folder: Path | None) -> fashion_mnist.Images:
    found = fashion_mnist.find(folder)
    if found is None:
        raise SystemExit(
            f"Fashion-MNIST is not in {folder or fashion_mnist.SYSTEM_FOLDER}: install "
            "the package dataset-fashion-mnist on Debian and Ubuntu, or give "
            "--data-dir the folder that holds its four IDX files"
        )
    return fashion_mnist.load(found)


def _noise() -> fashion_mnist.Images:
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(192, 28, 28, 1), dtype=np.uint8)
    labels = draw.integers(10, size=192, dtype=np.int32)
    return fashion_mnist.Images(images[:128], labels[:128], images[128:], labels[128:])

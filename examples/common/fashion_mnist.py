"""Fashion-MNIST from the four IDX files that it is published as.

Photographs of clothes, 28 by 28 pixels of grey, ten classes: 60,000 to train with and
10,000 to test with.

References:
  Xiao et al., Fashion-MNIST, 2017 (arXiv 1708.07747).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.common import idx

CLASSES = 10
TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000
# Where Debian's package dataset-fashion-mnist has them.
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


class Images(NamedTuple):
    """Both splits.

    Attributes:
      train_images: uint8 (n, size, size, 1).
      train_labels: int32 (n,).
      test_images: uint8 (m, size, size, 1).
      test_labels: int32 (m,).
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def find(folder: Path | None = None) -> Path | None:
    """The folder that has the files, or some of them.

    Args:
      folder: where to look; None for ``SYSTEM_FOLDER``.

    Returns:
      The folder, or None if none of them is there.
    """
    folder = folder or SYSTEM_FOLDER
    return folder if any(_file(folder, name) for name in FILES.values()) else None


def load(folder: Path) -> Images:
    """Reads the files, compressed (``.gz``) or not.

    Args:
      folder: where they are.

    Returns:
      Both splits.

    Raises:
      ValueError: if a file is missing or damaged, or images and labels do not match.
    """
    arrays = {}
    for split, name in FILES.items():
        path = _file(folder, name)
        if path is None:
            raise ValueError(
                f"{folder} has neither {name} nor {name}.gz, one of the four files "
                "that Fashion-MNIST consists of"
            )
        arrays[split] = idx.read(path)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        alike = images.ndim == 3 and labels.shape == images.shape[:1]
        if not (alike and len(labels) and labels.max() < CLASSES):
            raise ValueError(
                f"the {split} split in {folder} is not Fashion-MNIST's: images of "
                f"shape {images.shape}, labels of shape {labels.shape}"
            )
        arrays[f"{split}_images"] = images[..., None].astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.int32)
    return Images(**arrays)


def _file(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)

"""Fashion-MNIST, read from the four published IDX files.

Photographs of clothes, 28 by 28 grey pixels, ten classes: 60,000 training images and
10,000 test images.

References:
  Xiao et al., Fashion-MNIST, 2017 (arXiv 1708.07747).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.common import idx

CLASSES = 10
TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000
# Where Debian's package dataset-fashion-mnist installs them.
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


class Images(NamedTuple):
    """The training and the test split.

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
    """Return the folder that has the files, or some of them.

    Args:
      folder: where to look; None means ``SYSTEM_FOLDER``.

    Returns:
      The folder, or None if it has none of the files.
    """
    folder = folder or SYSTEM_FOLDER
    return folder if any(_file(folder, name) for name in FILES.values()) else None


def load(folder: Path) -> Images:
    """Read the files, gzipped (``.gz``) or not.

    Args:
      folder: the folder that has the files.

    Returns:
      The training and the test split.

    Raises:
      ValueError: if a file is missing or damaged, or images and labels do not match.
    """
    arrays = {}
    for split, name in FILES.items():
        path = _file(folder, name)
        if path is None:
            raise ValueError(
                f"{folder} has neither {name} nor {name}.gz, one of Fashion-MNIST's "
                "four files"
            )
        arrays[split] = idx.read(path)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        alike = images.ndim == 3 and labels.shape == images.shape[:1]
        if not (alike and len(labels) and labels.max() < CLASSES):
            raise ValueError(
                f"the {split} split in {folder} is not Fashion-MNIST's: images have "
                f"shape {images.shape}, labels have shape {labels.shape}"
            )
        arrays[f"{split}_images"] = images[..., None].astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.int32)
    return Images(**arrays)


def _file(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)

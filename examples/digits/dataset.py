"""Scanned handwritten digits as a small tensorflow-datasets builder.

The 1,797 images come with scikit-learn, so nothing is downloaded. They are stored as
ArrayRecord files, which ``tfds.data_source`` reads without TensorFlow.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST_IMAGES = 600


class ScannedDigits(tfds.core.GeneratorBasedBuilder):
    """8x8 scans of handwritten digits in 17 shades of grey, in a fixed split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scans of handwritten digits, 8x8 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing to download
        _, labels = load_digits(return_X_y=True)
        train, test = split_indices(labels)
        return {
            "train": self._generate_examples(train),
            "test": self._generate_examples(test),
        }

    def _generate_examples(
        self, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        pixels, labels = load_digits(return_X_y=True)
        for index in map(int, indices):
            shades = 15 * pixels[index].reshape(8, 8)  # 0 to 16, spread over a byte
            image = Image.fromarray(shades.astype(np.uint8))
            yield index, {"image": image, "label": int(labels[index])}


class Split(NamedTuple):
    """Images and their labels.

    Attributes:
      images: float32 (n, 8, 8, 1).
      labels: int32 (n,).
    """

    images: np.ndarray
    labels: np.ndarray


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and the test images, stratified by digit."""
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    return np.sort(train), np.sort(test)


def load(data_dir: Path) -> tuple[Split, Split]:
    """Return the training and the test split, standardised by the training pixels.

    Args:
      data_dir: where the prepared files are, or will be.

    Returns:
      The training split and the test split.
    """
    prepare(data_dir)
    with _without_advice():
        train, test = (
            _read(source)
            for source in tfds.data_source(
                "scanned_digits", data_dir=data_dir, split=["train", "test"]
            )
        )
    mean, deviation = train.images.mean(), train.images.std()
    return (
        train._replace(images=(train.images - mean) / deviation),
        test._replace(images=(test.images - mean) / deviation),
    )


def prepare(data_dir: Path) -> None:
    """Write the files, unless they exist and are complete.

    They are written under a temporary name and renamed at the end, so that a killed run
    leaves nothing that looks finished.
    """
    builder = ScannedDigits(data_dir=data_dir, file_format="array_record")
    whole = bool(builder.info.splits) and all(
        path.exists()
        for split in builder.info.splits.values()
        for path in split.filepaths
    )
    mode = tfds.GenerateMode
    config = tfds.download.DownloadConfig(
        download_mode=mode.REUSE_DATASET_IF_EXISTS
        if whole
        else mode.REUSE_CACHE_IF_EXISTS
    )
    tfds.disable_progress_bar()
    # It announces a download that does not take place.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)


def _read(source: Sequence[dict[str, Any]]) -> Split:
    examples = [source[index] for index in range(len(source))]
    return Split(
        images=np.stack([example["image"] for example in examples]).astype(np.float32),
        labels=np.array([example["label"] for example in examples], np.int32),
    )


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the advice to use a faster decoder; these images have 64 pixels."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

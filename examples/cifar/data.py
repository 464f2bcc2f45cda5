"""CIFAR, Fashion-MNIST and glyphs: all images of a data set, as bytes in memory.

CIFAR and Fashion-MNIST are read by ``tfds.data_source`` from ArrayRecord files, which
are prepared if needed, both without TensorFlow. Fashion-MNIST can also be read from its
published IDX files.
"""

import logging
import types
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.common import fashion_mnist, glyphs, idx

GLYPH_SIZES = {"glyphs": 32, "glyphs16": 16}
FASHION_MNIST = "fashion_mnist"
DATASETS = ("cifar10", "cifar100", FASHION_MNIST, *GLYPH_SIZES)
# Training and test images of all other data sets.
IMAGES = (50_000, 10_000)
IMAGES_OF_FASHION_MNIST = (fashion_mnist.TRAIN_IMAGES, fashion_mnist.TEST_IMAGES)
GLYPHS_FOLDER = Path("runs/data")
SYNTHETIC = (
    "Glyphs are synthetic images, computed by the program itself: numbers on them say "
    "nothing about photographs."
)
MISSING = """\
{dataset} cannot be read from {folder} ({why}).
It is missing, only partly downloaded or prepared, or damaged. Either
  - pass --data-dir with a folder that has it or that it can be downloaded to:
    {download},
    prepared as ArrayRecord files without TensorFlow (first delete {folder}/{dataset}
    if it exists); or{files}
  - train on computed images, which need no download: --dataset glyphs"""
_CIFAR = "about 170 MB from\n    https://www.cs.toronto.edu/~kriz/cifar.html"
_ZALANDO = "about 30 MB from\n    https://github.com/zalandoresearch/fashion-mnist"
DOWNLOADS = {"cifar10": _CIFAR, "cifar100": _CIFAR, FASHION_MNIST: _ZALANDO}
IDX_FILES = f"""
  - pass --data-dir with a folder that has its four IDX files,
    train-images-idx3-ubyte.gz and so on; Debian's package dataset-fashion-mnist
    installs them in {fashion_mnist.SYSTEM_FOLDER}, the default; or"""


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
      name: one of ``DATASETS``.
      train_images: uint8 (n, size, size, colours).
      train_labels: int32 (n,).
      test_images: uint8 (m, size, size, colours).
      test_labels: int32 (m,).
      classes: number of classes.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int

    @property
    def is_synthetic(self) -> bool:
        """Tell whether its images are computed."""
        return self.name in GLYPH_SIZES

    @property
    def flips(self) -> bool:
        """Tell whether a mirrored image could be in the test split.

        Mirroring glyphs would not confuse classes, since no glyph is the mirror image
        of another, but no test image shows a mirrored pattern.
        """
        return not self.is_synthetic

    @property
    def margin(self) -> int:
        """Return the padding for random crops: 4 pixels for a size of 32."""
        return self.train_images.shape[1] // 8

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each colour of the training images."""
        # Sums of integers are exact, so their order does not matter.
        colours = self.train_images.shape[-1]
        total, squares = np.zeros(colours, np.int64), np.zeros(colours, np.int64)
        for images in np.array_split(
            self.train_images, 1 + len(self.train_images) // 500
        ):
            pixels = images.reshape(-1, colours).astype(np.int64)
            total += pixels.sum(axis=0)
            squares += (pixels**2).sum(axis=0)
        count = self.train_images.size // colours
        mean = total / count
        deviation = np.sqrt(squares / count - mean**2)
        return mean.astype(np.float32), deviation.astype(np.float32)


def load(
    name: str,
    folder: Path | None = None,
    *,
    train: int | None = None,
    test: int | None = None,
) -> Dataset:
    """Load a data set, and download or compute it if necessary.

    Args:
      name: one of ``DATASETS``.
      folder: where it is, or will be; None for the default of tensorflow-datasets,
        ``GLYPHS_FOLDER``, or the place where Debian installs Fashion-MNIST's files.
      train: take only the first ``train`` training images.
      test: take only the first ``test`` test images.

    Returns:
      The data set.

    Raises:
      ValueError: if it cannot be loaded, with the remedy; if ``train`` or ``test``
        exceeds the number of images.
    """
    counts = []
    sizes = IMAGES_OF_FASHION_MNIST if name == FASHION_MNIST else IMAGES
    for option, count, all_ in zip(
        ("train_images", "test_images"), (train, test), sizes, strict=True
    ):
        if count is not None and not 1 <= count <= all_:
            raise ValueError(f"{option} must be from 1 to {all_:,}, got {count}")
        counts.append(count or all_)
    if name in GLYPH_SIZES:
        images = glyphs.load(
            folder or GLYPHS_FOLDER,
            size=GLYPH_SIZES[name],
            train=counts[0],
            test=counts[1],
        )
        return Dataset(name, *images, classes=glyphs.CLASSES)
    files = fashion_mnist.find(folder) if name == FASHION_MNIST else None
    if files is not None:
        found = fashion_mnist.load(files)
        splits, classes = [found[:2], found[2:]], fashion_mnist.CLASSES
    else:
        splits, classes = _read_prepared(name, folder)
    both = zip(splits, counts, strict=True)
    arrays = [x[:count] for split, count in both for x in split]
    return Dataset(name, *arrays, classes=classes)


def missing(name: str, folder: Path | None, why: str) -> str:
    """Return the message about a missing data set: the cause, and the remedy."""
    return MISSING.format(
        dataset=name,
        folder=folder or "~/tensorflow_datasets",
        why=why,
        download=DOWNLOADS[name],
        files=IDX_FILES if name == FASHION_MNIST else "",
    )


def _read_prepared(name: str, folder: Path | None) -> tuple[list[Any], int]:
    """Return images and labels of both splits, and the number of classes."""
    # Imported late: it takes seconds, and mistakes in the options are reported first.
    import tensorflow_datasets as tfds

    advice = logging.getLogger("absl")
    advice.addFilter(_no_advice)
    try:
        builder: Any = tfds.builder(name, data_dir=folder, file_format="array_record")
        # The builder's method reads the downloaded files with TensorFlow.
        read = _idx_examples if name == FASHION_MNIST else _cifar_examples
        builder._generate_examples = types.MethodType(read, builder)
        builder._split_generators = types.MethodType(_split_generators, builder)
        builder.download_and_prepare()
        sources = builder.as_data_source(split=["train", "test"])
        splits = [_arrays(source) for source in sources]
    # Failed downloads, broken archives and damaged files raise unrelated exceptions.
    except Exception as error:
        print()  # ends the line that tfds has started
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__
        raise ValueError(missing(name, folder, why)) from error
    finally:
        advice.removeFilter(_no_advice)
    return splits, builder.info.features["label"].num_classes


def _split_generators(builder: Any, manager: Any) -> Any:
    """Check quickly that the download works, then call the builder's own method."""
    if builder.name == FASHION_MNIST:
        url = urllib.parse.urljoin(builder.URL, "train-images-idx3-ubyte.gz")
    else:
        url = builder._cifar_info.url
    archive = url.rpartition("/")[2].partition(".")[0]
    if not any(Path(manager.download_dir).glob(f"*{archive}*.gz")):
        with urllib.request.urlopen(url, timeout=30):
            pass
    return type(builder)._split_generators(builder, manager)


def _cifar_examples(
    builder: Any, prefix: str, paths: Iterable[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the contents of the archive's binary files as features of the data set.

    An image is stored as one byte for each label, then 1,024 bytes of each colour.
    """
    names = builder._cifar_info.label_keys
    number = 0
    for path in paths:
        rows = np.fromfile(path, np.uint8).reshape(-1, len(names) + 3 * 32 * 32)
        for row in rows:
            labels = dict(zip(names, map(int, row), strict=False))
            image = row[len(names) :].reshape(3, 32, 32).transpose(1, 2, 0)
            identified = {"id": f"{prefix}{number:05d}", "image": _picture(image)}
            yield number, identified | labels
            number += 1


def _idx_examples(
    builder: Any, num_examples: int, data_path: str, label_path: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the contents of a pair of IDX files as features of the data set."""
    del builder, num_examples
    images, labels = (idx.read(Path(path)) for path in (data_path, label_path))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield number, {"image": _picture(image), "label": int(label)}


def _picture(image: np.ndarray) -> Any:
    # Only preparing needs it: tensorflow-datasets uses it to encode without TensorFlow.
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image))


def _arrays(source: Any) -> tuple[np.ndarray, np.ndarray]:
    # One by one, because mocked data answers a list of indices wrongly.
    examples = (source[index] for index in range(len(source)))
    pairs = [(example["image"], example["label"]) for example in examples]
    images, labels = zip(*pairs, strict=True)
    return np.stack(images), np.array(labels, np.int32)


def _no_advice(record: logging.LogRecord) -> bool:
    """Filter out the advice to install another decoder."""
    return "OpenCV is not installed" not in record.getMessage()

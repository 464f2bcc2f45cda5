"""Images from tensorflow-datasets, read without TensorFlow, augmented by Pillow.

Every batch is decided by the seed and its number alone: each epoch has its own order of
the images, a batch is the next so many of it, and each image is augmented by numbers
drawn from the seed, the epoch and its index. A process decodes only the rows of a batch
that its own devices hold. So the batches are the same however many processes share
them, and a training goes on with the very next batch by knowing its number.
"""

import collections
import functools
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Example = tuple[np.ndarray, int]
Box = tuple[float, float, float, float]

# Of the pixels of ImageNet, in units of a byte.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32) * 255

MISSING = """\
{dataset} is not in {data_dir} as ArrayRecord files ({why}).
Prepare it once, for all processes that read this folder:{download}
  - In an environment that has TensorFlow, which preparing needs and reading does not:
      pip install tensorflow tensorflow-datasets array-record
      tfds build {dataset} --file_format=array_record --data_dir={data_dir}{manual}
  - Start again with --data-dir {data_dir}"""
DOWNLOAD = """
  - Download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into one folder, from
      https://image-net.org/download-images (they ask to register)."""
MANUAL = " \\\n        --manual_dir=<that folder>"


class Batch(NamedTuple):
    """The rows of a batch that one process holds.

    Attributes:
      images: uint8 (rows, size, size, 3).
      labels: int32 (rows,).
      weights: float32 (rows,), 0 where there was no image left, else 1.
    """

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class Reader(NamedTuple):
    """How batches are read.

    Attributes:
      batch_size: images of a batch, over all processes.
      rows: int array, which of them this process holds.
      size: height and width of the images that the network sees.
      workers: threads that decode.
      prefetch: batches decoded ahead.
    """

    batch_size: int
    rows: np.ndarray
    size: int
    workers: int
    prefetch: int


def open_split(dataset: str, data_dir: str | None, split: str) -> Sequence[Any]:
    """The examples of a split, to be indexed one by one from any thread.

    Args:
      dataset: its name in tensorflow-datasets.
      data_dir: where it is prepared; None for the library's own choice.
      split: ``"train"`` or ``"validation"``.

    Returns:
      Dictionaries with a uint8 ``"image"`` and an integer ``"label"``.

    Raises:
      ValueError: if it is not there as ArrayRecord files, with what to do.
    """
    # Takes seconds to import, when mistakes in the options have long been reported.
    import tensorflow_datasets as tfds

    logging.getLogger("absl").addFilter(_no_advice)
    try:
        source: Any = tfds.data_source(
            dataset,
            data_dir=data_dir,
            split=split,
            download=False,
            builder_kwargs={"file_format": "array_record"},
        )
        return source
    except (
        *(AssertionError, FileNotFoundError, KeyError, NotImplementedError),
        *(ValueError, tfds.core.DatasetNotFoundError),
    ) as error:
        by_hand = dataset.startswith("imagenet2012")
        told = MISSING.format(
            dataset=dataset,
            data_dir=data_dir
            or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"),
            why=str(error.args[0]).strip().partition("\n")[0].rstrip("."),
            download=DOWNLOAD if by_hand else "",
            manual=MANUAL if by_hand else "",
        )
        raise ValueError(told) from error


def class_count(source: Any) -> int:
    """The number of classes of a split's labels."""
    return source.dataset_info.features["label"].num_classes


def training_batches(
    source: Sequence[Any],
    reader: Reader,
    *,
    seed: int,
    per_epoch: int,
    first: int = 0,
) -> Iterator[Batch]:
    """Batches without end, in a new order every epoch.

    Args:
      source: the examples.
      reader: how they are read.
      seed: decides order and augmentation.
      per_epoch: batches in an epoch; what is left of its images is left out.
      first: number of the batch to begin with, counted from the start of training.

    Yields:
      Batch ``first``, ``first + 1``, and so on.
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(len(source))

    def example(epoch: int, index: int) -> Example:
        random = np.random.default_rng([seed, epoch, index])
        image, label = _read(source, index)
        return augmented(image, reader.size, random), label

    def jobs() -> Iterator[list[Callable[[], Example]]]:
        for number in itertools.count(first):
            epoch, place = divmod(number, per_epoch)
            rows = order(epoch)[place * reader.batch_size + reader.rows]
            yield [functools.partial(example, epoch, int(index)) for index in rows]

    return _decoded(jobs(), reader)


def evaluation_batches(
    source: Sequence[Any], reader: Reader, *, resize: int
) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with weights of 0.

    Args:
      source: the examples.
      reader: how they are read.
      resize: length that the shorter side is scaled to, before the central square of
        the reader's size is cut out.

    Yields:
      As many batches in every process.
    """

    def example(index: int) -> Example:
        image, label = _read(source, index)
        return central(image, reader.size, resize), label

    def jobs() -> Iterator[list[Callable[[], Example] | None]]:
        for begin in range(0, len(source), reader.batch_size):
            yield [
                functools.partial(example, int(index)) if index < len(source) else None
                for index in begin + reader.rows
            ]

    return _decoded(jobs(), reader)


def augmented(image: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """A random part of an image, resized, and flipped half of the times.

    Args:
      image: uint8 (height, width, 3).
      size: height and width of the result.
      random: what decides.

    Returns:
      uint8 (size, size, 3).
    """
    cut = _resized(image, size, random_box(image.shape[0], image.shape[1], random))
    return cut[:, ::-1] if random.random() < 0.5 else cut


def random_box(height: int, width: int, random: np.random.Generator) -> Box:
    """A part of 8 to 100 % of an image's area, with sides of 3:4 to 4:3.

    Args:
      height: of the image.
      width: of the image.
      random: what decides.

    Returns:
      Left, upper, right, lower. After ten tries that do not fit into the image, the
      largest part in its centre that has such sides.
    """
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(random.integers(width - w, endpoint=True))
            upper = int(random.integers(height - h, endpoint=True))
            return left, upper, left + w, upper + h
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    left, upper = (width - w) / 2, (height - h) / 2
    return left, upper, left + w, upper + h


def central(image: np.ndarray, size: int, resize: int) -> np.ndarray:
    """The central square of an image whose shorter side is scaled first.

    Args:
      image: uint8 (height, width, 3).
      size: height and width of the result.
      resize: length of the shorter side after scaling, at least ``size``.

    Returns:
      uint8 (size, size, 3).
    """
    height, width = image.shape[:2]
    side = min(height, width) * size / resize
    left, upper = (width - side) / 2, (height - side) / 2
    return _resized(image, size, (left, upper, left + side, upper + side))


def _resized(image: np.ndarray, size: int, box: Box) -> np.ndarray:
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box))


def _read(source: Sequence[Any], index: int) -> Example:
    example = source[index]
    return example["image"], int(example["label"])


def _decoded(
    jobs: Iterable[Sequence[Callable[[], Example] | None]], reader: Reader
) -> Iterator[Batch]:
    """Runs the jobs of each batch in threads, some batches ahead of what is asked."""
    blank = np.zeros([reader.size, reader.size, 3], np.uint8)
    pool = ThreadPoolExecutor(reader.workers, "decode")

    def finished(futures: list[Future | None]) -> Batch:
        examples = [(blank, 0) if f is None else f.result() for f in futures]
        return Batch(
            images=np.stack([image for image, _ in examples]),
            labels=np.array([label for _, label in examples], np.int32),
            weights=np.array([f is not None for f in futures], np.float32),
        )

    ahead: collections.deque[list[Future | None]] = collections.deque()
    try:
        for batch in jobs:
            ahead.append([None if job is None else pool.submit(job) for job in batch])
            if len(ahead) > reader.prefetch:
                yield finished(ahead.popleft())
        while ahead:
            yield finished(ahead.popleft())
    finally:  # at the end, and where whoever asks has had enough
        pool.shutdown(cancel_futures=True)


def _no_advice(record: logging.LogRecord) -> bool:
    """Keeps off the screen that there is another decoder."""
    return "OpenCV is not installed" not in record.getMessage()

"""Images from tensorflow-datasets, read without TensorFlow, augmented by Pillow.

The seed and the number of a batch alone decide its contents: each epoch has its own
order of the images, a batch is the next slice of it, and each image is augmented by
numbers drawn from the seed, the epoch and its index. A process decodes only the rows of
a batch that its own devices hold. So the batches are the same for any number of
processes, and a training resumes with the right batch by its number.
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

# Of ImageNet's pixels, in the range 0 to 255.
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
      weights: float32 (rows,), 0 for padding, else 1.
    """

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class Reader(NamedTuple):
    """How batches are read.

    Attributes:
      batch_size: images per batch, over all processes.
      rows: int array, the rows that this process holds.
      size: height and width of the network's input.
      workers: threads that decode.
      prefetch: batches decoded ahead.
    """

    batch_size: int
    rows: np.ndarray
    size: int
    workers: int
    prefetch: int


def open_split(dataset: str, data_dir: str | None, split: str) -> Sequence[Any]:
    """Open a split; its examples can be indexed one by one from any thread.

    Args:
      dataset: its name in tensorflow-datasets.
      data_dir: the folder in which it is prepared; None for the library's default.
      split: ``"train"`` or ``"validation"``.

    Returns:
      Dictionaries with a uint8 ``"image"`` and an integer ``"label"``.

    Raises:
      ValueError: if it does not exist as ArrayRecord files, with the remedy.
    """
    # Imported late: it takes seconds, and mistakes in the options are reported first.
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
        message = MISSING.format(
            dataset=dataset,
            data_dir=data_dir
            or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"),
            why=str(error.args[0]).strip().partition("\n")[0].rstrip("."),
            download=DOWNLOAD if by_hand else "",
            manual=MANUAL if by_hand else "",
        )
        raise ValueError(message) from error


def class_count(source: Any) -> int:
    """Return the number of classes of a split."""
    return source.dataset_info.features["label"].num_classes


def training_batches(
    source: Sequence[Any],
    reader: Reader,
    *,
    seed: int,
    per_epoch: int,
    first: int = 0,
) -> Iterator[Batch]:
    """Yield batches forever, in a new order every epoch.

    Args:
      source: the examples.
      reader: how they are read.
      seed: decides order and augmentation.
      per_epoch: batches in an epoch; images that do not fill a batch are left out.
      first: number of the first batch to yield, counted from the start of training.

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
    """Yield every image once, in order; the last batch is padded with weights of 0.

    Args:
      source: the examples.
      reader: how they are read.
      resize: length that the shorter side is scaled to, before the central crop to the
        reader's size.

    Yields:
      Equally many batches in every process.
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
    """Return a random crop of an image, resized, and flipped half of the time.

    Args:
      image: uint8 (height, width, 3).
      size: height and width of the result.
      random: the random generator.

    Returns:
      uint8 (size, size, 3).
    """
    cut = _resized(image, size, random_box(image.shape[0], image.shape[1], random))
    return cut[:, ::-1] if random.random() < 0.5 else cut


def random_box(height: int, width: int, random: np.random.Generator) -> Box:
    """Draw a crop of 8 to 100 % of an image's area, with aspect ratio 3:4 to 4:3.

    Args:
      height: height of the image.
      width: width of the image.
      random: the random generator.

    Returns:
      Left, upper, right, lower. After ten draws that do not fit into the image, the
      largest central crop with an allowed aspect ratio.
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
    """Return the central crop of an image after scaling its shorter side.

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
    """Run the jobs of each batch in threads, a few batches ahead of the consumer."""
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
    finally:  # at the end, or when the consumer closes the generator
        pool.shutdown(cancel_futures=True)


def _no_advice(record: logging.LogRecord) -> bool:
    """Filter out the advice to install another decoder."""
    return "OpenCV is not installed" not in record.getMessage()

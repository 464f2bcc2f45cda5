"""Text as bytes: the sources of Python's own standard library, or C4.

The seed and the number of a batch alone decide its contents, so an interrupted training
resumes with the right batch, and all trainings with one seed see the same batches. A
byte is a token: there is no tokenizer to train, and losses on all texts are in bits per
byte.
"""

import hashlib
import math
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

DATASETS = ("stdlib", "c4")
VOCABULARY = 256
# Bits in a nat.
BITS = 1 / math.log(2)
MOST_BYTES = 16_000_000
# Separates documents; neither sources nor web pages contain it.
END = b"\0"
NOT_SOURCES = ("test", "tests", "idle_test", "site-packages", "dist-packages")

MISSING = """\
c4 is not in {data_dir} as ArrayRecord files ({why}).
Either train on the text that every machine has, with --dataset stdlib; or prepare C4
once, which takes a cluster or days:
  - follow https://www.tensorflow.org/datasets/catalog/c4 in an environment that has
    TensorFlow and Apache Beam, which preparing needs and reading does not:
      tfds build c4/en --file_format=array_record --data_dir={data_dir}
  - start again with --data-dir {data_dir}"""


class Source(Protocol):
    """A text from which windows are drawn."""

    def window(self, random: np.random.Generator, length: int) -> np.ndarray:
        """Return bytes from a random position: uint8 (length,)."""
        ...


class Text(NamedTuple):
    """A text in memory.

    Attributes:
      content: uint8 (bytes,).
    """

    content: np.ndarray

    def window(self, random: np.random.Generator, length: int) -> np.ndarray:
        """Return bytes from a random position: uint8 (length,)."""
        start = random.integers(len(self.content) - length, endpoint=True)
        return self.content[start : start + length]


class Documents(NamedTuple):
    """Documents that are read one by one, because they do not fit into memory.

    Attributes:
      source: dictionaries with the bytes of a ``"text"``, to be indexed.
    """

    source: Sequence[Any]

    def window(self, random: np.random.Generator, length: int) -> np.ndarray:
        """Return bytes from a random document on, filled up with other random ones."""
        found = self._document(random)
        found = found[random.integers(len(found)) :]
        while len(found) < length:
            found += self._document(random)
        return np.frombuffer(found[:length], np.uint8)

    def _document(self, random: np.random.Generator) -> bytes:
        return self.source[int(random.integers(len(self.source)))]["text"] + END


class Splits(NamedTuple):
    """Training and validation text.

    Attributes:
      train: text to train on.
      validation: text that shares no document with it.
      name: identifies the text exactly: equal names mean equal text.
    """

    train: Source
    validation: Source
    name: str


def load(dataset: str, data_dir: str | None = None, *, length: int) -> Splits:
    """Load a text.

    Args:
      dataset: one of ``DATASETS``.
      data_dir: the folder of tensorflow-datasets; None for the library's default.
      length: bytes of the windows that will be drawn.

    Returns:
      Training and validation text.

    Raises:
      ValueError: if it cannot be found, with the remedy.
    """
    return c4(data_dir) if dataset == "c4" else standard_library(length=length)


def batch(
    source: Source, *, seed: int, number: int, rows: int, length: int
) -> np.ndarray:
    """Draw windows from random positions.

    Args:
      source: the text.
      seed: decides the positions, together with ``number``.
      number: number of the batch.
      rows: number of windows.
      length: bytes per window.

    Returns:
      int32 (rows, length).
    """
    random = np.random.default_rng([seed, number])
    windows = [source.window(random, length) for _ in range(rows)]
    return np.stack(windows).astype(np.int32)


def standard_library(
    folder: Path | None = None, *, length: int = 1, most: int = MOST_BYTES
) -> Splits:
    """Return the sources of the running Python's standard library.

    They are all modules and packages, without tests and without installed packages. The
    hash of a file's contents assigns one file in ten to the validation text; equal
    files count once. The text differs between versions of Python, and so does its name.

    Args:
      folder: the library; None for that of the running Python.
      length: bytes of the windows that will be drawn.
      most: largest number of bytes in both splits together.

    Returns:
      Training and validation text.

    Raises:
      ValueError: if either is shorter than a window.
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    files = (path.read_bytes() + END for path in _sources(folder))
    # Sorted by hash, so that the cap does not cut off the end of the alphabet.
    by_hash = sorted(
        {hashlib.sha256(content).digest(): content for content in files}.items()
    )
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    total = hashlib.sha256()
    for digest, content in by_hash:
        most -= len(content)
        if most < 0:
            break
        parts[digest[-1] % 10 == 0].append(content)
        total.update(digest)
    splits = [
        Text(np.frombuffer(b"".join(parts[held_out]), np.uint8))
        for held_out in (False, True)
    ]
    for name, split in zip(("train on", "validate with"), splits, strict=True):
        if len(split.content) < length:
            raise ValueError(
                f"the Python sources in {folder} have {len(split.content):,} bytes to "
                f"{name}, fewer than a window of {length:,}: use a Python that has its "
                "library as files, or a smaller --length"
            )
    return Splits(*splits, name=f"stdlib {total.hexdigest()[:12]}")


def c4(data_dir: str | None = None) -> Splits:
    """Open the English C4 of tensorflow-datasets, read without TensorFlow.

    Args:
      data_dir: the folder in which it is prepared; None for the library's default.

    Returns:
      Training and validation text.

    Raises:
      ValueError: if it does not exist as ArrayRecord files, with the remedy.
    """
    # Imported late: it takes seconds, and mistakes in the options are reported first.
    import tensorflow_datasets as tfds

    try:
        sources: Any = [
            tfds.data_source(
                "c4/en",
                data_dir=data_dir,
                split=split,
                download=False,
                builder_kwargs={"file_format": "array_record"},
            )
            for split in ("train", "validation")
        ]
    except (
        *(AssertionError, FileNotFoundError, ImportError, KeyError),
        *(NotImplementedError, ValueError, tfds.core.DatasetNotFoundError),
    ) as error:
        folder = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(MISSING.format(data_dir=folder, why=why)) from error
    return Splits(*map(Documents, sources), name="c4/en")


def _sources(folder: Path) -> Iterator[Path]:
    """Yield the modules in a folder and in its packages, in alphabetical order."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.is_file():
            yield path
        elif path.name not in NOT_SOURCES and (path / "__init__.py").is_file():
            yield from _sources(path)

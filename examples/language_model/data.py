"""Text as bytes: the sources of Python's own standard library, or C4.

Every batch is decided by the seed and its number alone, so that a training goes on with
the very next batch by knowing its number, and all trainings with one seed see the same.
A byte is a token: there is no tokenizer to train, and losses of different texts are all
in bits per byte.
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
# In a nat.
BITS = 1 / math.log(2)
MOST_BYTES = 16_000_000
# Stands between documents; neither sources nor web pages have it.
END = b"\0"
NOT_SOURCES = ("test", "tests", "idle_test", "site-packages", "dist-packages")

MISSING = """\
c4 is not in {data_dir} as ArrayRecord files ({why}).
Either train on what every machine has, with --dataset stdlib, which needs nothing; or
prepare C4 once, which takes a cluster or days:
  - as https://www.tensorflow.org/datasets/catalog/c4 says, in an environment that has
    TensorFlow and Apache Beam, which preparing needs and reading does not:
      tfds build c4/en --file_format=array_record --data_dir={data_dir}
  - start again with --data-dir {data_dir}"""


class Source(Protocol):
    """Text that windows are taken from."""

    def window(self, random: np.random.Generator, length: int) -> np.ndarray:
        """A piece from a random place: uint8 (length,)."""
        ...


class Text(NamedTuple):
    """A text that is held in memory.

    Attributes:
      content: uint8 (bytes,).
    """

    content: np.ndarray

    def window(self, random: np.random.Generator, length: int) -> np.ndarray:
        """A piece from a random place: uint8 (length,)."""
        start = random.integers(len(self.content) - length, endpoint=True)
        return self.content[start : start + length]


class Documents(NamedTuple):
    """Documents that are read one by one, too many to be held in memory.

    Attributes:
      source: dictionaries with the bytes of a ``"text"``, to be indexed.
    """

    source: Sequence[Any]

    def window(self, random: np.random.Generator, length: int) -> np.ndarray:
        """From a random place of a random document, and on into other random ones."""
        found = self._document(random)
        found = found[random.integers(len(found)) :]
        while len(found) < length:
            found += self._document(random)
        return np.frombuffer(found[:length], np.uint8)

    def _document(self, random: np.random.Generator) -> bytes:
        return self.source[int(random.integers(len(self.source)))]["text"] + END


class Splits(NamedTuple):
    """What is trained on, and what is not.

    Attributes:
      train: text to train on.
      validation: text that shares no document with it.
      name: which text it is, exactly: two with the same name are the same.
    """

    train: Source
    validation: Source
    name: str


def load(dataset: str, data_dir: str | None = None, *, length: int) -> Splits:
    """The text of a name.

    Args:
      dataset: one of ``DATASETS``.
      data_dir: where tensorflow-datasets has it prepared; None for its own choice.
      length: bytes of the windows that will be asked for.

    Returns:
      Training and validation text.

    Raises:
      ValueError: if it is not there, with what to do.
    """
    return c4(data_dir) if dataset == "c4" else standard_library(length=length)


def batch(
    source: Source, *, seed: int, number: int, rows: int, length: int
) -> np.ndarray:
    """Windows from random places.

    Args:
      source: where they are taken from.
      seed: decides the places, together with
      number: of the batch.
      rows: how many windows.
      length: bytes of each.

    Returns:
      int32 (rows, length).
    """
    random = np.random.default_rng([seed, number])
    windows = [source.window(random, length) for _ in range(rows)]
    return np.stack(windows).astype(np.int32)


def standard_library(
    folder: Path | None = None, *, length: int = 1, most: int = MOST_BYTES
) -> Splits:
    """The sources of the standard library of the Python that runs this.

    All modules and packages, without tests and without what is installed beside them.
    A file is validation text if the hash of what it holds says so, one in ten; equal
    files count once. The text differs between versions of Python, and its name tells.

    Args:
      folder: the library; None for that of this Python.
      length: bytes of the windows that will be asked for.
      most: bytes that both splits have at most.

    Returns:
      Training and validation text.

    Raises:
      ValueError: if either has no window.
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    files = (path.read_bytes() + END for path in _sources(folder))
    # In the order of the hashes, so that a cap does not cut the end of the alphabet.
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
                f"{name}, fewer than a window of {length:,}: start with a Python that "
                "has its library as files, or a smaller --length"
            )
    return Splits(*splits, name=f"stdlib {total.hexdigest()[:12]}")


def c4(data_dir: str | None = None) -> Splits:
    """The English C4 of tensorflow-datasets, read without TensorFlow.

    Args:
      data_dir: where it is prepared; None for the library's own choice.

    Returns:
      Training and validation text.

    Raises:
      ValueError: if it is not there as ArrayRecord files, with what to do.
    """
    # Takes seconds to import, when mistakes in the options have long been reported.
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
    """The modules in a folder, and those in its packages, in alphabetical order."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.is_file():
            yield path
        elif path.name not in NOT_SOURCES and (path / "__init__.py").is_file():
            yield from _sources(path)

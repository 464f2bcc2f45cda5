"""Files of arrays in the format that ``numpy.load`` reads."""

import io
import re
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from sparseopt_jax.exporting import headers

FIRST_BYTES = b"PK"

_METADATA = "__metadata__."  # begins the names of the metadata
_LONGEST_NAME = 65_535  # bytes; the zip format stores the length in two
_ENDING = ".npy"
# The header of an array of numbers, as `numpy.lib.format.write_array` writes it. NumPy
# reads it with the parser of Python, which fails in many ways.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)(?P<text>"
    rb"\{'descr': '(?P<dtype>[<>|][biufcS]\d+)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[\d, ]*)\), \} *\n)",
    re.DOTALL,
)


def write(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays in the format of ``numpy.savez``.

    Dtypes that NumPy does not have, such as bfloat16, are written as unsigned integers
    of the same bits. ``numpy.savez`` itself would reject an array named ``file``.

    Args:
      file: a file open for writing.
      arrays: contiguous arrays by name; none of the names has a ``name_problem``.
      metadata: strings by name; each is written as the array of its bytes.
    """
    texts = {
        f"{_METADATA}{name}": np.frombuffer(text.encode(), np.uint8)
        for name, text in metadata.items()
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, x in {**texts, **arrays}.items():
            # Its date is constant, so that equal arrays give equal files.
            entry = zipfile.ZipInfo(name + _ENDING)
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(
                    member,
                    x.view(stored_dtype(x.dtype)),
                    version=(1, 0),
                    allow_pickle=False,
                )


def read(data: bytearray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a file that ``write`` has written.

    Args:
      data: the contents of the file.

    Returns:
      The arrays by name, and the metadata.

    Raises:
      ValueError: if it is not such a file, or is damaged. Nothing is unpickled or
        decompressed.
    """
    arrays, metadata = {}, {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise ValueError("its entries are larger than the archive")
            for entry in archive.infolist():
                # `filename` would have other slashes on Windows.
                name = entry.orig_filename.removesuffix(_ENDING)
                if entry.compress_type != zipfile.ZIP_STORED or name in arrays:
                    raise ValueError(
                        f"{entry.filename!r} is compressed, or occurs twice"
                    )
                arrays[name] = _array(bytearray(archive.read(entry)))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is not a complete archive of arrays: {error}") from None
    for name in list(arrays):
        if name.startswith(_METADATA):
            text = arrays.pop(name).tobytes().decode()
            metadata[name.removeprefix(_METADATA)] = text
    return arrays, metadata


def name_problem(name: str) -> str | None:
    r"""Return why an array cannot be read back under a name; None if it can.

    >>> name_problem("kernel")
    >>> name_problem("ker\0nel")
    "an npz file would hold it as 'ker'"
    """
    if name.startswith(_METADATA):
        return f"names that begin with {_METADATA!r} are those of the file's metadata"
    held = zipfile.ZipInfo(name).filename
    if held != name:
        return f"an npz file would hold it as {held!r}"
    if len((name + _ENDING).encode()) > _LONGEST_NAME:
        return f"an npz file cannot hold names longer than {_LONGEST_NAME} bytes"
    return None


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype to store: unsigned integers if NumPy lacks the array's own.

    >>> import jax.numpy as jnp
    >>> stored_dtype(jnp.dtype("float32")), stored_dtype(jnp.dtype("bfloat16"))
    (dtype('float32'), dtype('uint16'))
    """
    return np.dtype(f"u{dtype.itemsize}") if dtype.isbuiltin == 2 else dtype


def _array(data: bytearray) -> np.ndarray:
    header = _HEADER.match(data)
    if header is None or int.from_bytes(header["length"], "little") != len(
        header["text"]
    ):
        raise ValueError("an array has no header of version 1.0, in C order")
    sizes = [int(size) for size in header["shape"].split(b",") if size.strip()]
    try:
        dtype = np.dtype(header["dtype"].decode())
    except TypeError as error:
        raise ValueError(f"the header of an array has no dtype: {error}") from None
    return headers.array_in(data, header.end(), len(data), sizes, dtype)

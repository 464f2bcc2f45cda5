"""Read IDX, the file format of MNIST and of its successors."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

# The third byte of a file gives the type of its numbers, which are big-endian.
TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read(path: Path) -> np.ndarray:
    """Read a file, gzipped or not.

    Args:
      path: the file; its first bytes tell whether it is compressed.

    Returns:
      Its array, in native byte order.

    Raises:
      ValueError: if it is not an IDX file, or its size does not match its header.
      OSError: if it cannot be opened.
    """
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from None
    kind, axes = content[2:4] if len(content) >= 4 else (0, 0)
    if content[:2] != b"\0\0" or kind not in TYPES or axes == 0:
        raise ValueError(f"{path} is not an IDX file: it begins with {content[:4]!r}")
    start = 4 + 4 * axes
    if len(content) < start:
        raise ValueError(f"{path} is cut short: its header has {axes} axes")
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    dtype = np.dtype(TYPES[kind])
    size = start + dtype.itemsize * math.prod(shape)
    if len(content) != size:
        raise ValueError(
            f"{path} has {len(content):,} bytes, but an array of shape {tuple(shape)} "
            f"takes {size:,}: copy or download it again"
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))

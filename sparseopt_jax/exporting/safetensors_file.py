"""Files of arrays in the format of the package safetensors.

First come eight bytes with the length of the header, little-endian; then the header,
which is JSON with the dtype, shape and place of every array; then the bytes of one
array after the other. The package itself cannot read bfloat16 and float8 into NumPy;
this module can.
"""

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from sparseopt_jax.exporting import headers

# In the package's order, which is by size, so that every array is aligned in the file.
_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
DTYPES = {name: jnp.dtype(name) for name in _NAMES}
_BY_NAME = {name: DTYPES[dtype] for dtype, name in _NAMES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}

_METADATA = "__metadata__"
_TEXTS = headers.Field(
    "a dictionary of strings",
    lambda value: (
        isinstance(value, dict) and all(isinstance(x, str) for x in value.values())
    ),
    is_optional=True,
)
_ENTRY = {
    "dtype": headers.one_of(_BY_NAME),
    "shape": headers.SHAPE,
    "data_offsets": headers.RANGE,
}
_LONGEST_HEADER = 100_000_000  # the package's limit


def write(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays, byte for byte as the package safetensors would.

    Args:
      file: a file open for writing.
      arrays: contiguous arrays by name, each of one of ``DTYPES``; none of the names
        has a ``name_problem``.
      metadata: strings by name.

    Raises:
      ValueError: if the header is too long.
    """
    ordered = sorted(
        arrays.items(), key=lambda item: (-_ORDER[item[1].dtype.name], item[0])
    )
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    place = 0
    for name, x in ordered:
        header[name] = {
            "dtype": _NAMES[x.dtype.name],
            "shape": list(x.shape),
            "data_offsets": [place, place + x.nbytes],
        }
        place += x.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise ValueError(
            f"the names and shapes of {len(arrays)} arrays take {len(text)} bytes; a "
            f"safetensors file allows {_LONGEST_HEADER}: write several files"
        )
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for _, x in ordered:
        file.write(x.reshape(-1).view(np.uint8).data)


def read(data: bytearray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a file that ``write`` or the package safetensors has written.

    Args:
      data: the contents of the file.

    Returns:
      The arrays by name, which share the memory of ``data``, and the metadata.

    Raises:
      ValueError: if it is not a safetensors file, or is damaged: every place in the
        header is checked before it is read.
    """
    length = int.from_bytes(data[:8], "little")
    start = 8 + length
    if len(data) < 8 or length > _LONGEST_HEADER or start > len(data):
        raise ValueError("its header is longer than the file")
    header = headers.read_json(data[8:start])
    headers.check_fields(header, {_METADATA: _TEXTS}, "its header")
    metadata = header.pop(_METADATA, {})
    for name, entry in header.items():
        headers.check_fields(entry, _ENTRY, f"the header of {name!r}")
    arrays, place = {}, start
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, stop = (start + offset for offset in entry["data_offsets"])
        if first != place or stop > len(data):
            raise ValueError(
                f"{name!r} does not begin where the last array ends, or its header "
                "describes more bytes than the file has"
            )
        dtype = _BY_NAME[entry["dtype"]]
        try:
            arrays[name] = headers.array_in(data, first, stop, entry["shape"], dtype)
        except ValueError as error:
            raise ValueError(f"the array {name!r}: {error}") from None
        place = stop
    if place != len(data):
        raise ValueError(
            f"its header describes {place - start} bytes of arrays, the file has "
            f"{len(data) - start}"
        )
    return arrays, metadata


def name_problem(name: str) -> str | None:
    """Return why an array cannot be read back under a name; None if it can.

    >>> name_problem("kernel")
    >>> name_problem("__metadata__")
    "'__metadata__' is the name of the file's metadata"
    """
    return f"{name!r} is the name of the file's metadata" if name == _METADATA else None

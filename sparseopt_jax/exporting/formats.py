"""The formats of exported files, and their metadata."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, NotRequired, TypedDict

import numpy as np

from sparseopt_jax._version import __version__
from sparseopt_jax.exporting import encodings, headers, npz_file, safetensors_file

# The version that is written. Increase it when the meaning of a name changes.
VERSION = 1

# The only string in a file's metadata that this library writes.
_NAME = "sparseopt_jax"


class LeafMetadata(TypedDict):
    """The metadata of one array; the last three are for sparse arrays only.

    ``block`` is the size of the blocks of a kernel that consists of blocks.
    """

    shape: list[int]
    dtype: str
    active: NotRequired[int]
    sparsity: NotRequired[float]
    block: NotRequired[list[int]]


class Metadata(TypedDict):
    """The metadata of a file, as JSON."""

    format: str
    version: int
    sparseopt_jax: str
    sparsity: float
    leaves: dict[str, LeafMetadata]
    checksum: str


class Format(NamedTuple):
    """A format of files.

    Attributes:
      name: its name in the file, which is that of compressed-tensors if there is one.
      encoding: the encoding of sparse arrays.
      write: writes arrays and strings to an open file.
      name_problem: returns why an array cannot be read back under a name, or None.
    """

    name: str
    encoding: encodings.Encoding
    write: Callable[[BinaryIO, Mapping[str, np.ndarray], Mapping[str, str]], None]
    name_problem: Callable[[str], str | None]


FORMATS = {
    "bitmask": Format(
        name="sparse-bitmask",
        encoding=encodings.BITMASK,
        write=safetensors_file.write,
        name_problem=safetensors_file.name_problem,
    ),
    "csr": Format(
        name="csr",
        encoding=encodings.CSR,
        write=npz_file.write,
        name_problem=npz_file.name_problem,
    ),
    "dense": Format(
        name="dense",
        encoding=encodings.DENSE,
        write=safetensors_file.write,
        name_problem=safetensors_file.name_problem,
    ),
}
_BY_NAME = {form.name: form for form in FORMATS.values()}

_VERSION = {"version": headers.SIZE}
_FILE = {
    "format": headers.one_of(_BY_NAME),
    "sparseopt_jax": headers.TEXT,
    "sparsity": headers.SHARE,
    "leaves": headers.DICTIONARY,
}
_LEAF = {
    "shape": headers.SHAPE,
    "dtype": headers.one_of(safetensors_file.DTYPES),
    "active": headers.SIZE._replace(is_optional=True),
    "sparsity": headers.SHARE._replace(is_optional=True),
    "block": headers.SHAPE._replace(is_optional=True),
}


def stored_name(path: str, ending: str) -> str:
    """Return the name of a stored array of the leaf at a path.

    >>> stored_name("head/kernel", "bitmask"), stored_name("", "data")
    ('head/kernel.bitmask', 'data')
    """
    return ".".join(part for part in (path, ending) if part) or "array"


def name_problem(form: Format, name: str) -> str | None:
    r"""Return why a file cannot hold an array under a name; None if it can.

    >>> name_problem(FORMATS["bitmask"], "kernel")
    >>> name_problem(FORMATS["bitmask"], "ker\ud800nel")
    'it is not valid Unicode'
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    return form.name_problem(name)


def write(
    file: BinaryIO,
    form: Format,
    arrays: Mapping[str, np.ndarray],
    leaves: dict[str, LeafMetadata],
) -> None:
    """Write arrays and the metadata of the file.

    Args:
      file: a file open for writing.
      form: the format of the file.
      arrays: the arrays to store, by name.
      leaves: the metadata of each leaf, by path.
    """
    metadata: Metadata = {
        "format": form.name,
        "version": VERSION,
        "sparseopt_jax": __version__,
        "sparsity": _total_sparsity(leaves),
        "leaves": leaves,
        "checksum": "",
    }
    metadata["checksum"] = _checksum(arrays, metadata)
    form.write(file, arrays, {_NAME: json.dumps(metadata)})


def read(data: bytearray) -> tuple[Format, dict[str, np.ndarray], Metadata]:
    """Read a file that ``write`` has written.

    Args:
      data: the contents of the file.

    Returns:
      The file's format, the arrays by name, and the metadata.

    Raises:
      ValueError: if the file is damaged, or was written by another program or a later
        version.
    """
    module = npz_file if data.startswith(npz_file.FIRST_BYTES) else safetensors_file
    arrays, texts = module.read(data)
    if _NAME not in texts:
        raise ValueError(
            "it holds arrays that so.export has not written: read it with the package "
            "safetensors or numpy.load"
        )
    metadata = headers.read_json(texts[_NAME])
    headers.check_fields(metadata, _VERSION, "its metadata")
    if metadata["version"] > VERSION:
        raise ValueError(
            f"it has version {metadata['version']} of the format, which a later "
            f"version of sparseopt_jax wrote; this one reads versions up to {VERSION}: "
            "pip install --upgrade sparseopt_jax"
        )
    if metadata.get("checksum") != _checksum(arrays, metadata):
        raise ValueError("its contents were changed after it was written")
    headers.check_fields(metadata, _FILE, "its metadata")
    for path, leaf in metadata["leaves"].items():
        where = f"the metadata of {path!r:.200}"
        headers.check_fields(leaf, _LEAF, where)
        expected = {"": leaf} if "active" in leaf else {}
        if leaf.get("sparsity", 0.0) != _total_sparsity(expected):
            raise ValueError(f"{where} has another sparsity than its active weights")
    if metadata["sparsity"] != _total_sparsity(metadata["leaves"]):
        raise ValueError("its metadata has another sparsity than its leaves")
    return _BY_NAME[metadata["format"]], arrays, metadata


def sparsity(active: int, size: int) -> float:
    """Return the share of inactive weights; 0.0 of none.

    >>> sparsity(1, 4), sparsity(0, 0)
    (0.75, 0.0)
    """
    return 1 - active / size if size else 0.0


def _total_sparsity(leaves: Mapping[str, LeafMetadata]) -> float:
    sparse = [leaf for leaf in leaves.values() if "active" in leaf]
    return sparsity(
        active=sum(leaf["active"] for leaf in sparse),
        size=sum(math.prod(leaf["shape"]) for leaf in sparse),
    )


def _checksum(arrays: Mapping[str, np.ndarray], metadata: Metadata) -> str:
    """Return the SHA-256 of all stored data, independent of its order in the file."""
    said: dict[str, Any] = {**metadata, "checksum": ""}
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, x in sorted(arrays.items()):
        x = x.view(npz_file.stored_dtype(x.dtype))
        found.update(json.dumps([name, x.dtype.str, list(x.shape)]).encode())
        found.update(x.reshape(-1).view(np.uint8).data)
    return found.hexdigest()

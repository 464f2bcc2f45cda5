"""The formats of exported files, and their metadata."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, NotRequired, TypedDict, cast

import numpy as np

from sparseopt_jax._version import __version__
from sparseopt_jax.exporting import encodings, npz_file, safetensors_file

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
    sizes = [
        (leaf["active"], int(np.prod(leaf["shape"], dtype=object)))
        for leaf in leaves.values()
        if "active" in leaf
    ]
    active, size = map(sum, zip(*sizes, strict=True)) if sizes else (0, 0)
    metadata: Metadata = {
        "format": form.name,
        "version": VERSION,
        "sparseopt_jax": __version__,
        "sparsity": 1 - active / size if size else 0.0,
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
    try:
        metadata = cast(Metadata, json.loads(texts[_NAME]))
        version = metadata["version"]
        if type(version) is not int:
            raise TypeError(f"version {version!r}")
        if version > VERSION:
            raise ValueError(
                f"it has version {version} of the format, which a later version of "
                f"sparseopt_jax wrote; this one reads versions up to {VERSION}: pip "
                "install --upgrade sparseopt_jax"
            )
        if metadata["checksum"] != _checksum(arrays, metadata):
            raise ValueError("its contents were changed after it was written")
        return _BY_NAME[metadata["format"]], arrays, metadata
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its metadata are incomplete: {error!r}") from None


def _checksum(arrays: Mapping[str, np.ndarray], metadata: Metadata) -> str:
    """Return the SHA-256 of all stored data, independent of its order in the file."""
    said: dict[str, Any] = {**metadata, "checksum": ""}
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, x in sorted(arrays.items()):
        x = x.view(npz_file.stored_dtype(x.dtype))
        found.update(json.dumps([name, x.dtype.str, list(x.shape)]).encode())
        found.update(x.reshape(-1).view(np.uint8).data)
    return found.hexdigest()

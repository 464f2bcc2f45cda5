"""Encodings of a sparse array as several stored arrays, and the way back."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sparseopt_jax.exporting.npz_file import stored_dtype

Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]
Part = Callable[[str], np.ndarray]


class Encoding(NamedTuple):
    """One way to store a sparse array.

    Attributes:
      keeps_inactive: whether inactive weights are stored too.
      encode: maps an array and its mask to the stored arrays, by the ending that is
        appended to the array's name; ``""`` appends nothing.
      decode: maps a function that returns these by ending, and the shape and dtype of
        the array, to the array and its mask. Raises ``ValueError`` or ``KeyError`` if
        they do not fit.
    """

    keeps_inactive: bool
    encode: Callable[[np.ndarray, np.ndarray], Arrays]
    decode: Callable[[Part, Shape, np.dtype], tuple[np.ndarray, np.ndarray]]


def rows_and_columns(shape: Shape) -> tuple[int, int]:
    """Return the shape of an array as a matrix, whose columns are the last axis.

    Examples:
      >>> rows_and_columns((3, 3, 16, 32)), rows_and_columns((8,)), rows_and_columns(())
      ((144, 32), (1, 8), (1, 1))
    """
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def typed(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a stored array in its dtype; its bits may be stored as unsigned integers.

    Raises:
      ValueError: if it is stored in another dtype.
    """
    if x.dtype not in (dtype, stored_dtype(dtype)):
        raise ValueError(f"an array of {dtype} is stored as {x.dtype}")
    return x.view(dtype)


def _encode_bitmask(x: np.ndarray, mask: np.ndarray) -> Arrays:
    rows = mask.reshape(rows_and_columns(x.shape))
    counts = rows.sum(axis=1, dtype=np.int64)
    return {
        "shape": np.asarray(x.shape, np.int64),
        "compressed": x[mask],
        "bitmask": _packed(rows),
        "row_offsets": np.cumsum(counts) - counts,
    }


def _decode_bitmask(
    part: Part, shape: Shape, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    mask = _unpacked(part("bitmask"), shape)
    return _filled(mask, typed(part("compressed"), dtype)), mask


def _encode_csr(x: np.ndarray, mask: np.ndarray) -> Arrays:
    shape = rows_and_columns(x.shape)
    rows = mask.reshape(shape)
    row_ends = np.cumsum(rows.sum(axis=1, dtype=np.int64))
    small = max(*shape, x.size) <= np.iinfo(np.int32).max
    index_type = np.int32 if small else np.int64
    return {
        "format": np.asarray(b"csr"),
        "shape": np.asarray(shape, np.int64),
        "data": x[mask],
        "indices": np.nonzero(rows)[1].astype(index_type),
        "indptr": np.concatenate([[0], row_ends]).astype(index_type),
    }


def _decode_csr(
    part: Part, shape: Shape, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = rows_and_columns(shape)
    indptr, indices = part("indptr"), part("indices")
    if {indptr.dtype.name, indices.dtype.name} - {"int32", "int64"}:
        raise ValueError("indptr and indices are not int32 or int64")
    counts = np.diff(indptr)
    if indptr.shape != (rows + 1,) or indptr[0] or (counts < 0).any():
        raise ValueError("indptr does not count the weights of each row")
    if indices.shape != (indptr[-1],):
        raise ValueError("the number of indices differs from the count in indptr")
    if indices.size and (indices.min() < 0 or indices.max() >= columns):
        raise ValueError(f"indices are not in [0, {columns})")
    places = np.repeat(np.arange(rows), counts) * columns + indices
    if (np.diff(places) <= 0).any():
        raise ValueError("indices do not ascend in each row")
    mask = np.zeros(math.prod(shape), np.bool_)
    mask[places] = True
    mask = mask.reshape(shape)
    return _filled(mask, typed(part("data"), dtype)), mask


def _encode_dense(x: np.ndarray, mask: np.ndarray) -> Arrays:
    return {"": x, "bitmask": _packed(mask.reshape(rows_and_columns(x.shape)))}


def _decode_dense(
    part: Part, shape: Shape, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    x = typed(part(""), dtype)
    if x.shape != shape:
        raise ValueError(f"an array of shape {shape} is stored with shape {x.shape}")
    return x, _unpacked(part("bitmask"), shape)


def _packed(rows: np.ndarray) -> np.ndarray:
    return np.packbits(rows, axis=1, bitorder="little")


def _unpacked(bits: np.ndarray, shape: Shape) -> np.ndarray:
    rows, columns = rows_and_columns(shape)
    if bits.dtype != np.uint8 or bits.shape != (rows, -(-columns // 8)):
        raise ValueError(f"bits of shape {bits.shape} do not fit the shape {shape}")
    mask = np.unpackbits(bits, axis=1, count=columns, bitorder="little")
    return mask.view(np.bool_).reshape(shape)


def _filled(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    if values.shape != (np.count_nonzero(mask),):
        raise ValueError(
            f"{values.size} values are stored for {np.count_nonzero(mask)} weights"
        )
    x = np.zeros(mask.shape, values.dtype)
    x[mask] = values
    return x


BITMASK = Encoding(False, _encode_bitmask, _decode_bitmask)
CSR = Encoding(False, _encode_csr, _decode_csr)
DENSE = Encoding(True, _encode_dense, _decode_dense)

"""Encodings of a sparse array as several stored arrays, and the way back."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sparseopt_jax.exporting.npz_file import stored_dtype

Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]
Part = Callable[[str], np.ndarray]

_CSR_NAME = np.asarray(b"csr")


class Encoding(NamedTuple):
    """One way to store a sparse array.

    Attributes:
      keeps_inactive: whether inactive weights are stored too.
      encode: maps an array and its mask to the stored arrays, by the ending that is
        appended to the array's name; ``""`` appends nothing.
      decode: maps a function that returns these by ending, and the shape and dtype of
        the array, to the array and its mask. Raises ``ValueError`` unless ``encode``
        would return the same.
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
    return {
        "shape": np.asarray(x.shape, np.int64),
        "compressed": x[mask],
        "bitmask": _packed(rows),
        "row_offsets": _row_offsets(rows),
    }


def _decode_bitmask(
    part: Part, shape: Shape, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    _check_equal("shape", part("shape"), np.asarray(shape, np.int64))
    mask = _unpacked(part("bitmask"), shape)
    rows, offsets = mask.reshape(rows_and_columns(shape)), part("row_offsets")
    if offsets.shape != rows.shape[:1]:
        raise ValueError(f"row_offsets of shape {offsets.shape} do not fit {shape}")
    _check_equal("row_offsets", offsets, _row_offsets(rows))
    return _filled(mask.reshape(-1), part("compressed"), shape, dtype), mask


def _encode_csr(x: np.ndarray, mask: np.ndarray) -> Arrays:
    shape = rows_and_columns(x.shape)
    rows = mask.reshape(shape)
    row_ends = np.cumsum(rows.sum(axis=1, dtype=np.int64))
    index_type = _index_type(shape)
    return {
        "format": _CSR_NAME,
        "shape": np.asarray(shape, np.int64),
        "data": x[mask],
        "indices": np.nonzero(rows)[1].astype(index_type),
        "indptr": np.concatenate([[0], row_ends]).astype(index_type),
    }


def _decode_csr(
    part: Part, shape: Shape, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = rows_and_columns(shape)
    _check_equal("format", part("format"), _CSR_NAME)
    _check_equal("shape", part("shape"), np.asarray((rows, columns), np.int64))
    indptr, indices = part("indptr"), part("indices")
    index_type = _index_type((rows, columns))
    if {indptr.dtype, indices.dtype} != {index_type}:
        raise ValueError(f"indptr and indices are not {index_type}")
    # Compared, since differences of forged numbers could overflow.
    if indptr.shape != (rows + 1,) or indptr[0] or (indptr[1:] < indptr[:-1]).any():
        raise ValueError("indptr does not count the weights of each row")
    if indices.shape != (indptr[-1],):
        raise ValueError("the number of indices differs from the count in indptr")
    if indices.size and (indices.min() < 0 or indices.max() >= columns):
        raise ValueError(f"indices are not in [0, {columns})")
    places = np.repeat(np.arange(rows), np.diff(indptr)) * columns + indices
    if (np.diff(places) <= 0).any():
        raise ValueError("indices do not ascend in each row")
    mask = np.zeros(math.prod(shape), np.bool_)
    mask[places] = True
    return _filled(places, part("data"), shape, dtype), mask.reshape(shape)


def _index_type(shape: tuple[int, int]) -> np.dtype:
    is_small = max(*shape, math.prod(shape)) <= np.iinfo(np.int32).max
    return np.dtype(np.int32 if is_small else np.int64)


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
    _check_equal("bitmask", bits, _packed(mask))
    return mask.view(np.bool_).reshape(shape)


def _row_offsets(rows: np.ndarray) -> np.ndarray:
    counts = rows.sum(axis=1, dtype=np.int64)
    return np.cumsum(counts) - counts


def _check_equal(name: str, x: np.ndarray, expected: np.ndarray) -> None:
    if x.dtype != expected.dtype or not np.array_equal(x, expected):
        raise ValueError(f"{name} does not fit the shape and the other arrays")


def _filled(
    where: np.ndarray, values: np.ndarray, shape: Shape, dtype: np.dtype
) -> np.ndarray:
    """Return an array of zeros but for values, at places or where a mask is True."""
    count = np.count_nonzero(where) if where.dtype == np.bool_ else where.size
    if values.shape != (count,):
        raise ValueError(f"{values.size} values are stored for {count} weights")
    values = typed(values, dtype)
    # Few of the pages of a large and very sparse array are ever in memory.
    x = np.zeros(math.prod(shape), dtype)
    x[where] = values
    return x.reshape(shape)


BITMASK = Encoding(False, _encode_bitmask, _decode_bitmask)
CSR = Encoding(False, _encode_csr, _decode_csr)
DENSE = Encoding(True, _encode_dense, _decode_dense)

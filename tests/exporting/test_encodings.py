"""Encodings of sparse arrays: by hand, and as other programs read them."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from sparseopt_jax.exporting.encodings import BITMASK, CSR, DENSE

SHAPES = [(5, 9), (3, 3, 4, 6), (11,), (), (0, 3), (3, 0), (2, 16)]
ENCODINGS = {"bitmask": BITMASK, "csr": CSR, "dense": DENSE}


def sparse(shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    mask = np.asarray(rng.random(shape) < 0.4)
    # One active weight is zero, and one is NaN.
    x = np.where(mask, rng.normal(size=shape), 0).astype(dtype)
    places = np.flatnonzero(mask)
    if len(places) > 2:
        x.reshape(-1)[places[:2]] = (0, np.nan)
    return x, mask


def test_bits_of_a_small_kernel():
    x = np.array([[0, 2, 0], [0, 0, 0], [5, 0, 6]], np.float32)
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1]], bool)
    stored = BITMASK.encode(x, mask)
    assert {name: part.tolist() for name, part in stored.items()} == {
        "shape": [3, 3],
        "compressed": [0, 2, 5, 6],
        "bitmask": [[0b011], [0b000], [0b101]],
        "row_offsets": [0, 2, 2],
    }
    assert {part.dtype.name for part in stored.values()} == {
        "int64",
        "float32",
        "uint8",
    }


def test_rows_of_a_small_kernel():
    x = np.array([[0, 2, 0], [0, 0, 0], [5, 0, 6]], np.float32)
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1]], bool)
    stored = CSR.encode(x, mask)
    assert {name: part.tolist() for name, part in stored.items()} == {
        "format": b"csr",
        "shape": [3, 3],
        "data": [0, 2, 5, 6],
        "indices": [0, 1, 0, 2],
        "indptr": [0, 2, 2, 4],
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ENCODINGS)
def test_arrays_come_back_as_they_were(name, shape):
    for dtype in (np.float32, jnp.bfloat16, np.int8):
        x, mask = sparse(shape, np.float32)
        x = np.nan_to_num(x).astype(dtype) if dtype == np.int8 else x.astype(dtype)
        stored = ENCODINGS[name].encode(x, mask)
        again, mask_again = ENCODINGS[name].decode(stored.get, shape, x.dtype)
        assert again.dtype == x.dtype and again.shape == mask_again.shape == shape
        assert again.tobytes() == x.tobytes()
        np.testing.assert_array_equal(mask_again, mask)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_names_and_bits_are_those_of_compressed_tensors(shape):
    # The same as its `bitmask_decompress`, in NumPy.
    x, mask = sparse(shape)
    stored = BITMASK.encode(x, mask)
    columns = shape[-1] if shape else 1
    bits = np.unpackbits(
        stored["bitmask"], axis=-1, count=columns, bitorder="little"
    ).reshape(stored["shape"])
    again = np.zeros(stored["shape"], x.dtype)
    again[bits.astype(bool)] = stored["compressed"]
    np.testing.assert_array_equal(again, x)
    # The start of each row.
    if len(shape) == 2 and all(shape):
        for row, start in enumerate(stored["row_offsets"]):
            stop = start + mask[row].sum()
            values = stored["compressed"][start:stop]
            np.testing.assert_array_equal(values, x[row][mask[row]])


def test_scipy_reads_the_rows():
    x, mask = sparse((3, 3, 4, 6))
    stored = CSR.encode(x, mask)
    parts = (stored["data"], stored["indices"], stored["indptr"])
    matrix = scipy.sparse.csr_array(parts, shape=tuple(stored["shape"]))
    assert matrix.nnz == mask.sum() and matrix.has_canonical_format
    np.testing.assert_array_equal(matrix.toarray(), x.reshape(36, 6))


def changed(stored, **parts):
    return {**stored, **{name: np.asarray(part) for name, part in parts.items()}}.get


def int32(*values):
    return np.array(values, np.int32)


ROWS = [
    ({"indptr": int32(0, 1, 2)}, "indptr does not count"),
    ({"indptr": int32(1, 2, 2, 4)}, "indptr does not count"),
    ({"indptr": int32(0, 3, 2, 4)}, "indptr does not count"),
    ({"indptr": [0, 2, 2, 4]}, "are not int32"),
    ({"indptr": [0.0, 2.0, 2.0, 4.0]}, "are not int32"),
    ({"indptr": int32(0, 2, 2, 3)}, "the number of indices"),
    ({"indices": int32(0, 1, 0, 3)}, "are not in"),
    ({"indices": int32(0, -1, 0, 2)}, "are not in"),
    ({"indices": int32(1, 0, 0, 2)}, "do not ascend"),
    ({"indices": int32(1, 1, 0, 2)}, "do not ascend"),
    ({"indices": int32(0, 1, 0, 2)[None]}, "the number of indices"),
    ({"data": np.zeros(3, np.float32)}, "3 values are stored for 4"),
    ({"data": np.zeros(4)}, "is stored as float64"),
    ({"shape": [3, 4]}, "shape does not fit"),
    ({"format": b"csc"}, "format does not fit"),
]


@pytest.mark.parametrize(("parts", "message"), ROWS)
def test_rows_that_do_not_fit_are_an_error(parts, message):
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1]], bool)
    stored = CSR.encode(mask.astype(np.float32), mask)
    with pytest.raises(ValueError, match=message):
        CSR.decode(changed(stored, **parts), mask.shape, np.dtype("f4"))


def test_row_ends_whose_differences_overflow_are_an_error():
    mask = np.ones((3, 3), np.bool_)
    stored = CSR.encode(mask.astype(np.float32), mask)
    # The differences are positive in 32 bits, and ask for 32 GB.
    indptr = int32(0, 2**31 - 1, -2, 9)
    with pytest.raises(ValueError, match="indptr does not count"):
        CSR.decode(changed(stored, indptr=indptr), mask.shape, np.dtype("f4"))


@pytest.mark.parametrize(
    "parts",
    [
        {"bitmask": np.zeros((3, 2), np.uint8)},
        {"bitmask": np.zeros((3, 1), np.int8)},
        {"bitmask": np.uint8([[0b1011], [0], [0b101]])},
        {"row_offsets": [0, 2, 3]},
        {"row_offsets": [0, 2]},
        {"shape": [3, 4]},
        {"compressed": np.zeros(5, np.float32)},
        {"compressed": np.zeros((4, 1), np.float32)},
        {"compressed": np.zeros(4, np.int32)},
    ],
)
def test_bits_that_do_not_fit_are_an_error(parts):
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1]], bool)
    stored = BITMASK.encode(mask.astype(np.float32), mask)
    with pytest.raises(ValueError, match=r"bits|values|stored|fit"):
        BITMASK.decode(changed(stored, **parts), mask.shape, np.dtype("f4"))


def test_whole_arrays_that_do_not_fit_are_an_error():
    mask = np.ones((2, 3), bool)
    stored = DENSE.encode(mask.astype(np.float32), mask)
    whole = {"": np.zeros((3, 2), np.float32)}
    with pytest.raises(ValueError, match="stored with shape"):
        DENSE.decode(changed(stored, **whole), mask.shape, np.dtype("f4"))

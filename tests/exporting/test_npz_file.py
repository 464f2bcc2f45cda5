"""Files of arrays in NumPy's format."""

import io
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.exporting.npz_file import name_problem, read, write

# `numpy.savez` has arguments of the first two names.
ARRAYS = {
    "file": np.arange(3.0),
    "allow_pickle": np.array(2, np.int64),
    "a/b.npy": np.zeros((0, 3), np.float16),
    "format": np.asarray(b"csr"),
    "half": np.array([1.5, np.nan], jnp.bfloat16),
}
METADATA = {"one": "text", "two": "é\n"}


@pytest.fixture(scope="module")
def written():
    file = io.BytesIO()
    write(file, ARRAYS, METADATA)
    return file.getvalue()


def test_files_are_read_as_they_were_written(written):
    arrays, metadata = read(bytearray(written))
    assert metadata == METADATA and arrays.keys() == ARRAYS.keys()
    for name, x in ARRAYS.items():
        assert arrays[name].shape == x.shape
        assert arrays[name].tobytes() == x.tobytes()
    assert arrays["half"].dtype == np.uint16


def test_numpy_reads_them(written):
    with np.load(io.BytesIO(written), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["file"], ARRAYS["file"])
        assert arrays["format"].item() == b"csr"


def test_files_depend_on_their_contents_alone(written):
    file = io.BytesIO()
    write(file, ARRAYS, METADATA)
    assert file.getvalue() == written


def test_names_that_do_not_come_back_are_problems():
    for name in ("", "a.npy", "/a", "..", "a\\b", "é", "n" * 65_531, "__metadata__"):
        assert name_problem(name) is None
        file = io.BytesIO()
        write(file, {name: np.zeros(1)}, METADATA)
        assert read(bytearray(file.getvalue()))[0].keys() == {name}
    assert "are those of the file's metadata" in name_problem("__metadata__.other")
    assert name_problem("a\0b") == "an npz file would hold it as 'a'"
    assert "longer than 65535 bytes" in name_problem("é" * 32_766)


def archive(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return file.getvalue()


def array(x, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, x, **options)
    return file.getvalue()


def compressed():
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(1000))
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def pickled():
    header = array(np.array([None], object), allow_pickle=True)
    return header[:128] + pickle.dumps(np.array([Evil()], object))


def shaped(shape):
    """Return an array whose header has another shape."""
    return array(np.zeros(1)).replace(b"(1,), }        ", shape)


DAMAGED = {
    "no archive": b"PK and nothing more",
    "compressed": compressed(),
    "no array": archive(a=b"text"),
    "an object": archive(a=pickled()),
    "columns first": archive(a=array(np.asfortranarray(np.zeros((2, 3))))),
    "another version": archive(a=array(np.zeros(1), version=(2, 0))),
    "too few bytes": archive(a=array(np.zeros(3))[:-1]),
    "too many bytes": archive(a=array(np.zeros(3)) + b"1"),
    "a huge shape": archive(a=shaped(b"(999999999,), }")),
    "a negative shape": archive(a=shaped(b"(-1,-1), }     ")),
    "an expression": archive(a=shaped(b"(9**9,), }     ")),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_is_an_error(case):
    with pytest.raises(
        ValueError, match=r"archive|array|compressed|header|magic|malformed|dimensions"
    ):
        read(bytearray(DAMAGED[case]))


def test_a_name_that_stands_twice_is_an_error():
    file = io.BytesIO()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "w") as z:
        for _ in range(2):
            z.writestr("a.npy", array(np.zeros(1)))
    with pytest.raises(ValueError, match="occurs twice"):
        read(bytearray(file.getvalue()))

"""Files of arrays in the format of the package safetensors."""

import base64
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.exporting.safetensors_file import DTYPES, name_problem, read, write

# ARRAYS as written by safetensors 0.8.0.
GOLDEN = base64.b64decode(
    "0AEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJuYW1lIjoiXCLDqVxuIn0sIsOpIjp7ImR0eXBlIjoi"
    "STY0Iiwic2hhcGUiOltdLCJkYXRhX29mZnNldHMiOlswLDhdfSwiYS9rZXJuZWwiOnsiZHR5cGUi"
    "OiJGMzIiLCJzaGFwZSI6WzIsMl0sImRhdGFfb2Zmc2V0cyI6WzgsMjRdfSwiYi5jb21wcmVzc2Vk"
    "Ijp7ImR0eXBlIjoiQkYxNiIsInNoYXBlIjpbMl0sImRhdGFfb2Zmc2V0cyI6WzI0LDI4XX0sImVt"
    "cHR5Ijp7ImR0eXBlIjoiRjE2Iiwic2hhcGUiOlswLDNdLCJkYXRhX29mZnNldHMiOlsyOCwyOF19"
    "LCJjIjp7ImR0eXBlIjoiRjhfRTRNMyIsInNoYXBlIjpbMV0sImRhdGFfb2Zmc2V0cyI6WzI4LDI5"
    "XX0sImIuYml0bWFzayI6eyJkdHlwZSI6IlU4Iiwic2hhcGUiOlsxLDFdLCJkYXRhX29mZnNldHMi"
    "OlsyOSwzMF19LCJmbGFncyI6eyJkdHlwZSI6IkJPT0wiLCJzaGFwZSI6WzJdLCJkYXRhX29mZnNl"
    "dHMiOlszMCwzMl19fSAgIAcAAAAAAAAAAADAPwAAAIAAAMB/AABAQIA/wX84BQEA"
)
ARRAYS = {
    "a/kernel": np.array([[1.5, -0.0], [np.nan, 3]], np.float32),
    "b.compressed": np.array([0x3F80, 0x7FC1], np.uint16).view(jnp.bfloat16),
    "b.bitmask": np.array([[5]], np.uint8),
    "c": np.array([1], jnp.float8_e4m3fn),
    "empty": np.zeros((0, 3), np.float16),
    "é": np.array(7, np.int64),
    "flags": np.array([True, False]),
}
METADATA = {"name": '"é\n'}


def test_files_are_those_of_the_package():
    file = io.BytesIO()
    write(file, ARRAYS, METADATA)
    assert file.getvalue() == GOLDEN


def test_files_of_the_package_are_read():
    arrays, metadata = read(bytearray(GOLDEN))
    assert metadata == METADATA and arrays.keys() == ARRAYS.keys()
    for name, x in ARRAYS.items():
        assert arrays[name].dtype == x.dtype and arrays[name].shape == x.shape
        assert arrays[name].tobytes() == x.tobytes()
        assert arrays[name].flags.aligned and arrays[name].flags.writeable


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_read_as_it_was_written(name):
    size = DTYPES[name].itemsize
    x = np.arange(3 * size, dtype=np.uint8).view(DTYPES[name])
    x = x if name != "bool" else np.array([True, False, True])
    file = io.BytesIO()
    write(file, {"x": x, "y": x[:1]}, {})
    arrays, _ = read(bytearray(file.getvalue()))
    assert arrays["x"].dtype == x.dtype and arrays["x"].tobytes() == x.tobytes()


def test_names_that_do_not_come_back_are_problems():
    for name in ("", "a\0b", "/a", "..", "a\\b", "é", "n" * 70_000, "__metadata__."):
        assert name_problem(name) is None
        file = io.BytesIO()
        write(file, {name: np.zeros(1)}, METADATA)
        assert read(bytearray(file.getvalue()))[0].keys() == {name}
    assert "the name of the file's metadata" in name_problem("__metadata__")


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    return bytearray(length.to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(1,), data_offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


DAMAGED = {
    "empty": bytearray(),
    "of seven bytes": bytearray(7),
    "a header beyond the file": file_of(b"{}", length=3),
    "a huge header": file_of(b"{}", length=2**63),
    "text": bytearray(b"not a file of arrays"),
    "no JSON": file_of(b"{'a': 1}"),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "deep": file_of(b"[" * 100_000),
    "a list": file_of([]),
    "a name twice": file_of(b'{"a": 1, "a": 1}'),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}}),
    "metadata as text": file_of({"__metadata__": "a"}),
    "an entry as text": file_of({"a": "F32"}),
    "an entry without a shape": file_of({"a": {"dtype": "F32"}}),
    "an unknown type": file_of({"a": entry(dtype="F31")}, bytes(4)),
    "a type as a list": file_of({"a": entry(dtype=[])}, bytes(4)),
    "a negative size": file_of({"a": entry(shape=[-1, -1])}, bytes(4)),
    "a size as a bool": file_of({"a": entry(shape=[True])}, bytes(4)),
    "a fraction": file_of({"a": entry(shape=[1.0])}, bytes(4)),
    "a huge shape": file_of({"a": entry(shape=[2**62, 2**62])}, bytes(4)),
    "three offsets": file_of({"a": entry(data_offsets=[0, 4, 8])}, bytes(4)),
    "offsets backwards": file_of({"a": entry(data_offsets=[4, 0])}, bytes(4)),
    "a gap": file_of({"a": entry(data_offsets=[4, 8])}, bytes(8)),
    "an overlap": file_of({"a": entry(), "b": entry()}, bytes(4)),
    "too few bytes": file_of({"a": entry()}, bytes(3)),
    "too many bytes": file_of({"a": entry()}, bytes(5)),
    "no bool": file_of({"a": entry("BOOL", (1,), (0, 1))}, b"\2"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_is_an_error(case):
    with pytest.raises(ValueError, match=r"header|metadata|bytes|begin|describe"):
        read(DAMAGED[case])

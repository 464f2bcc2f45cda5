"""Headers that say what is not so are an error, whatever they say."""

import copy
import io
import json
import tracemalloc
import zipfile
from typing import Any

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import sparseopt_jax as so
from sparseopt_jax.exporting import formats, headers, npz_file, safetensors_file

FORMATS = ("bitmask", "csr", "dense")
MASK = np.array([[True, False, True], [False, True, False]])
PARAMS = {
    "head": {"kernel": np.where(MASK, np.float32(2), np.float32(0)), "bias": MASK[0]},
    "half": np.where(MASK, 3, 0).astype(jnp.bfloat16),
}
MASKS = {"head": {"kernel": MASK}, "half": MASK}

MISSING = object()
ODD = [MISSING, None, True, -1, 0, 1, 3, 2**31, 2**40, 2**63, 10**30, 0.5, -0.5, 1e999]
ODD += ["", "float16", "object", "U8", "head/bias", "sparse-bitmask", "csr", "dense"]
ODD += [[], {}, [1.5], [[]], [-1, 4], [3, 2], [6], [1, 2, 3], [2**40, 0], [2**70, 0]]
ODD += [[2**40, 2**40], [2] * 70, [0, 10**9], {"shape": [1]}, float("nan")]


def places(tree):
    """Return the place of every value in JSON, as the keys and indices on the way."""
    keys = list(tree) if isinstance(tree, dict) else []
    keys = list(range(len(tree))) if isinstance(tree, list) else keys
    inner = [(key, *place) for key in keys for place in places(tree[key])]
    return [(key,) for key in keys] + inner


def changed(draw, tree):
    """Replace or remove one value in JSON, or two."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(places(tree)))
        holder = tree
        for key in way:
            holder = holder[key]
        value = draw(st.sampled_from(ODD))
        if value is MISSING:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(value)
        if not places(tree):
            break
    return tree


def change_array(draw, arrays):
    """Change one array in one of several ways."""
    name = draw(st.sampled_from(sorted(arrays)))
    x = arrays[name].copy()
    way = draw(st.sampled_from(["drop", "copy", "element", "dtype", "shape", "longer"]))
    if way == "drop":
        del arrays[name]
    elif way == "copy":
        arrays["another"] = x
    elif way == "element" and x.size:
        bits = x.reshape(-1).view(np.uint8)
        if x.dtype != np.bool_ and x.dtype.kind != "S":
            place = draw(st.integers(0, bits.size - 1))
            bits[place] = draw(st.sampled_from([0, 1, 2, 127, 128, 255]))
        arrays[name] = x
    elif way == "dtype":
        arrays[name] = x.reshape(-1).view(np.uint8)
    elif way == "shape":
        arrays[name] = x.reshape(-1, 1)
    elif way == "longer":
        arrays[name] = np.concatenate([x.reshape(-1), x.reshape(-1)])


def forge(path, name, arrays, metadata: Any):
    """Write a file whose checksum is valid."""
    if isinstance(metadata, dict):
        metadata["checksum"] = formats._checksum(arrays, metadata)
    module = npz_file if name == "csr" else safetensors_file
    with open(path, "wb") as file:
        module.write(file, arrays, {"sparseopt_jax": json.dumps(metadata)})


def contents(path):
    with open(path, "rb") as file:
        _, arrays, metadata = formats.read(bytearray(file.read()))
    arrays = {k: (x.shape, x.dtype.itemsize, x.tobytes()) for k, x in arrays.items()}
    for leaf in metadata["leaves"].values():
        leaf.pop("block", None)
    return arrays, {name: metadata[name] for name in ("format", "sparsity", "leaves")}


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("forged") / "network"
    so.export(path, PARAMS, MASKS, format=request.param)
    so.load(path)
    _, arrays, metadata = formats.read(bytearray(path.read_bytes()))
    return request.param, str(path), arrays, metadata


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(data=st.data())
def test_a_forged_file_is_an_error_or_that_of_another_network(exported, data):
    name, path, arrays, metadata = exported
    arrays = dict(arrays)
    if data.draw(st.booleans()):
        metadata = changed(data.draw, metadata)
    else:
        change_array(data.draw, arrays)
    forge(path, name, arrays, metadata)
    tracemalloc.start()
    try:
        loaded = so.load(path)
    except ValueError as error:
        assert str(error).startswith(f"{path!r} is not a complete file of so.export")
    else:
        forged = contents(path)
        so.export(path, loaded.params, loaded.masks, format=name, overwrite=True)
        assert contents(path) == forged
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1e6


def written(name):
    file = io.BytesIO()
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": MASK, "c": np.array(b"csr")}
    if name == "safetensors":
        del arrays["c"]
        safetensors_file.write(file, arrays, {"text": "é"})
    else:
        npz_file.write(file, arrays, {"text": "é"})
    return file.getvalue()


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(data=st.data())
def test_a_header_of_safetensors_with_other_values_is_an_error(data):
    whole = written("safetensors")
    length = int.from_bytes(whole[:8], "little")
    header = changed(data.draw, json.loads(whole[8 : 8 + length]))
    text = json.dumps(header).encode()
    forged = len(text).to_bytes(8, "little") + text + whole[8 + length :]
    try:
        arrays, metadata = safetensors_file.read(bytearray(forged))
    except ValueError:
        return
    assert sum(x.nbytes for x in arrays.values()) == len(whole) - 8 - length
    assert all(isinstance(x, str) for x in metadata.values())


@pytest.mark.parametrize("is_member", [False, True])
@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(data=st.data())
def test_an_archive_with_other_bytes_is_an_error_or_holds_arrays(is_member, data):
    whole = bytearray(written("npz"))
    if is_member:  # the checksum in the archive is valid
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            whole = bytearray(archive.read("a.npy"))
    odd = st.sampled_from(bytearray(b"\x00\x01\x08\x7f\xff(,-)9L {'O|"))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(odd)
    if is_member:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.npy", whole)
        whole = file.getvalue()
    try:
        arrays, _ = npz_file.read(bytearray(whole))
    except ValueError:
        return
    assert all(x.dtype.kind in "biufcS" for x in arrays.values())
    assert sum(x.nbytes for x in arrays.values()) <= len(whole)


def test_shapes_beyond_the_memory_are_an_error(tmp_path):
    so.export(tmp_path / "a", PARAMS["half"], MASKS["half"], format="csr")
    _, arrays, metadata = formats.read(bytearray((tmp_path / "a").read_bytes()))
    metadata["leaves"][""]["shape"] = [2, 10**15]
    metadata["leaves"][""]["sparsity"] = formats.sparsity(3, 2 * 10**15)
    metadata["sparsity"] = metadata["leaves"][""]["sparsity"]
    arrays["shape"] = np.array([2, 10**15])
    arrays = {
        name: x.astype(np.int64) if name in ("indices", "indptr") else x
        for name, x in arrays.items()
    }
    forge(tmp_path / "a", "csr", arrays, metadata)
    with pytest.raises(ValueError, match="a' describes arrays that do not fit in mem"):
        so.load(tmp_path / "a")


def test_fields_are_checked_in_words():
    fields = {"shape": headers.SHAPE, "n": headers.SIZE._replace(is_optional=True)}
    headers.check_fields({"shape": [2**40, 0], "more": None}, fields, "it")
    headers.check_fields({"at": [2**40, 2**41]}, {"at": headers.RANGE}, "it")
    for header, message in [
        ([], r"^it must be a dictionary, got \[\]$"),
        ({}, "^it lacks 'shape'$"),
        ({"shape": [-1]}, r"^it has shape \[-1\], which is not a shape$"),
        ({"shape": [], "n": True}, "^it has n True, which is not a size$"),
    ]:
        with pytest.raises(ValueError, match=message):
            headers.check_fields(header, fields, "it")

"""Reading exported files: into any structure, and only what was written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.exporting import formats, npz_file, safetensors_file

FORMATS = ("bitmask", "csr", "dense")
MASK = jnp.array([[True, False, True], [False, True, False]])
PARAMS = {"head": {"kernel": jnp.where(MASK, 2.0, 0.0), "bias": jnp.arange(3.0)}}
MASKS = {"head": {"kernel": MASK, "bias": optax.MaskedNode()}}


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    path = tmp_path / "network"
    so.export(path, PARAMS, MASKS, format=request.param)
    return path


@pytest.fixture
def bitmask(tmp_path):
    path = tmp_path / "network"
    so.export(path, PARAMS, MASKS)
    return path


def test_without_a_structure_arrays_are_those_of_numpy(path):
    loaded = so.load(path)
    assert {type(x) for x in jax.tree.leaves(loaded.params)} == {np.ndarray}
    assert {type(x) for x in jax.tree.leaves(loaded.masks)} == {np.ndarray}
    loaded.params["head"]["bias"][0] = 1  # is writable
    state = so.sparsify(optax.sgd(0.1), so.rigl(masks=loaded.masks, every=2, stop=4))
    masks = so.get_masks(state.init(loaded.params))
    np.testing.assert_array_equal(masks["head"]["kernel"], MASK)


def test_a_structure_gives_its_own_nodes_types_and_places(bitmask):
    device = jax.devices()[0]
    kernel = jax.device_put(jnp.zeros((2, 3)), device)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    loaded = so.load(bitmask, like={"head": {"kernel": kernel, "bias": shape}})
    kernel, bias = (loaded.params["head"][name] for name in ("kernel", "bias"))
    assert isinstance(kernel, jax.Array) and kernel.committed
    assert isinstance(bias, jax.Array) and not bias.committed
    assert isinstance(loaded.masks["head"]["kernel"], jax.Array)
    assert loaded.masks["head"]["bias"] == optax.MaskedNode()
    np.testing.assert_array_equal(kernel, PARAMS["head"]["kernel"])

    # Paths with slashes, as Haiku has them, and lists.
    for like in ({"head/kernel": MASK * 1.0, "head/bias": np.zeros(3, np.float32)},):
        params = so.load(bitmask, like=like).params
        assert type(params["head/bias"]) is np.ndarray
        assert jax.tree.structure(params) == jax.tree.structure(like)


def test_holes_stay_holes(bitmask):
    like = {**PARAMS, "frozen": optax.MaskedNode()}
    loaded = so.load(bitmask, like=like)
    assert loaded.params["frozen"] == loaded.masks["frozen"] == optax.MaskedNode()


def test_another_structure_is_an_error_with_every_difference(bitmask):
    like = {
        "head": {"kernel": jnp.zeros((3, 2)), "scale": 1.0},
        "tail": jnp.zeros(3, jnp.int32),
    }
    with pytest.raises(ValueError) as error:
        so.load(bitmask, like=like)
    assert str(error.value).splitlines()[1:] == [
        "  head/bias: only in the file",
        "  head/kernel: float32[2,3] in the file, float32[3,2] in like",
        "  head/scale: only in like",
        "  tail: only in like",
    ]
    like = {"head": {"kernel": jnp.zeros((2, 3), jnp.bfloat16), "bias": 1.0}}
    with pytest.raises(
        ValueError, match=r"(?s)a number in like.*bfloat16\[2,3\] in like"
    ):
        so.load(bitmask, like=like)


NUMBERS = {  # stored, in like, loaded; None for an error
    "a fraction as int": (0.5, 0, None),
    "a fraction as bool": (0.25, True, None),
    "two as bool": (2, True, None),
    "complex as float": (np.complex64(1 + 2j), 0.0, None),
    "NaN as int": (float("nan"), 1, None),
    "NaN as bool": (float("nan"), True, None),
    "infinity as int": (float("inf"), 1, None),
    "a large int as float": (2**53 + 1, 0.0, None),
    "too large an int for float": (2**63 + 1, 0.0, None),
    "a whole number as int": (2.0, 0, 2),
    "one as bool": (1.0, False, True),
    "an int as float": (3, 0.0, 3.0),
    "a bool as int": (True, 0, 1),
    "a float as complex": (0.5, 0j, 0.5 + 0j),
    "a large int": (2**63 + 1, 0, 2**63 + 1),
    "a negative int": (-(2**63), 0, -(2**63)),
    "half precision": (np.float16(0.1), 0.0, float(np.float16(0.1))),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_of_the_type_in_like_or_an_error(case, tmp_path):
    stored, like, expected = NUMBERS[case]
    kernel = {"kernel": np.ones((1, 2))}
    so.export(tmp_path / "a", {**kernel, "n": stored}, {"kernel": np.ones((1, 2)) > 0})
    like = {**kernel, "n": like}
    if expected is None:
        name = type(like["n"]).__name__
        with pytest.raises(ValueError, match=rf"\n  n: .* in the file, which {name}, "):
            so.load(tmp_path / "a", like=like)
    else:
        number = so.load(tmp_path / "a", like=like).params["n"]
        assert number == expected and type(number) is type(expected)


def test_types_that_jax_would_narrow_are_an_error(tmp_path):
    path = tmp_path / "network"
    wide = {"kernel": np.ones((2, 3), np.float64)}
    so.export(path, wide, {"kernel": np.ones((2, 3), bool)})
    like = {"kernel": jax.ShapeDtypeStruct((2, 3), np.float64)}
    with pytest.raises(ValueError, match="float64, which JAX converts to float32"):
        so.load(path, like=like)
    assert so.load(path, like=wide).params["kernel"].dtype == np.float64


def test_leaves_above_others_need_a_structure(tmp_path):
    path = tmp_path / "network"
    params = {"a": jnp.ones((2, 3)), "a/b": jnp.ones(2)}
    so.export(path, params, {"a": MASK * 0 == 0})
    with pytest.raises(ValueError, match="pass like="):
        so.load(path)
    assert so.load(path, like=params).params["a/b"].shape == (2,)


def test_truncated_files_are_an_error(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a complete file of so"):
            so.load(path)


def test_no_changed_byte_goes_unnoticed(path):
    whole, loaded = path.read_bytes(), so.load(path)
    refused, places = 0, range(0, len(whole), 7)
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = so.load(path)
        except ValueError:
            refused += 1
        else:  # such as a date in an archive
            assert str(found) == str(loaded)
    assert refused > (0.5 if whole.startswith(b"PK") else 0.99) * len(places)


def test_other_files_are_an_error(tmp_path):
    path = tmp_path / "other"
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(ValueError, match="has not written: read it with"):
        so.load(path)
    with path.open("wb") as file:
        safetensors_file.write(file, {"a": np.zeros(3)}, {"format": "pt"})
    with pytest.raises(ValueError, match="has not written: read it with"):
        so.load(path)
    for data in (b"", b"PK", b"a text of some length", b"\x93NUMPY\x01\x00"):
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"other' is not a complete file of so\.expor"
        ):
            so.load(path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        so.load(tmp_path / "nothing")
    with pytest.raises(OSError, match="directory"):
        so.load(tmp_path)


def rewritten(path, change):
    """Change a file as a forger would: its checksum is valid again."""
    form, arrays, metadata = formats.read(bytearray(path.read_bytes()))
    change(arrays, metadata)
    metadata["checksum"] = formats._checksum(arrays, metadata)
    module = npz_file if form.name == "csr" else safetensors_file
    with path.open("wb") as file:
        module.write(file, arrays, {"sparseopt_jax": json.dumps(metadata)})


def drop_an_array(arrays, metadata):
    arrays.popitem()


def shift(arrays, metadata):
    metadata["leaves"]["head/kernel"]["shape"] = [3, 2]


def grow(arrays, metadata):
    metadata["leaves"]["head/bias"]["shape"] = [10**12]


def retype(arrays, metadata):
    metadata["leaves"]["head/bias"]["dtype"] = "object"


def recast(arrays, metadata):
    metadata["leaves"]["head/kernel"]["dtype"] = "int32"


def rename(arrays, metadata):
    metadata["format"] = "sparse-coo"


def empty(arrays, metadata):
    metadata["leaves"] = None


def flatten(arrays, metadata):
    metadata["leaves"]["head/bias"] = []


def unversion(arrays, metadata):
    metadata["version"] = "1"


@pytest.mark.parametrize(
    "change",
    [unversion, drop_an_array, shift, grow, retype, recast, rename, empty, flatten],
)
def test_forged_files_are_an_error(change, path):
    rewritten(path, change)
    with pytest.raises(ValueError, match="is not a complete file of so"):
        so.load(path)


def test_files_of_later_versions_are_an_error(path):
    def later(arrays, metadata):
        metadata["version"] = formats.VERSION + 1

    rewritten(path, later)
    with pytest.raises(ValueError, match="pip install --upgrade sparseopt_jax"):
        so.load(path)


def test_a_rewritten_file_that_is_right_is_read(path):
    rewritten(path, lambda arrays, metadata: None)
    np.testing.assert_array_equal(so.load(path).masks["head"]["kernel"], MASK)

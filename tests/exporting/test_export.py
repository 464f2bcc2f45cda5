"""Networks as files: their contents, their size, and what is refused."""

import os

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from flax import nnx

import sparseopt_jax as so
from sparseopt_jax.exporting.safetensors_file import DTYPES, read
from sparseopt_jax.layers.neurons import one_neuron
from sparseopt_jax.masks.compact_kernel import CompactKernel
from sparseopt_jax.masks.layouts import Layout

FORMATS = ("bitmask", "csr", "dense")
# Fractions of the dense kernel's bytes, at each sparsity.
SPARSITIES = (0.8, 0.9, 0.95, 0.99)
BYTES = {
    "bitmask": (0.233, 0.133, 0.083, 0.043),
    "csr": (0.400, 0.201, 0.101, 0.021),
    "dense": (1.031, 1.031, 1.031, 1.031),
}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "network")


def network():
    """Return parameters of several shapes, and masks of some."""
    keys = iter(jax.random.split(jax.random.key(0), 4))
    params = {
        "conv": {"kernel": jax.random.normal(next(keys), (3, 3, 2, 5))},
        "head": {"kernel": jax.random.normal(next(keys), (10, 7)), "bias": jnp.ones(7)},
        "scale": jnp.float32(0.5),
    }
    masks = {
        "conv": {"kernel": jax.random.bernoulli(next(keys), 0.3, (3, 3, 2, 5))},
        "head": {
            "kernel": jax.random.bernoulli(next(keys), 0.3, (10, 7)),
            "bias": optax.MaskedNode(),
        },
        "scale": optax.MaskedNode(),
    }
    return so.apply_masks(params, masks), masks


def assert_same(tree, other):
    """Check for the same structure, types and bits."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


@pytest.mark.parametrize("format", FORMATS)
def test_networks_come_back_as_they_were(format, path):
    params, masks = network()
    so.export(path, params, masks, format=format)
    loaded = so.load(path)
    assert_same(loaded.params, params)
    assert_same(loaded.masks, masks)
    active = int(masks["head"]["kernel"].sum())
    assert loaded.metadata["leaves"]["head/kernel"] == {
        "shape": [10, 7],
        "dtype": "float32",
        "active": active,
        "sparsity": 1 - active / 70,
    }
    assert loaded.metadata["leaves"]["scale"] == {"shape": [], "dtype": "float32"}
    active += int(masks["conv"]["kernel"].sum())
    assert loaded.metadata["sparsity"] == pytest.approx(1 - active / 160)
    assert loaded.metadata["sparseopt_jax"] == so.__version__


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", DTYPES)
def test_every_type_comes_back_bit_for_bit(name, format, path):
    dtype = DTYPES[name]
    mask = np.arange(256) % 3 > 0
    if name == "bool":
        x = mask.reshape(16, 16)
    else:  # all patterns of a byte: NaNs with their payloads, -0.0, subnormal numbers
        bits = np.arange(256, dtype=f"u{min(dtype.itemsize, 8)}")
        bits = bits << np.array(8 * (bits.itemsize - 1), bits.dtype)
        x = np.where(mask, bits, 0).astype(bits.dtype).view(dtype).reshape(16, 16)
        if name == "float8_e8m0fnu":  # has no zero
            mask[:] = True
            x = bits.view(dtype).reshape(16, 16)
    params = {"kernel": x, "scalar": x[0, 1], "empty": x[:0]}
    so.export(path, params, {"kernel": mask.reshape(16, 16)}, format=format)
    loaded = so.load(path)
    assert_same(loaded.params, params)
    np.testing.assert_array_equal(loaded.masks["kernel"], mask.reshape(16, 16))


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_as_small_as_said(format, path):
    rng = np.random.default_rng(0)
    kernel = rng.random((1024, 1024), np.float32) + 1
    order = rng.permutation(kernel.size).reshape(kernel.shape)
    for sparsity, share in zip(SPARSITIES, BYTES[format], strict=True):
        mask = order >= sparsity * kernel.size
        params = {"kernel": np.where(mask, kernel, np.float32(0))}
        so.export(path, params, {"kernel": mask}, format=format, overwrite=True)
        found = os.path.getsize(path) / kernel.nbytes
        assert found == pytest.approx(share, rel=0.05)


def moved(tx, params):
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)
    for _ in range(3):
        grads = jax.tree.map(jnp.cos, params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = so.apply_updates(params, updates, opt_state)
    return params, opt_state


RIGL = so.rigl(0.75, every=2, stop=9)
STATES = {
    "bytes": so.sparsify(optax.adam(0.1), RIGL),
    "bits": so.sparsify(optax.adam(0.1), RIGL, packed=True),
    "compact": so.sparsify(optax.adam(0.1), so.static(0.75), compact=True),
    "chain": optax.chain(so.sparseopt(RIGL), optax.sgd(0.1)),
    "several": optax.partition(
        {"a": so.sparse_sgd(0.1, RIGL), "b": so.sparse_adamw(0.1, so.static(0.5))},
        {"one": "a", "two": "b"},
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_masks_of_any_state_are_written(name, path):
    params = {"one": jnp.ones((8, 16)), "two": jnp.ones((8, 16))}
    params = jax.tree.map(lambda x: {"kernel": x, "bias": x[0]}, params)
    params, opt_state = moved(STATES[name], params)
    so.export(path, params, opt_state)
    loaded = so.load(path, like=params)
    assert_same(loaded.params, params)
    assert_same(loaded.masks, so.get_masks(opt_state))
    # Grown weights are zero, but active.
    active = sum(int(mask.sum()) for mask in jax.tree.leaves(loaded.masks))
    assert active == sum(x["active"] for x in _sparse(loaded.metadata))


def _sparse(metadata):
    return [x for x in metadata["leaves"].values() if "active" in x]


def test_statistics_beside_the_parameters_are_written_too(path):
    params, masks = network()
    variables = {"params": params, "batch_stats": {"mean": jnp.arange(3.0)}}
    so.export(path, variables, {"params": masks})
    assert_same(so.load(path).params, variables)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
        return nn.Dense(8, kernel_init=init)(x)


def test_boxes_do_not_show_in_files(path):
    params = Boxed().init(jax.random.key(0), jnp.ones((2, 4)))["params"]
    tx = so.sparsify(optax.sgd(0.1), so.static(0.5))
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)
    so.export(path, params, opt_state)
    assert list(so.load(path).metadata["leaves"]) == ["Dense_0/bias", "Dense_0/kernel"]
    loaded = so.load(path, like=params)
    assert_same(loaded.params, params)
    assert_same(loaded.masks, so.get_masks(opt_state))


def test_states_of_nnx_are_written(path):
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    opt_state = so.sparsify(optax.sgd(0.1), so.static(0.5)).init(params)
    params = so.apply_masks(params, opt_state)
    so.export(path, params, opt_state)
    loaded = so.load(path, like=params)
    assert_same(loaded.params, params)
    nnx.update(model, loaded.params)
    assert int((model.kernel[...] != 0).sum()) == 16
    assert list(so.load(path).params) == ["bias", "kernel"]


def test_modules_of_equinox_are_written(path):
    model = equinox.nn.Linear(4, 8, key=jax.random.key(0))
    params = equinox.filter(model, equinox.is_array)
    masks = so.get_masks(so.sparsify(optax.sgd(0.1), so.static(0.5)).init(params))
    params = so.apply_masks(params, masks)
    so.export(path, params, masks)
    loaded = so.load(path, like=params)
    assert_same(loaded.params, params)
    assert_same(loaded.masks, masks)
    with pytest.raises(TypeError, match=r"omit it, for example with equinox\.filter"):
        so.export(path, {**KERNEL, "model": jax.nn.relu}, MASK, overwrite=True)


LEAVES = {
    "big-endian": np.arange(4.0).astype(">f4").reshape(2, 2),
    "big-endian ints": np.arange(4).astype(">i8").reshape(2, 2),
    "strided": np.arange(16.0).reshape(4, 4)[::2, ::-2],
    "columns first": np.asfortranarray(np.arange(4.0).reshape(2, 2)),
    "repeated": np.broadcast_to(np.float32(2), (2, 2)),
    "complex": np.array([[1j, 2], [-0.0, np.nan]], np.complex64),
    "bools": np.array([[True, False], [False, True]]),
    "large ints": np.full((2, 2), 2**63 + 1, np.uint64),
    "a scalar": np.float64(0.1),
    "a complex scalar": np.complex64(1j),
    "a big-endian array without axes": np.array(3, ">i4"),
    "a float": 0.1,
    "NaN": float("nan"),
    "minus zero": -0.0,
    "an int beyond 32 bits": -(2**31) - 1,
    "an int beyond 63 bits": 2**64 - 1,
    "a bool": True,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", LEAVES)
def test_leaves_come_back_with_their_types(case, format, path):
    leaf, mask = LEAVES[case], np.ones((2, 2), bool)
    params, masks = {"kernel": np.ones((2, 2)), "leaf": leaf}, {"kernel": mask}
    if np.shape(leaf):
        params, masks = {"kernel": leaf, "leaf": leaf}, {"kernel": mask}
    so.export(path, params, masks, format=format)
    loaded = so.load(path, like=params).params
    assert_same(loaded, params)
    assert [type(x) for x in loaded.values()] == [type(x) for x in params.values()]
    plain = so.load(path).params["leaf"]
    little = np.asarray(leaf).astype(np.asarray(leaf).dtype.newbyteorder("<"))
    assert_same(plain, little)


def test_a_single_kernel_is_what_scipy_saves(path):
    mask = np.array([[True, False, False], [True, False, True]])
    kernel = np.where(mask, np.float32([[1, 2, 3], [4, 5, 6]]), np.float32(0))
    so.export(path, kernel, mask, format="csr")
    with open(path, "rb") as file:
        np.testing.assert_array_equal(scipy.sparse.load_npz(file).toarray(), kernel)
    loaded = so.load(path)
    np.testing.assert_array_equal(loaded.params, kernel)
    np.testing.assert_array_equal(loaded.masks, mask)


def test_the_names_are_those_of_compressed_tensors(path):
    params, masks = network()
    so.export(path, params, masks)
    with open(path, "rb") as file:
        arrays, _ = read(bytearray(file.read()))
    parts = ("bitmask", "compressed", "row_offsets", "shape")
    kernels = {f"{name}/kernel.{x}" for name in ("conv", "head") for x in parts}
    assert arrays.keys() == kernels | {"head/bias", "scale"}
    assert so.load(path).metadata["format"] == "sparse-bitmask"


def test_weights_that_would_be_lost_are_an_error(path):
    params, masks = network()
    trained = jax.tree.map(lambda x: x + 1, params)
    lost = 70 - int(masks["head"]["kernel"].sum())
    for format in ("bitmask", "csr"):
        with pytest.raises(ValueError, match=r"would be lost: pass so\.apply_masks"):
            so.export(path, trained, masks, format=format)
    only = {"head": masks["head"]}
    with pytest.raises(ValueError, match=f"^{lost} inactive weights at 'head/kernel'"):
        so.export(path, trained, only)
    assert not os.path.exists(path)
    so.export(path, trained, masks, format="dense")
    assert_same(so.load(path).params, trained)


def test_an_existing_file_is_kept(path):
    params, masks = network()
    so.export(path, params, masks)
    with open(path, "rb") as file:
        before = file.read()
    with pytest.raises(ValueError, match="exists: pass overwrite=True to replace it"):
        so.export(path, params, masks, format="csr")
    for bad in ({**params, "scale": object()}, {**params, "scale": jax.random.key(0)}):
        with pytest.raises(TypeError, match="'scale'"):
            so.export(path, bad, masks, overwrite=True)
    with open(path, "rb") as file:
        assert file.read() == before
    so.export(path, params, masks, format="csr", overwrite=True)
    assert so.load(path).metadata["format"] == "csr"
    assert os.listdir(os.path.dirname(path)) == ["network"]


def a_state():
    return so.sparsify(optax.sgd(0.1), so.static(0.5)).init(
        {"kernel": jnp.ones((4, 4))}
    )


KERNEL = {"kernel": jnp.zeros((4, 4))}
MASK = {"kernel": jnp.zeros((4, 4), bool)}

REFUSED = {
    "another format": (KERNEL, MASK, {"format": "coo"}, "one of 'bitmask', 'csr', 'de"),
    "no masks": (KERNEL, optax.adam(0.1).init(KERNEL), {}, "no masks found"),
    "masks of another shape": (KERNEL, {"kernel": jnp.zeros(4, bool)}, {}, "has shape"),
    "masks of another tree": (KERNEL, {"a": MASK["kernel"]}, {}, "not a parameter"),
    "masks as numbers": (KERNEL, KERNEL, {}, "must be bool arrays"),
    "no parameters": ({}, a_state(), {}, "not a parameter"),
    "two names": (
        {"a": {"b": KERNEL["kernel"]}, "a/b.shape": jnp.ones(2)},
        {"a": {"b": MASK["kernel"]}},
        {},
        r"at 'a/b\.shape' cannot be stored .*: two arrays would have this name",
    ),
    "metadata": ({"__metadata__": jnp.ones(1), **KERNEL}, MASK, {}, "__metadata__"),
    "two paths": ({"a": {"b": 1.0}, "a/b": 2.0, **KERNEL}, MASK, {}, "to two leaves"),
}


NAMES = {
    "empty": "",
    "rooted": "/a",
    "a parent": "../a",
    "a backslash": "a\\b",
    "a line": "a\nb",
    "an ending": "a.npy",
    "very long": "n" * 70_000,
    "cut": "a\0b",
    "no text": "a\ud800",
    "two halves": "a\ud83d\ude00",
    "metadata": "__metadata__",
    "of metadata": "__metadata__.a",
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", NAMES)
def test_names_come_back_or_are_an_error(case, format, path):
    name, mask = NAMES[case], np.array([[True, False]])
    for params in ({name: mask * 1.0}, {name: np.ones(2), "k": mask * 1.0}):
        masks = {list(params)[-1]: mask}
        try:
            so.export(path, params, masks, format=format, overwrite=True)
        except ValueError as error:
            assert repr(name)[:100] in str(error)
            assert str(error).endswith("; rename the parameter")
            assert case not in ("empty", "rooted", "a parent", "a line", "an ending")
        else:
            assert_same(so.load(path, like=params).params, params)


@pytest.mark.parametrize("format", FORMATS)
def test_names_in_two_normal_forms_are_two_names(format, path):
    params = {"\u00e9": np.ones((1, 2)), "e\u0301": np.zeros((1, 2))}
    masks = {name: np.ones((1, 2), bool) for name in params}
    so.export(path, params, masks, format=format)
    assert_same(so.load(path).params, params)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_an_error(case, path):
    params, masks, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        so.export(path, params, masks, **options)
    assert not os.listdir(os.path.dirname(path))


WRONG = {
    "swapped": (a_state(), KERNEL, "the arguments are swapped"),
    "a transformation": (KERNEL, optax.adam(0.1), "must be an optimizer's state"),
    "a key": ({**KERNEL, "a": jax.random.key(0)}, MASK, "a PRNG key at 'a'"),
    "a function": ({**KERNEL, "a": jnp.sum}, MASK, "at 'a': omit it"),
    "a text": ({**KERNEL, "a": "b"}, MASK, "got 'b' at 'a'"),
    "four bits": ({**KERNEL, "a": jnp.ones(2, jnp.int4)}, MASK, "hold int4 at 'a'"),
    "a hidden mask": ({**KERNEL, "a": np.ma.masked_equal([1, 2], 2)}, MASK, "filled"),
    "a huge int": ({**KERNEL, "a": 2**64}, MASK, "hold object at 'a'"),
    "wide": ({**KERNEL, "a": 1j}, MASK, "hold complex128 at 'a'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_of_another_type_is_an_error(case, path):
    params, masks, message = WRONG[case]
    with pytest.raises(TypeError, match=message):
        so.export(path, params, masks)
    assert not os.listdir(os.path.dirname(path))


def test_replicas_and_traced_values_are_an_error(path):
    replicated = jax.tree.map(lambda x: jnp.stack([x, x]), (KERNEL, a_state()))
    with pytest.raises(ValueError, match="leading axis of 2"):
        so.export(path, *replicated)
    with pytest.raises(TypeError, match="export reads values"):
        jax.jit(lambda p: so.export(path, p, MASK))(KERNEL)


def compact(shape, block, places):
    """Return a kernel of which a few blocks are stored, at given places."""
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    units = so.Block(block).units("kernel", shape, one_neuron(leaf))
    layout = Layout(units, len(places))
    active = jax.random.normal(jax.random.key(len(places)), layout.shape)
    return CompactKernel.of(active, jnp.asarray(places, jnp.int32), layout)


@pytest.mark.parametrize("format", FORMATS)
def test_compact_parameters_are_written_like_dense_ones(format, path):
    kernel = compact((64, 48), (16, 16), (5, 2, 11))
    params = {"head": {"kernel": kernel, "bias": jnp.ones(48)}}
    dense = {"head": {"kernel": kernel.dense(), "bias": jnp.ones(48)}}
    masks = {"head": {"kernel": kernel.layout.mask(kernel.index)}}
    so.export(path, params, masks, format=format)
    loaded = so.load(path)
    assert_same(loaded.params, dense)
    assert loaded.metadata["leaves"]["head/kernel"]["block"] == [16, 16]

    # Into any form: dense, and equally many blocks at other places.
    assert_same(so.load(path, like=dense).params, dense)
    like = {**params["head"], "kernel": compact((64, 48), (16, 16), (0, 1, 2))}
    again = so.load(path, like={"head": like})
    found = again.params["head"]["kernel"]
    assert found.index.tolist() == [2, 5, 11]
    np.testing.assert_array_equal(found.dense(), kernel.dense())
    assert_same(again.masks, loaded.masks)

    # Twice as many blocks do not fit, nor does a parameter without a mask.
    like = {**params["head"], "kernel": compact((64, 48), (16, 16), range(6))}
    with pytest.raises(
        ValueError, match="'head/kernel' in the file does not consist of as"
    ):
        so.load(path, like={"head": like})
    so.export(path, dense, {"head": {"bias": jnp.ones(48, bool)}}, overwrite=True)
    with pytest.raises(
        ValueError, match="'head/kernel' in the file does not consist of as"
    ):
        so.load(path, like=params)


@pytest.mark.parametrize("is_compact", [False, True])
def test_blocks_of_a_state_are_written(is_compact, path):
    structure = {"out/*": so.Unstructured(), "*": so.Block((16, 32))}
    tx = so.sparsify(optax.adam(0.1), so.static(0.75, structure=structure))
    params = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
    params = {**params, "out": {"kernel": jnp.ones((64, 4))}}
    dense, opt_state = moved(tx, params)
    params, opt_state = (
        so.compact_params(dense, opt_state) if is_compact else (dense, opt_state)
    )
    so.export(path, params, opt_state)
    loaded = so.load(path, like=params)
    assert loaded.metadata["leaves"]["kernel"]["block"] == [16, 32]
    for dense_leaf in ("bias", "out/kernel"):
        assert "block" not in loaded.metadata["leaves"][dense_leaf]
    assert_same(loaded.params, params)
    assert_same(so.load(path).params, dense)
    assert_same(loaded.masks, so.get_masks(opt_state))

"""Checkpoints: they restore what was saved, or raise a clear error."""

import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

import sparseopt_jax as so
from sparseopt_jax.checkpoint import Checkpoints, stop_on_sigterm, stored_leaves
from sparseopt_jax.checkpoint.files import CheckpointFolder
from tests.helpers.checkpoint_program import leaves, new_state, topology, train_step
from tests.helpers.compilations import compilations
from tests.helpers.flushes import Disk

both_methods = pytest.mark.parametrize("method", ["set", "rigl"])


def assert_same_bits(actual, expected):
    actual, expected = leaves(actual), leaves(expected)
    assert list(actual) == list(expected)
    for path, x in expected.items():
        assert actual[path].dtype == x.dtype, path
        assert actual[path].tobytes() == x.tobytes(), path


def trained(state, start, stop):
    for index in range(start, stop):
        state = train_step(state, index)
    return state


def save(directory, state, step=1, data=None, **options):
    with Checkpoints(directory, **options) as checkpoints:
        assert checkpoints.save(step, state, data)


def restore(directory, state, **options):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(state, **options)


# What is saved is restored.


@both_methods
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(method, tmp_path):
    # Masks are updated at steps 2 and 5: save before, at and after each.
    with Checkpoints(tmp_path, max_to_keep=None) as checkpoints:
        state = new_state(method)
        for index in range(7):
            # Donated while it is being written.
            state = train_step(state, index)
            checkpoints.save(index + 1, state, {"index": index + 1})
    expected = state
    masks = [
        so.get_masks(trained(new_state(method), 0, n))["first"]["kernel"]
        for n in (0, 3, 7)
    ]
    assert (masks[0] != masks[1]).any() and (masks[1] != masks[2]).any()

    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1, 2, 3, 4, 5, 6, 7]
        for step in (2, 3, 5, 6):
            state, data = checkpoints.restore(new_state(method), step=step)
            assert data == {"index": step}
            assert_same_bits(state, trained(new_state(method), 0, step))
            assert_same_bits(trained(state, step, 7), expected)


def test_nothing_compiles_again_after_a_restore(tmp_path):
    step = jax.jit(lambda state: state.apply_gradients(grads=state.params))
    with compilations() as compiled:
        state = step(new_state("rigl"))
    assert "<lambda>" in compiled
    save(tmp_path, state)
    restored, _ = restore(tmp_path, new_state("rigl"))
    with compilations() as compiled:
        step(restored)
    assert not compiled


def test_what_is_donated_while_it_is_written_is_written_as_it_was(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    values = np.random.default_rng(0).normal(size=2**22).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        state = {"x": jnp.array(values), "mine": values.copy()}
        checkpoints.save(1, state)
        overwrite(state["x"]).block_until_ready()
        state["mine"][:] = -1
    template = {"x": jnp.zeros_like(values), "mine": np.zeros_like(values)}
    restored, _ = restore(tmp_path, template)
    np.testing.assert_array_equal(restored["x"], values)
    np.testing.assert_array_equal(restored["mine"], values)


def test_static_fields_are_those_of_the_given_state(tmp_path):
    save(tmp_path, new_state("rigl"))
    given = new_state("rigl")
    restored, _ = restore(tmp_path, given)
    assert restored.tx is given.tx and restored.apply_fn is given.apply_fn
    assert type(restored.opt_state) is so.SparseState


def blank(x):
    """Return something of the same kind, with other contents."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(x) * 0
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if isinstance(x, bool | int | float | np.generic):
        return type(x)(0)
    if isinstance(x, np.ndarray):
        return np.zeros_like(x)
    return x & ~x if x.dtype == jnp.bool_ else x * 0


def test_leaves_of_every_kind(tmp_path):
    keys = jax.random.split(jax.random.key(4, impl="rbg"), 5)
    placed = NamedSharding(Mesh(jax.devices()[:1], "all"), PartitionSpec())
    state = {
        "key": jax.random.key(3),
        "keys": keys,
        "bfloat16": jnp.arange(5, dtype=jnp.bfloat16),
        "float8": jnp.arange(5).astype(jnp.float8_e4m3fn),
        "int4": jnp.arange(5).astype(jnp.int4),
        "complex": jnp.array([1 + 2j, 3 - 1j]),
        "special": jnp.array([jnp.nan, -jnp.inf, -0.0, 1e-45]),
        "mask": jnp.array([[True, False]]),
        "weak": jnp.asarray(0.1),
        "committed": jax.device_put(jnp.arange(3.0), placed),
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "empty, committed": jax.device_put(jnp.zeros((0, 3)), placed),
        "empty, numpy": np.zeros((0, 3)),
        "empty, keys": keys[:0],
        "numpy": np.arange(3, dtype=np.int64) << 40,
        "numpy, big-endian": np.arange(3, dtype=">i8") << 40,
        "numpy, big-endian, short": np.arange(3, dtype=">f4"),
        "numpy scalar": np.float32(2.5),
        "numpy scalar that is a float": np.float64(0.1),
        "numpy scalar that is complex": np.complex128(0.1 + 0.2j),
        "number": 0.1,
        "count": 3_000_000_000,
        "flag": True,
        "tuple": (jnp.ones(2), [jnp.zeros(2)]),
    }
    save(tmp_path, state)
    restored, _ = restore(tmp_path, jax.tree.map(blank, state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(restored),
        strict=True,
    ):
        assert type(y) is type(x), path
        if isinstance(x, jax.Array):
            assert y.aval == x.aval and y.committed == x.committed, path
            assert y.sharding == x.sharding, path
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                assert jax.random.key_impl(y) == jax.random.key_impl(x)
                x, y = jax.random.key_data(x), jax.random.key_data(y)
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), path


NUMBERS = {"count": 7, "loss": 0.5, "flag": True}


@pytest.mark.parametrize("given", [jnp.asarray, lambda x: x])
@pytest.mark.parametrize("saved", [jnp.asarray, lambda x: x])
def test_numbers_and_their_arrays_replace_each_other(saved, given, tmp_path):
    save(tmp_path, jax.tree.map(saved, NUMBERS))
    zeros = {name: given(type(x)(0)) for name, x in NUMBERS.items()}
    restored, _ = restore(tmp_path, zeros)
    assert restored == NUMBERS
    for name, x in restored.items():
        assert type(x) is type(zeros[name])
        assert jnp.result_type(x) == jnp.result_type(zeros[name])


def test_numbers_of_earlier_versions_are_read(tmp_path, monkeypatch):
    # Version 1 stored numbers as JAX does, and NumPy's that are Python's in half.
    best = {"best": np.float64(0.25)}
    with monkeypatch.context() as patch:
        patch.setattr("sparseopt_jax.checkpoint.record.VERSION", 1)
        save(
            tmp_path / "numbers", {name: jnp.asarray(x) for name, x in NUMBERS.items()}
        )
        patch.setattr(stored_leaves, "kinds", lambda leaves: {"best": "float64[]"})
        save(tmp_path / "halves", {"best": np.float32(0.25)})
    assert restore(tmp_path / "numbers", NUMBERS)[0] == NUMBERS
    restored, _ = restore(tmp_path / "halves", {"best": np.float64(0)})
    assert restored == best and type(restored["best"]) is np.float64


def test_a_number_that_an_array_cannot_hold_is_named(tmp_path):
    save(tmp_path, {"tokens": 3_000_000_000})
    with pytest.raises(ValueError, match=r"tokens: 3000000000 in the .*int32 in this"):
        restore(tmp_path, {"tokens": jnp.asarray(0)})


def test_a_sharding_that_does_not_fit_is_named(tmp_path):
    save(tmp_path, {"w": jnp.ones((3, 5))})
    halves = NamedSharding(AbstractMesh((2,), ("data",)), PartitionSpec("data"))
    wanted = jax.ShapeDtypeStruct((3, 5), jnp.float32, sharding=halves)
    with pytest.raises(ValueError, match=r"the sharding of 'w' .* does not fit its"):
        restore(tmp_path, {"w": wanted})


def test_64_bits_are_restored_where_jax_has_them(tmp_path):
    with jax.enable_x64(True):
        state = {"w": jnp.arange(3.0), "n": jnp.asarray(1 << 40)}
        save(tmp_path, state)
        assert_same_bits(restore(tmp_path, jax.tree.map(blank, state))[0], state)
        shapes = jax.eval_shape(lambda: state)
    with pytest.raises(
        ValueError, match="int64 at 'n', which JAX converts to int32 un"
    ):
        restore(tmp_path, shapes)
    with pytest.raises(ValueError, match=r"w: float64\[3\] in the checkpoint, float32"):
        restore(tmp_path, shapes | {"w": jnp.ones(3)})


def test_shapes_alone_will_do(tmp_path):
    state = new_state("set")
    save(tmp_path, state)
    restored, _ = restore(tmp_path, jax.eval_shape(lambda: new_state("set")))
    assert_same_bits(restored, state)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))
        return nn.Dense(4)(x)


def test_batch_statistics_and_wrapped_optimizers(tmp_path):
    variables = Net().init(jax.random.key(0), jnp.ones((2, 8)))
    tx = optax.apply_if_finite(
        so.sparse_adamw(0.01, topology("set", where=None), sparseopt=True), 3
    )
    state = so.linen.TrainState.create(
        apply_fn=None,
        params=variables["params"],
        batch_stats=jax.tree.map(lambda x: x + 1, variables["batch_stats"]),
        tx=tx,
    )
    save(tmp_path, state)
    zeros = jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x * 0, state
    )
    # Counts of masks are compared, so these must exist.
    template = zeros.replace(opt_state=tx.init(variables["params"]))
    restored, _ = restore(tmp_path, template)
    assert_same_bits(restored, state)


def test_parameters_and_optimizer_state_as_a_tuple(tmp_path):
    state = new_state("rigl")
    save(tmp_path, (state.params, state.opt_state))
    given = new_state("rigl")
    (params, opt_state), _ = restore(tmp_path, (given.params, given.opt_state))
    assert_same_bits((params, opt_state), (state.params, state.opt_state))


def test_nnx(tmp_path):
    def make(sparsity=0.5):
        model = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
        tx = so.sparse_sgd(0.1, so.static(sparsity), momentum=0.9, sparseopt=True)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        so.nnx.mask_model(model, optimizer)
        return model, optimizer

    model, optimizer = make()
    optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((2, 8))) ** 2).sum())(model))
    saved = nnx.state((model, optimizer))
    save(tmp_path, saved)

    other = make()
    state, _ = restore(tmp_path, nnx.state(other))
    nnx.update(other, state)
    assert_same_bits(nnx.state(other), saved)
    with pytest.raises(ValueError, match=r"active weights of .*: 64 in the .*, 32 in"):
        restore(tmp_path, nnx.state(make(0.75)))


def test_the_data_position_comes_back(tmp_path):
    data = {"epoch": 3, "index": 17, "seeds": [1, 2], "name": "train", "x": None}
    save(tmp_path, {"x": jnp.ones(2)}, data=data)
    assert restore(tmp_path, {"x": jnp.ones(2)})[1] == data
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="data must be plain numbers"),
    ):
        checkpoints.save(2, {"x": jnp.ones(2)}, {"index": np.int64(3)})


@pytest.mark.parametrize(
    "leaf",
    ["text", object(), np.array([{}]), np.array(["a"]), np.longdouble(1), 1 << 63],
)
def test_what_is_no_array_cannot_be_saved(leaf, tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"the state holds .* at 'inner/x'"),
    ):
        checkpoints.save(1, {"inner": {"x": leaf}})


def test_other_programs_can_read_the_arrays(tmp_path):
    state = new_state("rigl")
    save(tmp_path, state, step=4)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "4" / "state")
    np.testing.assert_array_equal(
        tree["params"]["first"]["kernel"], state.params["first"]["kernel"]
    )


# Methods whose numbers change, or that store more than masks. Updates at 2 and 5.
_STEPS = {"every": 3, "start": 2, "stop": 8}
METHODS = {
    "gradual": lambda: so.gradual_magnitude(0.5, **_STEPS),
    "snfs": lambda: so.snfs(0.5, **_STEPS),
    "top_kast": lambda: so.top_kast(0.5, trained_sparsity=0.25, every=3),
    "phases": lambda: so.phases(
        (0, so.static(0.25)), (3, so.rigl(0.5, averaged_steps=2, **_STEPS))
    ),
}


@pytest.mark.parametrize(
    "method",
    [
        *("top_kast", "phases"),
        pytest.param("gradual", marks=pytest.mark.slow),
        pytest.param("snfs", marks=pytest.mark.slow),
    ],
)
def test_any_method_is_resumed_to_the_last_bit(method, tmp_path):
    make = METHODS[method]
    tx = so.sparsify(optax.sgd(0.05, momentum=0.9), make())
    state, first = new_state(None, tx=tx), new_state(None, tx=tx)
    with Checkpoints(tmp_path, topology=make()) as checkpoints:
        state = trained(state, 0, 4)
        checkpoints.save(4, state)
    expected = trained(state, 4, 7)
    # As in another process: newly made, with other counts than those saved.
    with Checkpoints(tmp_path, topology=make()) as checkpoints:
        resumed, _ = checkpoints.restore(first)
    assert_same_bits(trained(resumed, 4, 7), expected)


# Which steps exist.


def test_an_empty_directory_is_a_new_run(tmp_path):
    for directory in (tmp_path, tmp_path / "runs" / "new"):
        assert restore(directory, new_state("rigl")) is None


def test_old_steps_go_and_none_is_written_twice(tmp_path):
    state = {"x": jnp.ones(2)}
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step in (1, 2, 3):
            assert checkpoints.save(step, state)
        assert not checkpoints.save(3, state)
        assert checkpoints.steps == [2, 3] and checkpoints.latest_step == 3
        with pytest.raises(ValueError, match="step 2 is before step 3"):
            checkpoints.save(2, state)
        with pytest.raises(ValueError, match=r"no step 1; there are \[2, 3\]"):
            checkpoints.restore(state, step=1)
    assert sorted(os.listdir(tmp_path)) == ["2", "3"]


def test_what_a_cut_off_save_leaves_is_no_step_and_is_removed(tmp_path):
    state = {"x": jnp.ones(2)}
    save(tmp_path, state)
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]
        assert checkpoints.save(2, state)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


# Checkpoints of other runs.

OTHER_TOPOLOGIES = {
    "method: rigl in the checkpoint, set in this run": topology("set"),
    "every: 3 in the checkpoint, 4 in this run": topology("rigl", every=4),
    "start: 2 in the checkpoint, 1 in this run": topology("rigl", start=1),
    "stop: 1000 in the checkpoint, 90 in this run": topology("rigl", stop=90),
    "drop_fraction: 0.5 in the checkpoint, 0.25 in this run": topology(
        "rigl", drop_fraction=0.25
    ),
    "decay: cosine in the checkpoint, linear in this run": topology(
        "rigl", decay="linear"
    ),
    "distribution: erdos_renyi_kernel in the checkpoint, uniform in this run": (
        topology("rigl", distribution="uniform")
    ),
    "distribution: erdos_renyi_kernel in the checkpoint, {'first/\\*': 0.5} in": (
        topology("rigl", distribution={"first/*": 0.5})
    ),
    "sparsity: 0.5 in the checkpoint, 0.75 in this run": topology("rigl", 0.75),
    "method: rigl in the checkpoint, static in this run": so.static(0.5),
    r"dims: None in the checkpoint, neuron_dims\(reduction_axis=\[0\], output": (
        topology("rigl", dims=so.NeuronDims(0, 1))
    ),
}


@pytest.fixture(scope="module")
def rigl_checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rigl")
    save(directory, new_state("rigl"), step=5, topology=topology("rigl"))
    return directory


@pytest.mark.parametrize("message", OTHER_TOPOLOGIES)
def test_another_topology_is_named(message, rigl_checkpoint):
    given = new_state("rigl")
    with Checkpoints(rigl_checkpoint, topology=OTHER_TOPOLOGIES[message]) as other:
        with pytest.raises(ValueError, match=f"topology, {message}") as caught:
            other.restore(given)
        assert str(rigl_checkpoint / "5") in str(caught.value)
        # On request, it is loaded if possible.
        state, _ = other.restore(given, check_topology=False)
    assert_same_bits(state, given)


def test_the_same_topology_fits(rigl_checkpoint):
    for same in (topology("rigl"), topology("rigl", where=lambda path, leaf: True)):
        with Checkpoints(rigl_checkpoint, topology=same) as checkpoints:
            assert checkpoints.restore(new_state("rigl")) is not None


OTHER_STATES = {
    "sparsity": (
        lambda: new_state("rigl", sparsity=0.75),
        ["active weights of opt_state/masks/first/kernel: ", " in the checkpoint, "],
    ),
    "method": (
        lambda: new_state("set"),
        ["opt_state/topology_state/turned/first/kernel: only in this run"],
    ),
    "width": (
        lambda: new_state("rigl", width=24),
        [
            "params/first/kernel: float32[8,16] in the checkpoint, float32[8,24] in",
            "opt_state/masks/first/kernel: bool[8,16] in the checkpoint, bool[8,24]",
        ],
    ),
    "optimizer": (
        lambda: new_state(
            "rigl",
            tx=so.sparsify(
                optax.chain(so.scale_by_sparseopt(), optax.adam(0.1)), topology("rigl")
            ),
        ),
        [
            "inner_state/1/0/trace/first/kernel: only in the checkpoint",
            "inner_state/1/0/mu/first/kernel: only in this run",
        ],
    ),
    "type": (
        lambda: new_state("rigl").replace(
            params=jax.tree.map(
                lambda x: x.astype(jnp.bfloat16), new_state("rigl").params
            )
        ),
        ["params/first/bias: float32[16] in the checkpoint, bfloat16[16] in this run"],
    ),
    "key": (
        lambda: new_state("rigl").replace(
            opt_state=new_state("rigl").opt_state._replace(
                key=jax.random.key_data(jax.random.key(0, impl="rbg"))
            )
        ),
        ["opt_state/key: uint32[2] in the checkpoint, uint32[4] in this run"],
    ),
    "everything": (
        lambda: {f"layer_{i}": jnp.ones(2) for i in range(40)},
        ["params/first/kernel: only in the checkpoint", "\nand ", " more\n"],
    ),
}


@pytest.mark.filterwarnings("ignore:scale_by_sparseopt before")
@pytest.mark.parametrize("other", OTHER_STATES)
def test_another_state_is_named(other, rigl_checkpoint):
    make, messages = OTHER_STATES[other]
    for check_topology in (True, False):
        with pytest.raises(ValueError, match="belongs to another run") as caught:
            restore(rigl_checkpoint, make(), check_topology=check_topology)
        for message in [str(rigl_checkpoint / "5"), *messages]:
            assert message in str(caught.value)


# Damaged checkpoints, and other files.


def files_of(step):
    return sorted(p.relative_to(step) for p in step.rglob("*") if p.is_file())


def halve(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


# Orbax lets its other reads continue into a closed loop if one of them fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [halve, empty, flip, pathlib.Path.unlink])
def test_a_damaged_file_is_noticed_or_not_needed(damage, tmp_path):
    given, saved = new_state("rigl"), trained(new_state("rigl"), 0, 4)
    whole = tmp_path / "whole"
    with Checkpoints(whole) as checkpoints:
        checkpoints.save(1, given)
        checkpoints.save(4, saved)
    noticed = []
    for file in files_of(whole / "4"):
        directory = tmp_path / "damaged"
        shutil.copytree(whole, directory)
        damage(directory / "4" / file)
        try:
            state, _ = restore(directory, given)
        except ValueError as error:
            noticed.append(file)
            assert f"{directory / '4'} is damaged, and nothing was loaded" in str(error)
            assert "delete that directory to resume from step 1" in str(error)
            shutil.rmtree(directory / "4")
            state, _ = restore(directory, given)
            assert_same_bits(state, given)
        else:
            assert_same_bits(state, saved)
        shutil.rmtree(directory)
    assert pathlib.Path("record/metadata") in noticed
    data = [file for file in noticed if "d" in file.parts]
    assert data, noticed


def test_every_byte_of_the_arrays_counts(tmp_path):
    state = {"x": jax.random.normal(jax.random.key(0), (64, 64))}
    whole = tmp_path / "whole"
    save(whole, state)
    rng = np.random.default_rng(0)
    data = [f for f in files_of(whole / "1") if "d" in f.parts]
    for _ in range(20):
        directory = tmp_path / "damaged"
        shutil.copytree(whole, directory)
        file = directory / "1" / rng.choice(data)
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        try:
            restored, _ = restore(directory, state)
        except ValueError as error:
            assert "is damaged" in str(error)
        else:
            assert_same_bits(restored, state)
        shutil.rmtree(directory)


def test_arrays_of_another_step_are_noticed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, trained(new_state("rigl"), 0, step))
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(tmp_path / "1" / "state", tmp_path / "2" / "state")
    with pytest.raises(
        ValueError, match="does not hold the saved values of opt_state/count, "
    ):
        restore(tmp_path, new_state("rigl"))


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ESTALE, "Stale file handle"),
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        ValueError('RESOURCE_EXHAUSTED: Error opening "zarr" driver'),
    ],
)
@pytest.mark.parametrize("part", ["record", "state"])
def test_what_shows_no_damage_is_not_called_damage(part, error, tmp_path, monkeypatch):
    def fails(folder, step, **parts):
        if part in parts:
            raise error
        return read(folder, step, **parts)

    state = {"x": jnp.ones(2)}
    save(tmp_path, state)
    read = CheckpointFolder._read
    monkeypatch.setattr(CheckpointFolder, "_read", fails)
    with pytest.raises(OSError, match=r"could not be read, .* may be intact") as caught:
        restore(tmp_path, state)
    assert type(error).__name__ in str(caught.value)
    assert "delete" not in str(caught.value) and "damaged" not in str(caught.value)
    monkeypatch.undo()
    assert_same_bits(restore(tmp_path, state)[0], state)


def test_a_changed_record_is_noticed(tmp_path):
    save(tmp_path, new_state("rigl"), step=3, data={"index": 5})
    file = tmp_path / "3" / "record" / "metadata"
    record = json.loads(file.read_text())
    record["data"]["index"] = 6
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"3 is damaged.*no earlier step.*changed"):
        restore(tmp_path, new_state("rigl"))


def test_directories_of_others_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a directory"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(ValueError, match="holds 'file', which is not a checkpoint"):
        Checkpoints(tmp_path)
    foreign = tmp_path / "foreign"
    with ocp.CheckpointManager(foreign) as manager:
        manager.save(3, args=ocp.args.StandardSave({"x": jnp.ones(2)}))
    with pytest.raises(
        ValueError, match=r"foreign/3 is not a checkpoint of this library"
    ):
        Checkpoints(foreign, max_to_keep=1)
    assert os.listdir(foreign) == ["3"]


def test_an_error_while_writing_is_raised_and_leaves_no_step(tmp_path):
    big = {"x": jax.random.normal(jax.random.key(0), (2**20,))}
    small = {"x": jnp.ones(2)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, small)
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(ValueError, match="File too large"):
            checkpoints.save(2, big)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.steps == [1]
    assert checkpoints.save(3, small)
    checkpoints.close()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1, 3]


def test_a_save_that_cannot_begin_leaves_nothing_that_waits(tmp_path, monkeypatch):
    def not_permitted(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    state = {"w": jnp.arange(64.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        before = threading.enumerate()
        # Root may write anywhere, so the folder's permissions do not matter.
        with monkeypatch.context() as patch:
            patch.setattr(os, "makedirs", not_permitted)
            with pytest.raises(PermissionError):
                checkpoints.save(2, state)
                checkpoints.wait()
        new = [thread for thread in threading.enumerate() if thread not in before]
        # Threads of an executor end with the process.
        assert [x for x in new if not x.name.startswith("asyncio")] == []
        assert checkpoints.save(3, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1, 3]


# A power failure.


def test_a_step_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    directory = tmp_path / "runs" / "first"
    with Checkpoints(directory, max_to_keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": jnp.arange(64.0)}, {"index": step})
    assert ("flush", str(tmp_path)) in disk.events
    assert ("flush", str(directory.parent)) in disk.events
    first, second = (str(directory / str(step)) for step in (1, 2))
    for step in (first, second):
        assert disk.unflushed[step] == []
    # The new name exists before the old step is deleted.
    named, deleted = (
        next(i for i, (*_, path) in enumerate(disk.events) if path == new)
        for new in (second, str(directory / ".deleted" / "1"))
    )
    assert ("flush", str(directory)) in disk.events[named:deleted]
    assert ("flush", str(directory)) in disk.events[deleted:]


def test_a_step_that_the_disk_does_not_take_is_none(tmp_path, monkeypatch):
    def no_disk(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    state = {"w": jnp.arange(64.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_disk)
            checkpoints.save(2, state)
            with pytest.raises(OSError, match="Input/output error"):
                checkpoints.wait()
        assert checkpoints.steps == [1]
        assert checkpoints.save(3, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1, 3]


# SIGTERM.


@pytest.fixture
def handlers():
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def test_the_first_sigterm_sets_the_flag_and_the_second_does_as_before(handlers):
    received = []
    signal.signal(signal.SIGTERM, lambda *_: received.append("before"))
    stop = stop_on_sigterm()
    assert not stop.reached(1)
    signal.raise_signal(signal.SIGTERM)
    assert stop.reached(2) and stop.reached(3) and not received
    signal.raise_signal(signal.SIGTERM)
    assert received == ["before"]


def test_signals_need_the_main_thread(handlers):
    caught = []

    def other():
        with pytest.raises(ValueError, match="in the main thread") as error:
            stop_on_sigterm()
        caught.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert caught

"""A checkpoint of another optimizer is detected, as far as functions can be read."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import sparseopt_jax as so
from sparseopt_jax.checkpoint import Checkpoints
from sparseopt_jax.checkpoint.described import compare, describe
from sparseopt_jax.checkpoint.optimizer_record import (
    describe_optimizer,
    optimizer_differences,
)
from sparseopt_jax.checkpoint.record import _topology_differences, describe_topology
from sparseopt_jax.checkpoint.record_names import NAMES
from tests.helpers.described import PAIRS, TOPOLOGIES, TOPOLOGY, around, score
from tests.helpers.together import ROOT

PARAMS = {"a": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}


def train_state(tx):
    return so.linen.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)


@pytest.mark.parametrize("name", PAIRS)
def test_optimizers_of_one_shape_are_told_apart(name):
    one, other, message = PAIRS[name]
    saved = json.loads(json.dumps(describe_optimizer(train_state(one))))
    lines = optimizer_differences(saved, describe_optimizer(train_state(other)))
    found = [str(line) for line in lines if line.kind == "differs"]
    assert any(message in line for line in found), lines
    for tx, described in ((one, saved), (other, describe_optimizer(None, other))):
        assert not optimizer_differences(described, describe_optimizer(None, tx))


@pytest.mark.parametrize("name", ["nadam", "host_updates", "a lambda"])
def test_another_optimizer_is_an_error_unless_it_is_meant(name, tmp_path):
    one, other, message = PAIRS[name]
    with Checkpoints(tmp_path, topology=TOPOLOGY) as checkpoints:
        checkpoints.save(1, train_state(one))
        assert checkpoints.restore(train_state(one))
        with pytest.raises(ValueError, match="check_optimizer=False") as caught:
            checkpoints.restore(train_state(other))
        assert message in str(caught.value)
        assert "check_topology" not in str(caught.value)
        state, _ = checkpoints.restore(train_state(other), check_optimizer=False)
        assert state.tx is other


def test_an_owner_of_masks_goes_by_what_users_call():
    found = describe_optimizer(None, so.sparsify(optax.sgd(0.1), TOPOLOGY))
    assert found == {
        "made_of": "sparsify(identity > scale)",
        "settings": {"sparsify.host_updates": False, "scale.step_size": -0.1},
    }


def test_plain_trees_and_nnx_are_told_their_optimizer(tmp_path):
    one, other = PAIRS["nadam"][:2]
    tree = (PARAMS, one.init(PARAMS))
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    state = nnx.state(nnx.Optimizer(model, one, wrt=nnx.Param))
    for i, saved in enumerate((tree, state)):
        directory = tmp_path / str(i)
        with Checkpoints(directory, optimizer=one) as checkpoints:
            checkpoints.save(1, saved)
        with Checkpoints(directory, optimizer=one) as checkpoints:
            assert checkpoints.restore(saved)
        with (
            Checkpoints(directory, optimizer=other) as checkpoints,
            pytest.raises(ValueError, match="nesterov: False in the checkpoint, True"),
        ):
            checkpoints.restore(saved)
        # Unknown values are not compared.
        with Checkpoints(directory) as checkpoints:
            assert checkpoints.restore(saved)


def test_several_train_states_are_all_compared():
    one, other = PAIRS["momentum"][:2]
    both = {"first": train_state(one), "second": train_state(one)}
    saved = describe_optimizer(both)
    given = describe_optimizer(both | {"second": train_state(other)})
    assert saved["made_of"].count("trace") == 2
    assert len(optimizer_differences(saved, given)) == 1
    assert describe_optimizer(PARAMS) is None


def test_another_seed_is_no_other_optimizer():
    saved, given = (
        describe_optimizer(None, around(optax.noisy_sgd(0.1, key=key), key=key))
        for key in (0, 1)
    )
    assert saved == given


def test_nan_is_no_other_hyper_parameter(tmp_path):
    tx = optax.chain(optax.scale(jnp.nan), optax.scale_by_schedule(lambda step: step))
    with Checkpoints(tmp_path, optimizer=tx) as checkpoints:
        checkpoints.save(1, PARAMS)
    with Checkpoints(tmp_path, optimizer=tx) as checkpoints:
        assert checkpoints.restore(PARAMS)


def test_a_topology_is_compared_by_itself():
    later = so.rigl(0.5, every=2, stop=200)
    for make in (so.sparsify, lambda inner, topology: so.smet(0.1, topology)):
        saved, given = (
            describe_optimizer(None, make(optax.sgd(0.1), topology))
            for topology in (TOPOLOGY, later)
        )
        assert saved == given


def test_what_is_used_is_described_as_before():
    for name, (tx, *_) in PAIRS.items():
        before = describe_optimizer(None, tx)
        state = jax.eval_shape(tx.init, PARAMS)
        if name != "smet":
            jax.eval_shape(tx.update, PARAMS, state, PARAMS)
        assert describe_optimizer(None, tx) == before, name


PROGRAM = """
import json
from tests.helpers.described import PAIRS, TOPOLOGIES
from sparseopt_jax.checkpoint.record import describe_topology
from sparseopt_jax.checkpoint.optimizer_record import describe_optimizer
found = [describe_optimizer(None, tx) for pair in PAIRS.values() for tx in pair[:2]]
found += [describe_topology(t) for pair in TOPOLOGIES.values() for t in pair]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_another_process_describes_them_alike():
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            check=True,
            capture_output=True,
            env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": ".", "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and b" at 0x" not in outputs[0]


# Topologies.


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topologies_of_one_shape_are_told_apart(name):
    one, other = map(describe_topology, TOPOLOGIES[name])
    assert json.loads(json.dumps(one)) == one
    assert {part.kind for part in compare("", one, other)} == {"differs"}
    assert not list(compare("", one, one))


def test_names_in_the_record_are_those_of_the_format():
    # Checkpoints hold these names: they survive a renaming in the code.
    described = describe_topology(so.rigl(0.5, every=3, stop=100, start=2))
    expected = {
        "method": "rigl",
        "is": "rewiring",
        "sparsity": 0.5,
        "schedule": {
            "is": "every",
            "every": 3,
            "start": 2,
            "stop": 100,
            "drop_fraction": 0.3,
            "decay": "cosine",
        },
        "distribution": "erdos_renyi_kernel",
        "structure": {"is": "unstructured"},
        "drop": "magnitude",
        "grow": "gradient",
        "replaces_step": True,
        "keeps_counts": True,
        "density": None,
        "dims": None,
        "min_fan_in": 0,
    }
    assert {name: described.get(name, "missing") for name in expected} == expected
    described = describe_topology(so.ste(0.5))
    assert described["used"]["sparsity"] == 0.5
    assert described["method"] == "ste"


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)
def test_every_field_has_its_name_in_the_record(kind):
    # A new or renamed field needs an entry there; the names on the right stay.
    _, names = NAMES[kind]
    assert set(names) == {field.name for field in dataclasses.fields(kind)}
    assert len(set(names.values())) == len(names)


def test_a_setting_that_only_one_of_them_knows_is_an_error(tmp_path, monkeypatch):
    state = train_state(around(optax.sgd(0.1)))
    with Checkpoints(tmp_path, topology=TOPOLOGY) as checkpoints:
        checkpoints.save(1, state)
    kind, names = NAMES[so.topologies.rewiring.Rewiring]
    renamed = {type(TOPOLOGY): (kind, {**names, "min_fan_in": "least"})}
    monkeypatch.setattr(
        "sparseopt_jax.checkpoint.described.NAMES", {**NAMES, **renamed}
    )
    with Checkpoints(tmp_path, topology=TOPOLOGY) as checkpoints:
        with pytest.raises(ValueError) as error:
            checkpoints.restore(state)
        assert checkpoints.restore(state, check_topology=False)
    for line in (
        "topology, min_fan_in: 0 in the checkpoint, nothing in this run",
        "topology, least: nothing in the checkpoint, 0 in this run",
    ):
        assert line in str(error.value)


class Opaque:
    """Reveals nothing about itself."""

    def of(self, updates):
        return updates


def held(setting):
    def update(updates, state, params=None):
        del params
        return setting.of(updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def test_what_cannot_be_compared_is_warned_of(tmp_path):
    state = {"w": jnp.ones(3)}
    with Checkpoints(tmp_path, optimizer=held(Opaque())) as checkpoints:
        checkpoints.save(1, state)
        with pytest.warns(UserWarning, match=r"held.setting: Opaque in the checkpoint"):
            assert checkpoints.restore(state)


def test_another_way_to_choose_the_same_leaves_is_no_other_topology():
    one = describe_topology(so.static(0.5))
    other = describe_topology(so.static(0.5, where=lambda path, leaf: True))
    assert not _topology_differences(one, other)


@dataclasses.dataclass(frozen=True)
class Named:
    """A setting with a stored name, whatever its name in the code."""

    start: int
    record: str = "cubic"


def test_objects_may_name_themselves():
    assert describe(Named(3)) == {"is": "cubic", "start": 3}
    (difference,) = compare("decay", describe(Named(3)), describe(Named(4)))
    assert str(difference) == "decay.start: 3 in the checkpoint, 4 in this run"


def test_functions_are_told_by_what_they_do():
    def made(x):
        return lambda y: x + y

    assert describe(made(1)) == describe(made(1)) != describe(made(2))
    assert describe(score) == describe(score)
    assert describe(jax.random.key(0)) == {"unknown": "key<fry>"}
    assert describe(Opaque()) == {"unknown": "Opaque"}
    # Another Python has other instructions: then names and settings decide.
    one, other = describe(lambda x: x + 1), describe(lambda x: x + 2)
    assert {part.kind for part in compare("", one, other)} == {"differs"}
    moved = {key.replace("Python 3", "Python 4"): x for key, x in other.items()}
    assert [part.kind for part in compare("", one, moved)] == ["unknown"]

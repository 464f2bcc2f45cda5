"""Mistakes of new users raise errors with the argument, the value and the remedy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparseopt_jax as so

PARAMS: Any = {"a": {"kernel": jnp.ones((16, 8)), "bias": jnp.zeros(8)}}
TIMES: dict[str, Any] = {"every": 2, "stop": 8}
RIGL: Any = so.rigl
TOPOLOGY: Any = so.rigl(0.9, **TIMES)
TX: Any = so.sparse_sgd(0.1, TOPOLOGY)
STATE: Any = TX.init(PARAMS)
READY_MADE: list[Any] = [
    so.sparse_sgd,
    so.sparse_adamw,
    so.sparse_lars,
    so.sparse_lamb,
    so.smet,
]


class Model(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(16, 8, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def module() -> Any:
    model = Model()
    return model, nnx.Optimizer(model, TX, wrt=nnx.Param)


# Arguments in each other's place.


@pytest.mark.parametrize("optimizer", READY_MADE)
def test_learning_rate_and_topology_swapped(optimizer):
    message = (
        "learning_rate must be a number or a schedule, got a topology; call "
        rf"{optimizer.__name__}\(learning_rate, topology\)"
    )
    with pytest.raises(TypeError, match=message):
        optimizer(TOPOLOGY, 0.1)
    for bad in ("0.1", None, True, [0.1], np.ones(2)):
        with pytest.raises(TypeError, match="learning_rate must be a number or"):
            optimizer(bad, TOPOLOGY)
        with pytest.raises(TypeError, match="weight_decay must be a number or"):
            optimizer(0.1, TOPOLOGY, weight_decay=bad)
    for bad in ("rigl", 0.9, None, so.rigl, optax.sgd(0.1)):
        with pytest.raises(TypeError, match="topology must be a Topology"):
            optimizer(0.1, bad)


SWAPPED = {
    "sparsify(inner, topology)": lambda: so.sparsify(TOPOLOGY, TX),
    "apply_masks(params, opt_state)": lambda: so.apply_masks(STATE, PARAMS),
    "apply_updates(params, updates, opt_state)": lambda: so.apply_updates(
        STATE, PARAMS, PARAMS
    ),
    "summary(params, opt_state)": lambda: so.summary(STATE, PARAMS),
    "metrics(params, opt_state)": lambda: so.metrics(STATE, PARAMS),
    "plan(params, topology)": lambda: so.plan(TOPOLOGY, PARAMS),
    "sparse_init(params, opt_state, key)": lambda: so.sparse_init(STATE, PARAMS, 0),
    "compact_gradients(grads, opt_state)": lambda: so.compact_gradients(STATE, PARAMS),
    "update_topology(tx, grads, opt_state, params)": lambda: so.update_topology(
        TX, PARAMS, PARAMS, STATE
    ),
    "update_topology(tx, grads, opt_state, params) ": lambda: so.update_topology(
        TX, STATE, PARAMS, PARAMS
    ),
    "update_topology(tx, grads, opt_state, params)  ": lambda: so.update_topology(
        PARAMS, TX, STATE, PARAMS
    ),
}


@pytest.mark.parametrize("call", SWAPPED)
def test_swapped_arguments_are_told(call):
    with pytest.raises(TypeError) as error:
        SWAPPED[call]()
    assert f"call so.{call.strip()}" in str(error.value)


def test_a_model_and_its_optimizer_swapped(module):
    model, optimizer = module
    order = r"call so\.nnx\.mask_model\(model, optimizer\)"
    state: Any = nnx.state(model)
    for wrong in ((optimizer, model), (model, TX), (state, optimizer)):
        with pytest.raises(TypeError, match=order):
            so.nnx.mask_model(*wrong)
    order = r"call so\.nnx\.update_topology\(model, optimizer, grads\)"
    for wrong in ((optimizer, model, PARAMS), (PARAMS, model, optimizer)):
        with pytest.raises(TypeError, match=order):
            so.nnx.update_topology(*wrong)


@pytest.mark.parametrize(
    "function",
    [
        lambda: so.summary(PARAMS, TX),
        lambda: so.metrics(PARAMS, TX),
        lambda: so.apply_masks(PARAMS, TX),
        lambda: so.optimizer_bytes(TX),
        lambda: so.summary(PARAMS, TOPOLOGY),
    ],
)
def test_a_transformation_is_not_its_state(function):
    with pytest.raises(TypeError, match=r"must be an optimizer's state, tx\.init\(par"):
        function()


@pytest.mark.parametrize("bad", [0.9, "rigl", None, TX, STATE, so.rigl])
def test_a_plan_needs_a_topology(bad):
    with pytest.raises(TypeError, match=r"topology must be a Topology.*so\.plan\(par"):
        so.plan(PARAMS, bad)


def test_a_state_without_masks_is_described():
    for bad, kind in ((PARAMS, "a dict"), (TX, "an optax transformation")):
        with pytest.raises(ValueError, match=f"no masks found: .*; got {kind}"):
            so.get_masks(bad)


def test_a_train_step_wants_a_loss_and_a_state():
    values: list[Any] = [TX, STATE, 0.1]
    for bad in values:
        with pytest.raises(TypeError, match="loss_fn must be a function, got"):
            so.make_train_step(bad)
    step = so.make_train_step(lambda params, batch: 0.0)
    with pytest.raises(TypeError, match=r"state must be a so\.linen\.TrainState"):
        step(jnp.ones(3), STATE)


def test_long_values_are_described_not_printed():
    with pytest.raises(TypeError) as error:
        so.sparsify(TOPOLOGY, TX)
    assert len(str(error.value)) < 120


# Numbers.

TIMED: dict[str, Any] = {"sparsity": 0.5, **TIMES}
STEPS, SHARE, MORE = ("every", "stop", "start"), "drop_fraction", "sparsity"
NUMBERS: list[Any] = [
    (so.static, {"sparsity": 0.5}, (MORE, "min_fan_in")),
    (so.set_, TIMED, (MORE, *STEPS, SHARE, "decay", "min_fan_in")),
    (so.rigl, TIMED, (MORE, *STEPS, SHARE, "decay", "averaged_steps")),
    (so.snfs, TIMED, (MORE, *STEPS, SHARE, "momentum")),
    (so.mest, TIMED, (MORE, *STEPS, SHARE, "gradient_weight")),
    (so.srigl, TIMED, (MORE, *STEPS, SHARE, "gamma_sal")),
    (so.rigl_itop, TIMED, (MORE, "every", "stop", SHARE)),
    (so.set_itop, TIMED, (MORE, "every", "stop", SHARE)),
    (so.granet, TIMED, (MORE, *STEPS, SHARE, "initial_sparsity")),
    (so.gradual_magnitude, TIMED, (MORE, *STEPS, "initial_sparsity", "scope")),
    (
        so.ac_dc,
        {"sparsity": 0.5, "compress": [2, 6], "decompress": [4]},
        (MORE, "compress", "decompress"),
    ),
    (so.one_shot, {"sparsity": 0.5, "at": 3}, (MORE, "at", "scope")),
    (so.ste, {"sparsity": 0.5}, (MORE, *STEPS)),
    (so.sr_ste, {"sparsity": 0.5}, (MORE, *STEPS, "decay")),
    (
        so.top_kast,
        {"sparsity": 0.5, "trained_sparsity": 0.3},
        (MORE, "trained_sparsity", *STEPS, "penalty"),
    ),
    (
        so.set_smet,
        {"sparsity": 0.5, "stop": 1000},
        (MORE, "every", "stop", SHARE, "last_fraction", "block"),
    ),
    (so.str_, {}, ("initial",)),
    (so.NM, {"n": 2, "m": 4}, ("n", "m")),
    (so.Block, {"shape": (4, 4)}, ("shape",)),
    (so.scale_by_local_adam, {}, ("b1", "b2", "warmup_steps")),
    (so.prune, {"params": PARAMS, "sparsity": 0.5}, (MORE,)),
]
BAD = {
    "a string": "0.9",
    "None": None,
    "NaN": float("nan"),
    "an array": np.ones(3),
    "a jax array": jnp.ones(2),
    "half a step": 100.5,
}
# Arguments for which these are valid.
ALLOWED = {
    ("sparsity", "None"),
    ("last_fraction", "None"),
    ("initial", "half a step"),
}


@pytest.mark.parametrize(
    ("method", "arguments", "name"),
    [
        pytest.param(method, arguments, name, id=f"{method.__name__}-{name}")
        for method, arguments, names in NUMBERS
        for name in names
    ],
)
def test_a_number_that_is_none_is_named(method, arguments, name):
    for kind, bad in BAD.items():
        unbounded = name in ("gradient_weight", "decay", "penalty")
        if (name, kind) in ALLOWED or (unbounded and kind == "half a step"):
            continue
        with pytest.raises((TypeError, ValueError)) as error:
            method(**{**arguments, name: bad})
        assert name in str(error.value), (kind, str(error.value))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RIGL("0.9", **TIMES),
            "sparsity must be a number, got '0.9': pass",
        ),
        (lambda: so.rigl(True, **TIMES), "sparsity must be a number, got True"),
        (lambda: so.rigl(1.2, **TIMES), r"sparsity must be in \[0, 1\), got 1.2"),
        (
            lambda: RIGL(0.9, every=100.0, stop=800),
            "every must be an integer number of steps, got 100.0: pass 100",
        ),
        (
            lambda: RIGL(0.9, drop_fraction="x", **TIMES),
            "drop_fraction must be a number, got 'x'",
        ),
        (
            lambda: jax.jit(lambda x: so.static(x).sparsity)(0.9),
            r"sparsity must be a number, got a traced value.*static_arg",
        ),
    ],
)
def test_the_remedy_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_numbers_of_numpy_and_jax_are_taken():
    for kind in (np.float32, np.float64, jnp.float32):
        assert so.static(kind(0.5)).sparsity == 0.5  # pyright: ignore
    steps: dict[str, Any] = {"every": np.int64(2), "stop": jnp.int32(8)}
    topology = so.rigl(0.5, **steps, min_fan_in=np.int8(1))  # pyright: ignore
    assert topology.leaves(PARAMS)[1].active == 64
    for kind in (np.float32, jnp.float32):
        for optimizer in READY_MADE:
            optimizer(
                kind(0.1), TOPOLOGY if optimizer is not so.smet else so.set_(**TIMED)
            )


def test_traced_learning_rates_are_taken():
    @jax.jit
    def first_update(rate):
        tx = so.sparse_sgd(rate, TOPOLOGY)
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]

    first_update(0.1)


# Functions of a path and a leaf.

CHOOSERS: dict[str, Any] = {
    "where": [
        lambda where: so.static(0.5, where=where).leaves(PARAMS),
        lambda where: so.rigl(0.5, where=where, **TIMES).leaves(PARAMS),
        lambda where: so.ste(0.5, where=where).leaves(PARAMS),
        lambda where: so.prune(PARAMS, sparsity=0.5, where=where),
        lambda where: so.str_(where=where).init(PARAMS),
        lambda where: so.scale_by_sparse_trust_ratio(where=where).init(PARAMS),
    ],
}


@pytest.mark.parametrize(
    ("name", "use"), [(name, use) for name, uses in CHOOSERS.items() for use in uses]
)
def test_choosers_take_a_path_and_a_leaf(name, use):
    form = rf"{name}\(path, leaf\)"
    for bad in (
        lambda path: True,
        lambda: True,
        lambda a, b, c: True,
        {"a": True},
        0.5,
    ):
        with pytest.raises(TypeError, match=form):
            use(bad)
    for answer in (None, "yes", 1, np.ones(2, bool)):
        with pytest.raises(TypeError, match=rf"{form} must return a bool, got"):
            use(lambda path, leaf, answer=answer: answer)
    for answer in (True, np.bool_(True), jnp.array(True)):
        use(lambda path, leaf, answer=answer: answer)
    use(lambda *arguments: True)
    use(lambda path, leaf, more=None: True)

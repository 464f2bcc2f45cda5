"""The trainings that are interrupted: smaller networks of two examples."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from examples.digits import training as digits
from examples.digits.config import Config as DigitsConfig
from examples.digits.model import ResNet
from examples.language_model import __main__ as language
from examples.language_model import data as text
from reporting.training import load_digits

STEPS = 100
_ROWS = 32

# The trainings by name, with their number of processes.
TRAININGS = {"digits": 1, "language model": 1, "digits, two processes": 2}

State = so.linen.TrainState


class Program(NamedTuple):
    """One training.

    Attributes:
      topology: topology of its masks.
      start: returns the state before the first step.
      step: takes a state and the number of the step; returns the next state.
    """

    topology: so.Topology
    start: Callable[[], State]
    step: Callable[[State, int], State]


def prepare(path: Path, quick: bool) -> None:
    """Write the images and the text of all trainings, unless the file exists."""
    if path.exists():
        return
    train, _ = load_digits(quick)
    splits = text.standard_library(length=33, most=2_000_000)
    windows = [
        text.batch(splits.train, seed=0, number=step, rows=8, length=33)
        for step in range(STEPS)
    ]
    aside = path.with_name("data.npz")
    np.savez(aside, images=train.images, labels=train.labels, windows=windows)
    aside.rename(path)


def build(name: str, data: Path) -> Program:
    """Build a training; call this once in a process.

    Args:
      name: one of ``TRAININGS``.
      data: file that ``prepare`` wrote.

    Returns:
      The training.
    """
    content = np.load(data)
    if name == "language model":
        return _language_model(content["windows"])
    return _digits(content["images"], content["labels"], TRAININGS[name])


def _digits(images: np.ndarray, labels: np.ndarray, processes: int) -> Program:
    """RigL with SparseOpt and momentum; several processes share out the images."""
    config = DigitsConfig(width=4, epochs=5)
    correction = so.scale_by_sparseopt()
    make = functools.partial(digits.make_optimizer, config, "rigl", correction)
    tx = make(key=0)

    def start() -> State:
        # All states share one optimizer, because a step is compiled for its optimizer.
        return digits.start(ResNet(config.width), make, seed=0).replace(tx=tx)

    def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.random.default_rng(index).choice(len(labels), _ROWS, replace=False)
        return images[chosen], labels[chosen]

    def next_state(state: State, images: jax.Array, labels: jax.Array) -> State:
        return digits.train_step(state, images, labels)[0]

    topology = digits.make_topology(config, "rigl")
    if processes == 1:
        step = jax.jit(next_state, donate_argnums=0)
        return Program(topology, start, lambda state, index: step(state, *batch(index)))

    mesh = Mesh(np.array(jax.devices()), "data")
    everywhere, apart = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    shared = jax.jit(next_state, donate_argnums=0, out_shardings=everywhere)

    def shared_step(state: State, index: int) -> State:
        share = _ROWS // processes
        mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))
        arrays = (
            jax.make_array_from_process_local_data(apart, x[mine]) for x in batch(index)
        )
        return shared(state, *arrays)

    return Program(topology, jax.jit(start, out_shardings=everywhere), shared_step)


def _language_model(windows: np.ndarray) -> Program:
    """SMET, whose topology drops and grows weights at random."""
    config = language.Config(every=20, steps=STEPS, length=32)
    model = language.make_model(config)
    tx = language.make_optimizer(config, "smet", key=0)

    def start() -> State:
        params = language.init(model, jax.random.key(0, impl="rbg"))
        return State.create(apply_fn=model.apply, params=params, tx=tx)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: jax.Array) -> State:
        return language.train_step(model, state, batch)[0]

    return Program(
        language.make_topology(config),
        start,
        lambda state, index: step(state, windows[index]),
    )


def digest(state: State) -> str:
    """Return a hash of a state, which differs if a single bit does."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if isinstance(leaf, jax.Array):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            leaf = leaf.addressable_data(0)
        values = np.asarray(leaf)
        head = f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}"
        total.update(head.encode() + values.tobytes())
    return total.hexdigest()[:16]

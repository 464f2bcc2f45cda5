"""Gives every topology gradients that are not finite, at every step of a training.

    python -m studies.reliability.non_finite

Every method in every structure that it has trains two small kernels for 200 steps, by
SGD with momentum: once for each step at which all gradients are NaN, once for each at
which a single one is, once for each at which they are NaN and infinite in turns, and
once with NaN throughout. After each step it is counted how many masked weights are not
exactly zero, and, where a topology keeps the number of active weights, whether as many
are active as in a training in which all gradients are finite. Methods that keep dense
weights and mask the forward pass are judged by the weights of that pass.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from benchmarks.method_arms import ARMS, When
from reporting import harness
from sparseopt_jax.masks.state import stays_dense
from studies.reliability.options import Notes, Options

STEPS = 200
KINDS = ("all NaN", "one NaN", "NaN and infinities")
_SHAPES = {"hidden": {"kernel": (8, 16)}, "head": {"kernel": (16, 8)}}
_EVERY, _STOP = 5, 150


def topologies() -> dict[str, so.Topology]:
    """Every method in every structure, by name."""
    built = {
        label: arm.build(When(_EVERY, _STOP), misfits=False)
        for label, arm in ARMS.items()
    }
    of_structures = {
        label: method
        for label, method in built.items()
        if isinstance(method, so.Topology)
    }
    return of_structures | {
        "SET-ITOP": so.set_itop(0.9, every=_EVERY, stop=_STOP),
        "RigL-ITOP": so.rigl_itop(0.9, every=_EVERY, stop=_STOP),
        "SMET": so.set_smet(0.9, every=_EVERY, stop=_STOP),
    }


def main(options: Options) -> None:
    """Runs the program."""
    report = harness.Report("studies.reliability.non_finite", options)
    notes = Notes(report, options)
    steps = 20 if options.quick else STEPS
    chosen = topologies()
    if options.quick:
        chosen = dict(list(chosen.items())[: options.count_or(2)])
    for label, topology in chosen.items():
        if not notes.select(topology=label):
            notes.add({"topology": label, **count(topology, steps)})
    report.listing("Gradients that are not finite", notes.rows, kind="non_finite")
    for what in ("nonzero", "miscounted"):
        total = sum(row[what] for row in notes.rows)
        report.claim(f"{what}, all topologies", total, at_most=0, kind=what)
    report.store()


def count(topology: so.Topology, steps: int) -> dict[str, int]:
    """What goes wrong with a topology.

    Args:
      topology: one whose masks fit ``_SHAPES``.
      steps: of each training, and how many trainings there are of each kind.

    Returns:
      The trainings; masked weights that were not zero, and, of a topology that keeps
      the number of active weights, steps with another one, summed over all of them.
    """
    places = jnp.concatenate([jnp.arange(steps), jnp.array([-1])])
    kinds = jnp.arange(len(KINDS))
    train = functools.partial(_train, topology, steps)
    every = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))
    nonzero, active = jax.device_get(every(places, kinds))
    expected = active
    if topology.keeps_counts:
        _, expected = jax.device_get(jax.jit(train)(jnp.int32(steps), jnp.int32(0)))
    return {
        "trainings": nonzero.shape[0] * nonzero.shape[1],
        "steps": steps,
        "nonzero": int(nonzero.sum()),
        "miscounted": int((active != expected).sum()),
    }


def _train(
    topology: so.Topology, steps: int, place: jax.Array, kind: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One training, with a kind of gradient at one step, at all of them for -1.

    Returns:
      After each step: masked weights that are not zero; active weights.
    """
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), topology, key=0)
    params = _random(jax.random.key(0))
    state = tx.init(params)
    if not stays_dense(state):
        params = so.apply_masks(params, state)

    def step(carry, index):
        params, state = carry
        hit = (index == place) | (place < 0)
        key = jax.random.fold_in(jax.random.key(1), index)
        grads = jax.tree.map(
            lambda g: jnp.where(hit, _spoiled(g, kind), g), _random(key)
        )
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), _counted(params, state)

    return jax.lax.scan(step, (params, state), jnp.arange(steps))[1]


def _spoiled(grads: jax.Array, kind: jax.Array) -> jax.Array:
    """Gradients of one of ``KINDS``."""
    place = jnp.arange(grads.size).reshape(grads.shape)
    nan, inf = jnp.float32(jnp.nan), jnp.float32(jnp.inf)
    return jnp.select(
        [kind == 0, kind == 1],
        [jnp.full_like(grads, nan), jnp.where(place == 3, nan, grads)],
        jnp.where(place % 3 == 0, nan, jnp.where(place % 3 == 1, inf, -inf)),
    )


def _counted(params: Any, state: Any) -> tuple[jax.Array, jax.Array]:
    masks = so.get_masks(state)
    # Dense weights are masked for the forward pass alone.
    used = so.apply_masks(params, masks) if stays_dense(state) else params
    pairs = [
        (layer["kernel"], used[name]["kernel"])
        for name, layer in masks.items()
        if isinstance(layer["kernel"], jax.Array)
    ]
    nonzero = sum(jnp.sum(~mask & (weights != 0)) for mask, weights in pairs)
    return jnp.asarray(nonzero), jnp.asarray(sum(jnp.sum(mask) for mask, _ in pairs))


def _random(key: jax.Array) -> Any:
    keys = jax.random.split(key, len(_SHAPES))
    return {
        name: {"kernel": jax.random.normal(k, layer["kernel"])}
        for k, (name, layer) in zip(keys, _SHAPES.items(), strict=True)
    }


if __name__ == "__main__":
    harness.start(main, __doc__, Options)

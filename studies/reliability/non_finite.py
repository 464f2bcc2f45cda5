"""Give every topology non-finite gradients, at every step of a training.

    python -m studies.reliability.non_finite

Every method, with every structure it supports, trains two small kernels for 200 steps
of SGD with momentum. There are three kinds of gradients: all NaN, a single NaN, and NaN
and infinities in turn. Each kind comes once at each step alone, and once at all steps.
After every step the program counts the masked weights that are not exactly zero. Where
a topology keeps the number of active weights, it also compares that number with a
training whose gradients are all finite. Methods that keep dense weights and mask the
forward pass are judged by the weights of that pass.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    """Return every method with every structure, by name."""
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
    """Run the program."""
    report = harness.Report("studies.reliability.non_finite", options)
    notes = Notes(report, options)
    steps = 20 if options.quick else STEPS
    chosen = topologies()
    if options.quick:
        chosen = dict(list(chosen.items())[: options.count_or(2)])
    for label, topology in chosen.items():
        if not notes.select(topology=label):
            notes.add({"topology": label, **count(topology, steps)})
    report.listing("Non-finite gradients", notes.rows, kind="non_finite")
    for what in ("nonzero", "miscounted"):
        total = sum(row[what] for row in notes.rows)
        report.claim(f"{what}, all topologies", total, at_most=0, kind=what)
    report.store()


def count(topology: so.Topology, steps: int) -> dict[str, int]:
    """Train with non-finite gradients of each kind, and count what goes wrong.

    Args:
      topology: a topology whose masks fit ``_SHAPES``.
      steps: number of steps of each training.

    Returns:
      The numbers of trainings and steps; how many masked weights were nonzero, summed
      over all steps; and, for a topology that keeps the number of active weights, after
      how many steps that number was wrong.
    """
    # The last of these never comes: in that training all gradients are finite.
    spoiled_steps = jnp.array([*range(steps), -1, steps])
    kinds = jnp.arange(len(KINDS))
    train = functools.partial(_train, topology, steps)
    every = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))
    nonzero, active = jax.device_get(every(spoiled_steps, kinds))
    wrong = active[:-1] != active[-1] if topology.keeps_counts else np.zeros(1)
    return {
        "trainings": (len(spoiled_steps) - 1) * len(KINDS),
        "steps": steps,
        "nonzero": int(nonzero.sum()),
        "miscounted": int(wrong.sum()),
    }


def _train(
    topology: so.Topology, steps: int, spoiled_step: jax.Array, kind: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Train once, with non-finite gradients at one step, or at all of them for -1.

    Returns:
      After each step, the number of nonzero masked weights and of active weights.
    """
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), topology, key=0)
    params = _random(jax.random.key(0))
    state = tx.init(params)
    if not stays_dense(state):
        params = so.apply_masks(params, state)

    def step(carry, index):
        params, state = carry
        hit = (index == spoiled_step) | (spoiled_step < 0)
        key = jax.random.fold_in(jax.random.key(1), index)
        grads = jax.tree.map(
            lambda g: jnp.where(hit, _spoiled(g, kind), g), _random(key)
        )
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), _counted(params, state)

    return jax.lax.scan(step, (params, state), jnp.arange(steps))[1]


def _spoiled(grads: jax.Array, kind: jax.Array) -> jax.Array:
    """Return non-finite gradients of one of ``KINDS``."""
    place = jnp.arange(grads.size).reshape(grads.shape)
    nan, inf = jnp.float32(jnp.nan), jnp.float32(jnp.inf)
    return jnp.select(
        [kind == 0, kind == 1],
        [jnp.full_like(grads, nan), jnp.where(place == 3, nan, grads)],
        jnp.where(place % 3 == 0, nan, jnp.where(place % 3 == 1, inf, -inf)),
    )


def _counted(params: Any, state: Any) -> tuple[jax.Array, jax.Array]:
    """Return the numbers of nonzero masked weights and of active weights."""
    masks = so.get_masks(state)
    # Dense weights are masked in the forward pass only.
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

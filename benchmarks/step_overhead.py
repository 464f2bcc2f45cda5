"""Overhead of sparse training per step, and the cost of an update of the masks.

    python -m benchmarks.step_overhead

First the optimizer alone, on the parameters of ResNet-50: its step inside ``sparsify``
against the bare one, without an update of the masks; then the updates themselves. Last
a whole training step of the network for scanned digits, with an update every hundred
steps.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from benchmarks.steps import (
    BY_HAND,
    MOVING,
    NEVER_DUE,
    OPTIMIZERS,
    SPARSITY,
    TINY,
    Optimizer,
    count,
    looping,
    optimizer_step,
    random_arrays,
    resnet_shapes,
    start,
    start_by_hand,
    step_by_hand,
    topology_step,
)
from examples.digits.config import Config
from examples.digits.model import ResNet
from examples.digits.training import batches, train_step
from reporting import harness
from reporting.training import BATCH, load_digits

EVERY = 100
AT_ONCE_DUE: dict[str, Any] = {"every": EVERY, "stop": 10**9}

IN_GRAPH, FROM_HOST, IN_TRAINING = 1.15, 1.05, 1.05


def time_steps(
    report: harness.Report, optimizer: Optimizer, shapes: Any, rounds: int
) -> dict[str, harness.Timing]:
    """Time the optimizer's step bare and inside ``sparsify``, without updates due.

    Returns:
      The timings in place, by name.
    """
    params, grads = random_arrays(shapes, seed=0), random_arrays(shapes, seed=1)
    name, bare = optimizer.name, optimizer.bare
    inside = {"static": so.sparsify(bare, so.static(SPARSITY))}
    from_host = {}
    for label, make in MOVING.items():
        topology = make(SPARSITY, **NEVER_DUE)
        inside[label] = so.sparsify(bare, topology)
        from_host[f"{label}, from the host"] = so.sparsify(
            bare, topology, host_updates=True
        )
    topology = so.rigl(SPARSITY, **NEVER_DUE)
    inside["RigL + SparseOpt"] = so.sparsify(optimizer.corrected, topology)

    # The same program twice: its deviation from 1 is the noise of any ratio.
    transformations = {name: bare, **inside, **from_host, f"{name} again": bare}
    programs = {
        label: (optimizer_step, start, tx) for label, tx in transformations.items()
    }
    programs[BY_HAND] = (step_by_hand, start_by_hand, bare)
    size = f"{count(shapes):,} parameters"
    for words, in_place in (("into new arrays", False), ("in place", True)):
        timings = harness.measure(
            [
                harness.Candidate(
                    label,
                    looping(
                        functools.partial(step, tx),
                        begin(tx, params),
                        itertools.repeat((grads,)),
                        in_place=in_place,
                    ),
                )
                for label, (step, begin, tx) in programs.items()
            ],
            rounds,
        )
        title = f"{name}, {size}: a step without a change, {words}"
        key = {"optimizer": name, "in_place": in_place}
        report.table(title, timings, name, kind="step", **key)
        for labels, limit in ((inside, IN_GRAPH), (from_host, FROM_HOST)):
            for label in labels:
                ratio = timings[label].ratio(timings[name]).median
                report.claim(f"{name}, {words}: {label} / bare", ratio, at_most=limit)
        ratio = timings[BY_HAND].ratio(timings[name]).median
        report.claim(f"{name}, {words}: {BY_HAND} / bare", ratio)
    return timings


def time_changes(
    report: harness.Report,
    optimizer: Optimizer,
    shapes: Any,
    rounds: int,
    without: dict[str, harness.Timing],
) -> None:
    """Time an update of the masks, in the step and from the host.

    Each starts from the same weights: in sequence they would find more and more weights
    at zero, because no gradient step comes between.
    """
    params, grads = random_arrays(shapes, seed=0), random_arrays(shapes, seed=1)
    name, bare = optimizer.name, optimizer.bare
    step = functools.partial(optimizer_step, bare)
    candidates = [
        harness.Candidate(
            name, looping(step, start(bare, params), itertools.repeat((grads,)))
        )
    ]
    for label, make in MOVING.items():
        topology = make(SPARSITY, **AT_ONCE_DUE)
        for words, host, step in (
            ("step with a change", False, optimizer_step),
            ("update_topology", True, topology_step),
        ):
            tx = so.sparsify(bare, topology, host_updates=host)
            change = jax.jit(functools.partial(step, tx))
            run = functools.partial(change, start(tx, params), grads)
            candidates.append(harness.Candidate(f"{label}, {words}", run))
    timings = harness.measure(candidates, rounds)
    title = f"{name}, {count(shapes):,} parameters: a change"
    report.table(title, timings, name, kind="change", optimizer=name)
    for label in MOVING:
        due = timings[f"{label}, step with a change"].ratio(timings[name]).median
        rest = without[label].ratio(without[name]).median
        mean = (due + (EVERY - 1) * rest) / EVERY
        report.claim(f"{name}: {label} changing every {EVERY} steps / bare", mean)


def time_training(
    report: harness.Report, model: ResNet, steps: int, rounds: int
) -> None:
    """Time a whole training step of the example.

    A block has ``steps`` steps, one of which updates the masks.
    """
    train, _ = load_digits(report.options.quick)
    seen = jax.device_put([*batches(train, 1, np.random.default_rng(0), BATCH)])
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), seen[0][0])

    def block(tx):
        state = so.linen.TrainState.create(
            apply_fn=model.apply,
            params=jax.tree.map(jnp.copy, variables["params"]),
            batch_stats=jax.tree.map(jnp.copy, variables["batch_stats"]),
            tx=tx,
        )
        return looping(
            lambda state, *batch: train_step(state, *batch)[0],
            state,
            itertools.cycle(seen),
            steps,
        )

    def inner(correction):
        return optax.chain(
            correction,
            optax.add_decayed_weights(5e-4),
            optax.sgd(0.05, momentum=0.9),
        )

    topology = so.rigl(Config.sparsity, every=steps, stop=10**9)
    sparse = so.sparsify(inner(so.scale_by_sparseopt()), topology)
    timings = harness.measure(
        [
            harness.Candidate("dense", block(inner(optax.identity())), steps),
            harness.Candidate("RigL + SparseOpt", block(sparse), steps),
        ],
        rounds,
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    title = f"training on digits, {size:,} parameters: a step, changes included"
    report.table(title, timings, "dense", kind="training")
    ratio = timings["RigL + SparseOpt"].ratio(timings["dense"]).median
    report.claim(
        f"digits: RigL + SparseOpt changing every {steps} steps / dense",
        ratio,
        at_most=IN_TRAINING,
        kind="training",
    )


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.step_overhead", options)
    shapes = TINY if options.quick else resnet_shapes()
    for optimizer in OPTIMIZERS:
        without = time_steps(report, optimizer, shapes, options.rounds_or(30))
        time_changes(report, optimizer, shapes, options.rounds_or(5), without)
    rounds = options.rounds_or(30)
    if options.quick:
        time_training(report, ResNet(4, strides=()), 5, rounds)
    else:
        time_training(report, ResNet(Config.width), EVERY, rounds)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)

"""What sparse training adds to a step, and what a change of the topology costs.

    python -m benchmarks.step_overhead

First the optimizer alone, on the parameters of ResNet-50: its step inside ``sparsify``
against the bare one, on steps without a change; then the changes themselves. Last a
whole training step of the network for scanned digits, with a change every hundred
steps.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from sklearn.datasets import load_digits

import sparseopt_jax as so
from examples.digits import __main__ as digits
from examples.digits.model import ResNet
from reporting import harness

SPARSITY = 0.9
EVERY = 100
TINY = {"head": {"kernel": (16, 8), "bias": (8,)}}
MOVING = {"SET": so.set_, "RigL": so.rigl}
# The condition is in the program, and never holds.
NEVER_DUE: dict[str, Any] = {"every": EVERY, "start": 10**9, "stop": 2 * 10**9}
AT_ONCE_DUE: dict[str, Any] = {"every": EVERY, "stop": 10**9}

BY_HAND = "masks by hand"
IN_GRAPH, FROM_HOST, IN_TRAINING = 1.15, 1.05, 1.05


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A base optimizer, bare and with SparseOpt where it takes effect.

    Attributes:
      name: what tables call it.
      bare: the optimizer.
      corrected: the same with ``scale_by_sparseopt``.
    """

    name: str
    bare: optax.GradientTransformation
    corrected: optax.GradientTransformation


OPTIMIZERS = (
    Optimizer(
        "sgd",
        optax.sgd(1e-3, momentum=0.9),
        optax.chain(so.scale_by_sparseopt(), optax.sgd(1e-3, momentum=0.9)),
    ),
    Optimizer(
        "adamw",
        optax.adamw(1e-3),
        optax.chain(
            optax.scale_by_adam(),
            so.scale_by_sparseopt(),
            optax.add_decayed_weights(1e-4),
            optax.scale_by_learning_rate(1e-3),
        ),
    ),
)


def resnet_shapes(
    blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64, classes: int = 1000
) -> dict[str, Any]:
    """Shapes of a bottleneck ResNet's parameters: by default ResNet-50's, 25.6 million.

    Args:
      blocks: how many in each stage.
      width: channels of the stem and of the first stage's 3x3 convolutions.
      classes: outputs of the head.

    Returns:
      A tree in Flax's layout, a tuple for each parameter.
    """

    def conv(size, inputs, outputs):
        return {
            "conv": {"kernel": (size, size, inputs, outputs)},
            "norm": {"scale": (outputs,), "bias": (outputs,)},
        }

    shapes: dict[str, Any] = {"stem": conv(7, 3, width)}
    inputs = width
    for stage, count in enumerate(blocks):
        features = width * 2**stage
        for index in range(count):
            block = {
                "reduce": conv(1, inputs, features),
                "middle": conv(3, features, features),
                "expand": conv(1, features, 4 * features),
            }
            if index == 0:
                block["shortcut"] = conv(1, inputs, 4 * features)
            shapes[f"stage_{stage}_block_{index}"] = block
            inputs = 4 * features
    shapes["head"] = {"kernel": (inputs, classes), "bias": (classes,)}
    return shapes


def random_arrays(shapes: Any, seed: int) -> Any:
    """Normal numbers of a hundredth, as float32 arrays of these shapes."""
    draw = np.random.default_rng(seed).standard_normal
    return jax.tree.map(
        lambda shape: jnp.asarray(0.01 * draw(shape, dtype=np.float32)),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def optimizer_step(tx: optax.GradientTransformation, carry: Any, grads: Any) -> Any:
    """Updates (state, params)."""
    opt_state, params = carry
    updates, opt_state = tx.update(grads, opt_state, params)
    return opt_state, optax.apply_updates(params, updates)


def step_by_hand(
    tx: optax.GradientTransformation, carry: Any, grads: Any
) -> tuple[Any, Any]:
    """Updates ((state, masks), params), as people write it who do without a library.

    The least that keeps zeros exact. The optimizer's state is left as it comes, so that
    a weight grown later would start with what its place has gathered.
    """
    (opt_state, masks), params = carry
    grads = so.apply_masks(grads, masks)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = so.apply_masks(optax.apply_updates(params, updates), masks)
    return (opt_state, masks), params


def start_by_hand(tx: optax.GradientTransformation, params: Any) -> Any:
    """State, masks and weights for ``step_by_hand``."""
    masks = so.static(SPARSITY).init(jax.random.key(0), params)[0]
    params = so.apply_masks(jax.tree.map(jnp.copy, params), masks)
    return (tx.init(params), masks), params


def topology_step(tx: optax.GradientTransformation, carry: Any, grads: Any) -> Any:
    """Changes the masks of (state, params)."""
    return so.update_topology(tx, grads, *carry)


def start(tx: optax.GradientTransformation, params: Any) -> Any:
    """A state and weights of its own, sparse if the state holds masks."""
    params = jax.tree.map(jnp.copy, params)
    opt_state = tx.init(params)
    if isinstance(opt_state, so.SparseState):
        params = so.apply_masks(params, opt_state)
    return opt_state, params


def looping(
    step: Callable[..., Any],
    carry: Any,
    inputs: Iterable[tuple],
    steps: int = 1,
    in_place: bool = True,
    wait: bool = False,
) -> Callable[[], Any]:
    """Takes steps, each on what the one before has left.

    Args:
      step: ``step(carry, *given) -> carry``, to be compiled.
      carry: what the first step is given; it must not be used afterwards.
      inputs: what else the steps are given, without end.
      steps: how many to take at each call.
      in_place: whether a step donates what it is given, as training programs do, and
        so writes over it.
      wait: whether each step is waited for before the next is started.

    Returns:
      A function that takes them, and returns what they leave.
    """
    compiled = jax.jit(step, donate_argnums=0 if in_place else ())
    remaining = iter(inputs)

    def run():
        nonlocal carry
        for given in itertools.islice(remaining, steps):
            carry = compiled(carry, *given)
            if wait:
                jax.block_until_ready(carry)
        return carry

    return run


def time_steps(
    report: harness.Report, optimizer: Optimizer, shapes: Any, rounds: int
) -> dict[str, harness.Timing]:
    """The optimizer's step bare and inside ``sparsify``, no change being due.

    Returns:
      The timings in place, by what was timed.
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

    # The same program twice: what its ratio differs from 1 by, any other may, too.
    transformations = {name: bare, **inside, **from_host, f"{name} again": bare}
    programs = {
        label: (optimizer_step, start, tx) for label, tx in transformations.items()
    }
    programs[BY_HAND] = (step_by_hand, start_by_hand, bare)
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
        title = f"{name}, {_size(shapes)}: a step without a change, {words}"
        report.table(title, timings, name)
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
    """A change of the topology, within the step and from the host.

    Each is made anew from the same weights: made one after another they would find more
    and more weights at zero, as no gradient step comes between.
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
    report.table(f"{name}, {_size(shapes)}: a change", timings, name)
    for label in MOVING:
        due = timings[f"{label}, step with a change"].ratio(timings[name]).median
        rest = without[label].ratio(without[name]).median
        mean = (due + (EVERY - 1) * rest) / EVERY
        report.claim(f"{name}: {label} changing every {EVERY} steps / bare", mean)


def time_training(
    report: harness.Report, steps: int, rounds: int, **model_options: Any
) -> None:
    """A whole training step of the example, a change in every block of steps included.

    Args:
      report: where it is told.
      steps: how many in a block, and from one change to the next.
      rounds: blocks of each.
      **model_options: what the network differs in from the example's.
    """
    config = digits.Config()
    model = ResNet(**{"width": config.width, **model_options})
    batches = digit_batches(config.batch_size)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), batches[0][0])

    def block(tx):
        state = so.linen.TrainState.create(
            apply_fn=model.apply,
            params=jax.tree.map(jnp.copy, variables["params"]),
            batch_stats=jax.tree.map(jnp.copy, variables["batch_stats"]),
            tx=tx,
        )
        return looping(
            lambda state, *batch: digits.train_step(state, *batch)[0],
            state,
            itertools.cycle(batches),
            steps,
        )

    def inner(correction):
        return optax.chain(
            correction,
            optax.add_decayed_weights(5e-4),
            optax.sgd(0.05, momentum=0.9),
        )

    topology = so.rigl(config.sparsity, every=steps, stop=10**9)
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
    report.table(title, timings, "dense")
    ratio = timings["RigL + SparseOpt"].ratio(timings["dense"]).median
    report.claim(
        f"digits: RigL + SparseOpt changing every {steps} steps / dense",
        ratio,
        at_most=IN_TRAINING,
    )


def digit_batches(batch_size: int) -> list[tuple[jax.Array, jax.Array]]:
    """Whole batches of the scanned digits, standardised: (n, 8, 8, 1) and (n,)."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    images = images.reshape(-1, 8, 8, 1).astype(np.float32)
    starts = range(0, len(labels) - batch_size + 1, batch_size)
    return [
        (
            jnp.asarray(images[start : start + batch_size]),
            jnp.asarray(labels[start : start + batch_size], jnp.int32),
        )
        for start in starts
    ]


def _size(shapes: Any) -> str:
    leaves = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
    return f"{sum(map(math.prod, leaves)):,} parameters"


def main(options: harness.Options) -> None:
    """Runs the benchmark."""
    report = harness.Report("step_overhead", options)
    shapes = TINY if options.quick else resnet_shapes()
    for optimizer in OPTIMIZERS:
        without = time_steps(report, optimizer, shapes, options.rounds_or(30))
        time_changes(report, optimizer, shapes, options.rounds_or(5), without)
    rounds = options.rounds_or(30)
    if options.quick:
        time_training(report, 5, rounds, width=4, strides=())
    else:
        time_training(report, EVERY, rounds)
    report.store()


if __name__ == "__main__":
    main(tyro.cli(harness.Options, description=__doc__))

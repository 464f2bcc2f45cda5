"""Part b: a whole training step of ResNet-50, dense and sparse.

Batches of 256 random images of 224 by 224 in bfloat16, already on the device; the
optimizers are those of ``examples/imagenet`` at 90 % zeros, which update their masks
every 100 steps in the compiled step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from benchmarks.gpu.arms import Arm, build, compare, steps_at_once
from benchmarks.gpu.part import Budget, Report
from examples.imagenet.model import ResNet
from examples.imagenet.recipes import Recipe, make_optimizer
from reporting import harness

EVERY = 100
STEPS_PER_EPOCH = 5_000
CLASSES = 1_000
# Most important first; the first is the baseline.
RECIPES = {
    "dense": Recipe("dense"),
    "RigL": Recipe("rigl", every=EVERY),
    "static": Recipe("static"),
    "RigL + SparseOpt": Recipe("rigl", sparseopt=True, every=EVERY),
    "SET": Recipe("set", every=EVERY),
}


def measure(report: Report, budget: Budget) -> None:
    """Measure the part."""
    recipes = [*RECIPES.items()]
    model, batch, size = ResNet(classes=CLASSES), 256, 224
    if report.options.quick:
        model, batch, size = ResNet(8, (1,), 10), 2, 32
        recipes = recipes[:2]
    images_key, labels_key = jax.random.split(jax.random.key(0, impl="rbg"))
    shape = (batch, size, size, 3)
    images = jax.random.normal(images_key, shape, model.dtype)
    labels = jax.random.randint(labels_key, (batch,), 0, model.classes)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(1, impl="rbg"), images[:1])
    makers = {
        name: functools.partial(_arm, name, recipe, model, variables, (images, labels))
        for name, recipe in recipes
    }
    arms = build(report, makers.items(), Budget(0.75 * budget.left))
    if not arms or arms[0].name != "dense":
        return
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    title = f"ResNet-50, {weights:,} parameters, batch {batch}, {size}x{size}, bfloat16"
    key = {"batch": batch, "weights": weights}
    rows = [arm.row() for arm in arms]
    report.listing(f"{title}: bytes of a step", rows, kind="bytes", **key)
    steps = steps_at_once(report, arms[0])
    candidates = [
        harness.Candidate(arm.name, arm.block(steps, _at(EVERY + 1)), steps)
        for arm in arms
    ]
    first = f"{title}: a step without an update"
    plain = compare(
        report, first, candidates, Budget(0.7 * budget.left), kind="step", **key
    )
    candidates = [harness.Candidate("dense", arms[0].block(1))]
    candidates += [
        harness.Candidate(arm.name, arm.block(1, _at(EVERY)))
        for arm in arms
        if RECIPES[arm.name].method not in ("dense", "static")
    ]
    due = compare(
        report, f"{title}: with an update", candidates, budget, kind="update", **key
    )
    for name in [*plain][1:]:
        mean, words = plain[name].ratio(plain["dense"]).median, ""
        if name in due:
            update = due[name].ratio(due["dense"]).median
            mean = ((EVERY - 1) * mean + update) / EVERY
            words = f" with an update every {EVERY} steps"
        report.claim(f"{name}{words} / dense", mean, kind="amortised", name=name)


def _arm(name: str, recipe: Recipe, model: ResNet, variables: Any, batch: tuple) -> Arm:
    def loss_fn(params, batch_stats, batch):
        images, labels = batch
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), ({}, changed["batch_stats"])

    step = so.make_train_step(loss_fn, has_batch_stats=True)
    # A copy, because steps donate their inputs.
    state = so.linen.TrainState.create(
        apply_fn=None,
        tx=make_optimizer(recipe, STEPS_PER_EPOCH, seed=0),
        **jax.tree.map(jnp.copy, dict(variables)),
    )
    return Arm(name, lambda state, batch: step(state, batch)[0], state, (batch,))


def _at(count: int) -> Any:
    """Return a function that sets the step of the masks, and so what is due."""

    def reset(state: so.linen.TrainState) -> so.linen.TrainState:
        opt_state: Any = state.opt_state
        if not isinstance(opt_state, so.SparseState):
            return state
        return state.replace(opt_state=opt_state._replace(count=jnp.int32(count)))

    return reset

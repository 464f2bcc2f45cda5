"""Part e: training steps on active blocks only, against dense ones.

Perceptrons of three square kernels in bfloat16, with AdamW's moments and parameters in
float32, on 4,096 rows of random inputs; blocks of 64 and 128 at 80, 90 and 95 % zeros.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from benchmarks.gpu.arms import Arm, build, compare, steps_at_once
from benchmarks.gpu.part import Budget, Report
from examples.common.mlp import MLP
from reporting import harness

WIDTHS, ROWS = (4096, 2048), 4096
# Block and sparsity, most important first.
BLOCKS = ((128, 0.9), (64, 0.9), (128, 0.8), (128, 0.95), (64, 0.8), (64, 0.95))
DENSE = "dense"


def measure(report: Report, budget: Budget) -> None:
    """Measure the part."""
    widths, rows, blocks = WIDTHS, ROWS, BLOCKS
    if report.options.quick:
        widths, rows, blocks = (256,), 8, BLOCKS[:1]
    for number, width in enumerate(widths):
        part = Budget(budget.left / (len(widths) - number))
        try:
            _measure_width(report, width, rows, blocks, part)
        except Exception as error:
            report.error(f"width {width}", error)


def _measure_width(
    report: Report,
    width: int,
    rows: int,
    blocks: tuple[tuple[int, float], ...],
    budget: Budget,
) -> None:
    model = MLP(2, width, width, momentum=None, dtype=jnp.bfloat16)
    key = jax.random.key(0, impl="rbg")
    inputs = jax.random.normal(key, (rows, width), jnp.bfloat16)
    labels = jax.random.randint(key, (rows,), 0, width)
    init = jax.jit(functools.partial(model.init, train=True))
    params = init(key, inputs[:1])["params"]
    batch = inputs, labels
    makers = {DENSE: functools.partial(_dense, model, params, batch)} | {
        f"blocks of {block}, {sparsity:.0%} zeros": functools.partial(
            _compact, model, params, batch, block, sparsity
        )
        for block, sparsity in blocks
    }
    arms = build(report, makers.items(), Budget(0.75 * budget.left))
    if not arms or arms[0].name != DENSE:
        return
    title = f"a perceptron of width {width}, {rows} rows, bfloat16"
    bytes_of = [arm.row() for arm in arms]
    report.listing(f"{title}: bytes of a step", bytes_of, kind="bytes", width=width)
    steps = steps_at_once(report, arms[0])
    candidates = [harness.Candidate(a.name, a.block(steps), steps) for a in arms]
    compare(report, f"{title}: a step", candidates, budget, kind="step", width=width)


def _dense(model: MLP, params: Any, batch: tuple) -> Arm:
    copied = jax.tree.map(jnp.copy, params)
    return _arm(DENSE, optax.adamw(1e-3), model.apply, copied, batch)


def _compact(model: MLP, params: Any, batch: tuple, block: int, sparsity: float) -> Arm:
    topology = so.rigl(
        sparsity,
        every=100,
        stop=10**6,
        distribution={"*": sparsity},
        structure=so.Block((block, block)),
    )
    tx = so.sparsify(optax.adamw(1e-3), topology, host_updates=True)
    state = tx.init(params)
    sparse = so.apply_masks(params, state)
    sparse, state = so.compact_params(sparse, state)
    apply = so.sparse_apply(model.apply, by="block")
    name = f"blocks of {block}, {sparsity:.0%} zeros"
    arm = _arm(name, tx, apply, sparse, batch, state)
    arm.about |= {"block": block, "sparsity": sparsity}
    return arm


def _arm(
    name: str, tx: Any, apply: Any, params: Any, batch: tuple, state: Any = None
) -> Arm:
    def loss_fn(params, inputs, labels):
        logits = apply({"params": params}, inputs, train=True).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    def step(carry, inputs, labels):
        state, params = carry
        grads = jax.grad(loss_fn)(params, inputs, labels)
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    state = tx.init(params) if state is None else state
    about = {
        "kept_bytes": so.optimizer_bytes((state, params)),
        "block": 1,
        "sparsity": 0.0,
    }
    return Arm(name, step, (state, params), batch, about=about)

"""Part d: a training step of LLaMA-130M, time and memory.

Dense Adam against SMET, which stores moments of active weights only, in bfloat16 with
float32 parameters, on 32 rows of 512 random tokens. The topology is that of
``benchmarks.memory``; masks are updated from the host.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from benchmarks import memory
from benchmarks.gpu.arms import Arm, build, compare, steps_at_once
from benchmarks.gpu.part import Budget, Report
from examples.language_model.net import SIZES, LanguageModel, Size
from reporting import harness

BLOCK = 16
# Density and block, most important first.
ARMS = ((0.25, BLOCK), (0.1, BLOCK), (0.5, BLOCK), (0.25, 1))
DENSE = "Adam, dense"


def measure(report: Report, budget: Budget) -> None:
    """Measure the part."""
    model = LanguageModel(SIZES["130m"], 32_000, dtype=jnp.bfloat16)
    rows, length, arms = 32, 512, ARMS
    if report.options.quick:
        model = LanguageModel(Size(32, 64, 2, 1), 64, dtype=jnp.bfloat16)
        rows, length, arms = 2, 8, ARMS[:1]
    key = jax.random.key(0, impl="rbg")
    tokens = jax.random.randint(key, (rows, length + 1), 0, model.vocabulary)
    params = jax.jit(model.init)(key, tokens[:1, :-1])["params"]
    smet = next(entry for entry in memory.OPTIMIZERS if entry.name == "SMET")
    optimizers = {DENSE: optax.adam(1e-3)} | {
        f"SMET, density {density:g}, block {block}": smet.make(
            memory.topology(density, block), True
        )
        for density, block in arms
    }
    makers = {
        name: functools.partial(_arm, name, tx, model, params, tokens)
        for name, tx in optimizers.items()
    }
    updated = [*optimizers][1:3]
    makers |= {
        f"{name}, update": functools.partial(_update, name, optimizers[name], params)
        for name in updated
    }
    built = build(report, makers.items(), Budget(0.75 * budget.left))
    if not built or built[0].name != DENSE:
        return
    updates = [arm for arm in built if not arm.donates]
    built = [arm for arm in built if arm.donates]
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    title = f"LLaMA-130M, {weights:,} parameters, {rows} x {length} tokens, bfloat16"
    keys = {"batch": rows, "length": length, "weights": weights}
    found = [arm.row() for arm in built]
    report.listing(f"{title}: bytes of a step", found, kind="bytes", **keys)
    steps = steps_at_once(report, built[0])
    candidates = [harness.Candidate(a.name, a.block(steps), steps) for a in built]
    part = Budget(0.7 * budget.left)
    compare(report, f"{title}: a step", candidates, part, kind="step", **keys)
    candidates = candidates[:1]
    candidates += [harness.Candidate(arm.name, arm.block(1)) for arm in updates]
    title = f"{title}: an update from the host"
    compare(report, title, candidates, budget, kind="update", **keys)


def _arm(
    name: str, tx: Any, model: LanguageModel, params: Any, tokens: jax.Array
) -> Arm:
    def loss_fn(params, tokens):
        logits: Any = model.apply({"params": params}, tokens[:, :-1])
        targets = tokens[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(losses)

    def step(carry, tokens):
        state, params = carry
        updates, state = tx.update(jax.grad(loss_fn)(params, tokens), state, params)
        return state, optax.apply_updates(params, updates)

    state = tx.init(params)
    # A copy, because steps donate their inputs.
    carried = jax.tree.map(jnp.copy, params)
    if isinstance(state, so.SparseState):
        carried = so.apply_masks(carried, state)
    about = {"state_bytes": so.optimizer_bytes(state)}
    return Arm(name, step, (state, carried), (tokens,), about=about)


def _update(name: str, tx: Any, params: Any) -> Arm:
    """Return an update of the masks, which always starts from the same weights."""

    def update(carry, grads):
        return so.update_topology(tx, grads, *carry)

    state = tx.init(params)
    carry = state, so.apply_masks(params, state)
    return Arm(name, update, carry, (params,), donates=False)

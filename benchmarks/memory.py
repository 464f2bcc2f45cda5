"""Memory of optimizers that store active weights only, against dense Adam.

    python -m benchmarks.memory

On the parameters of a LLaMA-style model of 130 million parameters, with dense
embeddings, head and normalisations: bytes of the optimizer's state, and the memory of
the compiled step and of an update of the masks from the host, which are compiled but
not run. Steps take parameters, gradients and state, and return new parameters and state
in their place; updates take parameters and state.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from reporting import harness

DENSITIES = (0.5, 0.25, 0.1)
BLOCKS = (1, 16, 128)
WIDTH, HIDDEN, LAYERS, VOCABULARY = 768, 2048, 12, 32_000
# The density at which the update of the masks is also compiled into the step.
TOGETHER = 0.25

# Compilers for accelerators order a program so that it takes little memory. The one for
# CPU orders it for parallelism unless this option is set. Speed does not matter here.
FLAGS = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false "
    "--xla_backend_optimization_level=0"
)


def shapes(quick: bool) -> dict[str, Any]:
    """Return the parameters' shapes."""
    width, hidden, layers, vocabulary = (
        (128, 256, 1, 512) if quick else (WIDTH, HIDDEN, LAYERS, VOCABULARY)
    )

    def kernel(*shape: int) -> dict[str, Any]:
        return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def scale() -> dict[str, Any]:
        return {"scale": jax.ShapeDtypeStruct((width,), jnp.float32)}

    def layer() -> dict[str, Any]:
        attention = {name: kernel(width, width) for name in ("q", "k", "v", "out")}
        gates = {name: kernel(width, hidden) for name in ("gate", "up")}
        down = {"down": kernel(hidden, width)}
        return attention | gates | down | {"norm_0": scale(), "norm_1": scale()}

    embedding = jax.ShapeDtypeStruct((vocabulary, width), jnp.float32)
    return {
        "embed": {"embedding": embedding},
        **{f"layer_{number}": layer() for number in range(layers)},
        "norm": scale(),
        "head": kernel(width, vocabulary),
    }


def is_inside(path: str, leaf: Any) -> bool:
    """Tell whether a kernel belongs to a layer, not to the head."""
    del leaf
    return not path.startswith("head")


def topology(density: float, block: int) -> so.Topology:
    """Return SMET's topology, with every sparse leaf at the same density."""
    return so.set_smet(
        1 - density,
        block=block,
        stop=20_000,
        distribution={"*": 1 - density},
        where=is_inside,
    )


class Optimizer(NamedTuple):
    """An optimizer to compare.

    Attributes:
      name: its name in tables.
      make: builds it from a topology and whether the host updates the masks.
      limits: limits on its bytes for a sparse leaf, over density times dense Adam's, by
        block.
      changes: whether to compile updates of the masks, which are alike for all.
    """

    name: str
    make: Callable[..., optax.GradientTransformation]
    limits: Mapping[int, float]
    changes: bool


OPTIMIZERS = (
    Optimizer(
        "Adam, active weights",
        lambda topology, host_updates: so.sparsify(
            optax.adam(1e-3), topology, host_updates=host_updates, compact=True
        ),
        {1: 1.6, 128: 1.05},
        True,
    ),
    # Local steps are not part of what the limits cover.
    Optimizer(
        "SMET",
        lambda topology, host_updates: so.smet(
            1e-3, topology, host_updates=host_updates
        ),
        {},
        False,
    ),
)


def of_leaf(state: Any, name: str) -> int:
    """Count the bytes that a state holds for the parameter at a path."""
    found = jax.tree_util.tree_leaves_with_path(state)
    return sum(
        so.optimizer_bytes(leaf)
        for path, leaf in found
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith(name)
    )


def peak(function: Callable[..., Any], *args: Any, given: tuple[int, ...]) -> int:
    """Return the peak memory of a compiled function, including its arguments.

    The arguments in ``given`` are donated.
    """
    lowered = jax.jit(function, donate_argnums=given).lower(*args)
    analysis: Any = lowered.compile().memory_analysis()
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + new + analysis.temp_size_in_bytes


def step_peak(tx: optax.GradientTransformation, params: Any) -> int:
    """Return the peak memory of a step."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    return peak(step, params, state, params, given=(0, 1))


def change_peak(tx: optax.GradientTransformation, params: Any) -> int:
    """Return the peak memory of an update of the masks from the host."""

    def change(params, state, grads):
        return so.update_topology(tx, grads, state, params)

    state = jax.eval_shape(tx.init, params)
    return peak(change, params, state, params, given=(0, 1))


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    # Read when JAX first asks for its devices; as a compiler option it has no effect.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
    report = harness.Report("benchmarks.memory", options)
    params = shapes(options.quick)
    leaf = "layer_0/gate/kernel"
    weights = math.prod(params["layer_0"]["gate"]["kernel"].shape)
    adam = optax.adam(1e-3)
    dense_state = jax.eval_shape(adam.init, params)
    dense = {
        "state": so.optimizer_bytes(dense_state),
        "leaf": of_leaf(dense_state, leaf),
        "step": step_peak(adam, params),
    }
    rows, claims = [], []

    def measure(optimizer: Optimizer, density: float, block: int) -> None:
        moving = topology(density, block)
        tx = optimizer.make(moving, True)
        state = jax.eval_shape(tx.init, params)
        bytes_of_leaf = of_leaf(state, leaf)
        row = {
            "optimizer": optimizer.name,
            "density": density,
            "block": block,
            "state": so.optimizer_bytes(state),
            "leaf": bytes_of_leaf,
            "step": step_peak(tx, params),
            "change": None,
            "step_with_change": None,
        }
        if optimizer.changes:
            row["change"] = change_peak(tx, params)
            if density == TOGETHER:
                row["step_with_change"] = step_peak(
                    optimizer.make(moving, False), params
                )
        rows.append(row)
        print(f"  {optimizer.name}, {density}, {block}", flush=True)
        label = f"{optimizer.name}, density {density}, block {block}"
        ratio = bytes_of_leaf / (density * dense["leaf"])
        limit = optimizer.limits.get(block)
        claims.append((f"{label}: bytes / (density x Adam's)", ratio, limit))
        for what in ("step", "change", "step_with_change"):
            if row[what] is not None:
                limit = None if what == "step_with_change" else 1.0
                taken = row[what] / dense["step"]
                claims.append((f"{label}: {what} / dense step", taken, limit))

    densities, blocks = DENSITIES, BLOCKS
    if options.quick:
        densities, blocks = (TOGETHER,), (1, 128)
    for optimizer, density, block in itertools.product(OPTIMIZERS, densities, blocks):
        measure(optimizer, density, block)
    nothing = {"change": None, "step_with_change": None}
    first = {"optimizer": "Adam, dense", "density": 1.0, "block": 1, **dense, **nothing}
    report.listing(f"bytes; a sparse leaf of {weights:,} weights", [first, *rows])
    for what, measured, limit in claims:
        report.claim(what, measured, at_most=limit)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)

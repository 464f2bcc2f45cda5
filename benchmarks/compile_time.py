"""Start-up time of a program with masks: tracing and compiling.

    python -m benchmarks.compile_time

The optimizer's step inside ``sparsify`` is compared with the bare one, from shapes
alone, with updates of the masks in the step or from the host. The bare step is compiled
again next to every other one. Times are processor seconds of all threads together,
which other programs on the machine do not affect.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from benchmarks import steps
from examples.digits.config import Config
from examples.digits.model import ResNet
from examples.digits.training import train_step
from reporting import harness
from reporting.training import BATCH, IMAGE

EVERY: dict[str, Any] = {"every": 100, "stop": 75_000}
TOPOLOGIES: dict[str, Callable[..., so.Topology]] = {
    "SET": so.set_,
    "RigL": so.rigl,
    "SRigL": so.srigl,
    "GraNet": so.granet,
}
# The most that the step with updates may take, relative to the bare one.
LIMITS = {"SET": 3.0, "RigL": 3.0, "SRigL": 5.0, "GraNet": 5.0}
BARE = optax.sgd(0.1, momentum=0.9)

DIGITS = "first step on digits"

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def compiled(*programs: Program) -> dict[str, float]:
    """Trace and compile functions from shapes, without any cache."""
    found = {"trace_s": 0.0, "total_s": 0.0, "temporary_MiB": 0.0}
    for function, args in programs:
        jax.clear_caches()
        started = time.process_time()
        lowered = jax.jit(function).lower(*args)
        found["trace_s"] += time.process_time() - started
        memory = lowered.compile().memory_analysis()
        found["total_s"] += time.process_time() - started
        temporary = memory.temp_size_in_bytes / 2**20 if memory else 0.0
        found["temporary_MiB"] = max(found["temporary_MiB"], temporary)
    return found


def transformer_shapes(layers: int = 24, width: int = 1024) -> dict[str, Any]:
    """Return shapes of a transformer in Flax's layout: by default 0.3 billion."""
    heads = (width // 64, 64)
    norm = {"scale": (width,), "bias": (width,)}
    layer = {
        **{key: {"kernel": (width, *heads), "bias": heads} for key in "qkv"},
        "out": {"kernel": (*heads, width), "bias": (width,)},
        "mlp_in": {"kernel": (width, 4 * width), "bias": (4 * width,)},
        "mlp_out": {"kernel": (4 * width, width), "bias": (width,)},
        "norms": {"first": norm, "second": norm},
    }
    every = {f"layer_{i}": layer for i in range(layers)}
    return {"embed": {"embedding": (32_000, width)}, **every, "norm": norm}


def programs_of(tx: Any, shapes: Any, from_host: bool = False) -> list[Program]:
    """Return the step for parameters of these shapes, and the update from the host."""
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    args = params, jax.eval_shape(tx.init, params), params
    step = tx.update, args
    if not from_host:
        return [step]
    return [step, (lambda *args: so.update_topology(tx, *args), args)]


def training_step(tx: optax.GradientTransformation, model: ResNet) -> list[Program]:
    """Return the training step of the example on scanned digits."""
    images = jax.ShapeDtypeStruct((BATCH, *IMAGE.shape[1:]), IMAGE.dtype)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)

    def start(images):
        variables = model.init(jax.random.key(0), images, train=False)
        return so.linen.TrainState.create(apply_fn=model.apply, tx=tx, **variables)

    return [(train_step, (jax.eval_shape(start, images), images, labels))]


def compare(
    report: harness.Report, network: str, programs: dict[str, list[Program]]
) -> None:
    """Compile programs, the first one again next to each of the others."""
    (bare_name, bare), *others = programs.items()
    compiled(*bare)  # warms the compiler up
    rows = []
    for name, program in others:
        rounds = range(report.options.rounds_or(3))
        pairs = [(compiled(*program), compiled(*bare)) for _ in rounds]
        found = {
            key: statistics.median(x[key] for x, _ in pairs) for key in pairs[0][0]
        }
        ratios = [x["total_s"] / y["total_s"] for x, y in pairs]
        found["ratio"] = statistics.median(ratios)
        what = f"{network}: {name} / {bare_name}"
        report.claim(what, found["ratio"], at_most=LIMITS.get(name))
        rounded = {key: round(number, 2) for key, number in found.items()}
        rows.append({"program": name, **rounded})
    report.listing(f"{network}: tracing and compiling", rows, network=network)


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.compile_time", options)
    networks = {
        "ResNet-18": steps.resnet_shapes((2, 2, 2, 2), bottleneck=False),
        "ResNet-50": steps.resnet_shapes(),
        "transformer of 24 layers": transformer_shapes(),
    }
    model = ResNet(Config.width)
    if options.quick:
        networks, model = {"a layer": steps.TINY}, ResNet(4, strides=())
    for network, shapes in networks.items():
        static = so.sparsify(BARE, so.static(steps.SPARSITY))
        first = {"sgd": BARE, "static": static}
        programs = {name: programs_of(tx, shapes) for name, tx in first.items()}
        for name, method in TOPOLOGIES.items():
            topology = method(steps.SPARSITY, **EVERY)
            for label, from_host in ((name, False), (f"{name}, from the host", True)):
                tx = so.sparsify(BARE, topology, host_updates=from_host)
                programs[label] = programs_of(tx, shapes, from_host)
        compare(report, network, programs)
    rigl = so.sparsify(BARE, so.rigl(Config.sparsity, **EVERY))
    steps_of = {
        "dense": training_step(BARE, model),
        "with RigL": training_step(rigl, model),
    }
    compare(report, DIGITS, steps_of)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)

"""Communication and memory of an update of the masks over several devices.

    python -m benchmarks.collectives

The parameters of a small transformer are split over 1 to 8 devices along the outputs of
every kernel. One update of the masks, by this package and by the same method with a
sort of each array, is compiled; the programs are read, but not run.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import sparseopt_jax as so
from reporting import harness, hlo

SPARSITY = 0.9
DEVICES = (1, 2, 4, 8)
# A loop that determines two of 32 bits at a time.
PASSES = 16


def transformer_shapes(layers: int, width: int) -> dict[str, Any]:
    """Return shapes of the kernels of a decoder with gated feed-forward layers."""
    hidden = 8 * width // 3 // 64 * 64
    layer = {
        **{
            name: {"kernel": (width, width)}
            for name in ("query", "key", "value", "out")
        },
        **{name: {"kernel": (width, hidden)} for name in ("gate", "up")},
        "down": {"kernel": (hidden, width)},
    }
    return {f"layer_{i}": layer for i in range(layers)}


def make_mesh(devices: int) -> Mesh:
    """Return a mesh of the first devices; the compiler chooses all other shardings."""
    return jax.make_mesh(
        (devices,),
        ("model",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:devices],
    )


def change_by_argsort(params: Any, grads: Any, masks: Any) -> Any:
    """Update the masks as RigL is usually written: two sorts for each array."""

    def at_leaf(param, grad, mask):
        active = round((1 - SPARSITY) * param.size)
        dropped = math.floor(0.3 * active)

        def top(scores, k):
            order = jnp.argsort(scores.ravel(), descending=True)
            chosen = jnp.zeros(scores.size, bool).at[order[:k]].set(True)
            return chosen.reshape(scores.shape)

        kept = top(jnp.where(mask, jnp.abs(param), -jnp.inf), active - dropped)
        grown = top(jnp.where(kept, -jnp.inf, jnp.abs(grad)), dropped)
        return kept | grown

    return jax.tree.map(at_leaf, params, grads, masks)


def compile_change(method: str, shapes: Any, mesh: Mesh) -> jax.stages.Compiled:
    """Compile the program that updates the masks of sharded parameters."""
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    if method == "RigL by argsort":
        masks = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bool_, sharding=sharding),
            params,
        )
        change = jax.jit(
            change_by_argsort, out_shardings=jax.tree.map(lambda _: sharding, params)
        )
        return change.lower(params, params, masks).compile()

    make = {"RigL": so.rigl, "SET": so.set_}[method]
    spread = {"*": SPARSITY}
    topology = make(SPARSITY, every=100, stop=10**9, distribution=spread)
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), topology, host_updates=True)
    shardings = so.state_sharding(tx, params, sharding)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        jax.eval_shape(tx.init, params),
        shardings,
    )
    change = jax.jit(
        functools.partial(so.update_topology, tx),
        out_shardings=(shardings, jax.tree.map(lambda _: sharding, params)),
    )
    return change.lower(params, state, params).compile()


def describe(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Return an upper bound of bytes sent, and temporary memory, on one device."""
    found = hlo.collectives(compiled.as_text() or "", PASSES)
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend does not report memory"
    return {
        "summed_bytes": hlo.moved(found, hlo.SUMS),
        "moved_bytes": hlo.moved(found, hlo.MOVES),
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    report = harness.Report("benchmarks.collectives", options)
    shapes = transformer_shapes(1, 64) if options.quick else transformer_shapes(2, 512)
    leaves = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
    size = sum(map(math.prod, leaves))
    rows = []
    for devices in DEVICES:
        mesh = make_mesh(devices)
        for method in ("RigL", "SET", "RigL by argsort"):
            found = describe(compile_change(method, shapes, mesh))
            rows.append({"method": method, "devices": devices, **found})
    report.listing(f"a change in {size:,} weights of {len(leaves)} kernels", rows)
    for row in rows:
        if row["method"] != "RigL by argsort":
            what = f"{row['method']}, {row['devices']} devices: bytes of arrays moved"
            report.claim(what, row["moved_bytes"], at_most=0)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)

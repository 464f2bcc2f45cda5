"""Communication of an update between devices, read from the compiled program.

Needs eight devices: ``tests/distributed/test_devices.py`` provides them.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from benchmarks import collectives as benchmark
from reporting import hlo

SHAPE = (64, 128)
LAYOUTS = {
    "data_parallel": ((8,), ("data",), P()),
    "fsdp": ((8,), ("fsdp",), P("fsdp")),
    "tensor_parallel": ((8,), ("model",), P(None, "model")),
    "both": ((2, 4), ("fsdp", "model"), P("fsdp", "model")),
}
METHODS = {
    "static": so.static(0.9),
    "SET": so.set_(0.9, every=2, stop=9),
    "RigL": so.rigl(0.9, every=2, stop=9),
    "N:M": so.rigl(structure=so.NM(2, 4), every=2, stop=9),
    "blocks": so.rigl(0.9, structure=so.Block((4, 4)), every=2, stop=9),
    "constant fan-in": so.set_(0.9, structure=so.ConstantFanIn(), every=2, stop=9),
    "SRigL": so.srigl(0.9, every=2, stop=9),
    "SNFS": so.snfs(0.9, every=2, stop=9),
    "GraNet": so.granet(0.9, every=2, stop=8),
    "STE, N:M": so.sr_ste(),
    "Top-KAST": so.top_kast(0.9, trained_sparsity=0.8, every=2),
    "phases": so.phases((0, so.static(0.0)), (2, so.rigl(0.9, every=2, stop=9))),
}


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def kind(request):
    return request.param


def sgd(topology):
    return so.sparse_sgd(0.1, topology, momentum=0.9, sparseopt=True)


def compact_sgd(topology):
    inner = optax.chain(so.scale_by_sparseopt(), optax.sgd(0.1, momentum=0.9))
    return so.sparsify(inner, topology, compact=True)


def compiled_step(topology, layout, kind, make=sgd):
    """Compile the optimizer's step with SparseOpt, with everything sharded."""
    shape, names, spec = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    shardings = {
        "kernel": NamedSharding(mesh, spec),
        "bias": NamedSharding(mesh, P()),
    }
    params = {
        "kernel": jax.ShapeDtypeStruct(
            SHAPE, jnp.float32, sharding=shardings["kernel"]
        ),
        "bias": jax.ShapeDtypeStruct((128,), jnp.float32, sharding=shardings["bias"]),
    }
    tx = make(topology)
    state_shardings = so.state_sharding(tx, params, shardings)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        *(jax.eval_shape(tx.init, params), state_shardings),
    )

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        step = jax.jit(step, out_shardings=(shardings, state_shardings))
        return step.lower(params, state, params).compile()


ON_ALL_LAYOUTS = ("static", "SET", "RigL")


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        (method, layout)
        for method in METHODS
        for layout in LAYOUTS
        if method in ON_ALL_LAYOUTS or layout in ("fsdp", "both")
    ],
)
def test_a_step_moves_no_array(method, layout, kind):
    found = hlo.collectives(compiled_step(METHODS[method], layout, kind).as_text(), 16)
    assert hlo.moved(found, hlo.MOVES) == 0
    # Counts and SparseOpt's mean are scalars, fan-ins one number per output; choices
    # per neuron need a few more. The kernel has 64 weights per output.
    per_output = 8 if method in ("SRigL", "constant fan-in") else 1
    assert all(c.size <= 4 * (per_output * SHAPE[1] + 1) for c in found)
    if layout == "data_parallel":
        assert not found
    elif method != "static":
        assert found


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        ("constant fan-in", "data_parallel"),
        ("constant fan-in", "tensor_parallel"),
        ("N:M", "fsdp"),
        ("N:M", "both"),
    ],
)
def test_a_compact_step_moves_no_array(method, layout, kind):
    compiled = compiled_step(METHODS[method], layout, kind, compact_sgd)
    found = hlo.collectives(compiled.as_text(), 16)
    assert hlo.moved(found, hlo.MOVES) == 0
    assert all(c.size <= 4 * (8 * SHAPE[1] + 1) for c in found)


def test_the_formula_of_the_docs_is_an_upper_bound():
    mesh = benchmark.make_mesh(8)
    shapes = {"kernel": (64, 128)}
    compiled = benchmark.compile_change("RigL", shapes, mesh)
    found = benchmark.describe(compiled)
    # Two selections, each with two searches of at most 16 passes with three counts.
    assert 0 < found["summed_bytes"] <= 2 * 2 * 16 * 3 * 4 + 4 * SHAPE[1] + 64
    assert found["moved_bytes"] == 0


def test_a_sort_moves_the_arrays_whole():
    mesh = benchmark.make_mesh(8)
    compiled = benchmark.compile_change("RigL by argsort", {"kernel": SHAPE}, mesh)
    assert benchmark.describe(compiled)["moved_bytes"] >= 4 * 64 * 128

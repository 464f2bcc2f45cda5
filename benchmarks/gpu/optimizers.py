"""Part a: selection, updates of the masks, and the optimizer's step.

On the parameters of ResNet-50, 25.6 million, and of LLaMA-130M, 134 million with its
embedding and head. The step is AdamW's: bare, with masks by hand, and inside
``sparsify`` with updates in the compiled step or from the host. One by one, steps of a
millisecond wait for Python, which in training is hidden behind the network's
computation; so they are also timed with twenty steps in one program.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from benchmarks import memory, selection, steps
from benchmarks.gpu.arms import Arm, build, compare, steps_at_once
from benchmarks.gpu.part import Budget, Report
from benchmarks.method_changes import begin, change, change_by_sorting, masks_of
from reporting import harness
from sparseopt_jax.arrays.selection import top_k_mask
from sparseopt_jax.trees import paths

EVERY, STOP = 100, 10**9
TOGETHER = 20  # steps in one program
BARE, FROM_HOST = "AdamW alone", "RigL, from the host"
ADAMW = next(entry for entry in steps.OPTIMIZERS if entry.name == "adamw")
Shapes = Any


def measure(report: Report, budget: Budget) -> None:
    """Measure the part."""
    if report.options.quick:
        networks = {"tiny": _as_shapes(steps.TINY)}
    else:
        networks = {
            "ResNet-50": _as_shapes(steps.resnet_shapes()),
            "LLaMA-130M": memory.shapes(quick=False),
        }
    # The smaller network is the most telling; each stage takes a part of the time left.
    for network, shapes in networks.items():
        share = 0.6 if network != [*networks][-1] else 1.0
        whole = Budget(share * budget.left)
        for stage, part in ((time_steps, 0.5), (select, 0.4), (update, 1.0)):
            try:
                stage(report, network, shapes, Budget(part * whole.left))
            except Exception as error:
                report.error(f"{network}: {stage.__name__}", error)


def random_leaves(shapes: Shapes, seed: int) -> Any:
    """Draw normal numbers of scale 0.01 in float32, on the device as one array."""
    leaves, treedef = jax.tree.flatten(shapes)
    ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])

    @jax.jit
    def drawn(key: jax.Array) -> list[jax.Array]:
        flat = 0.01 * jax.random.normal(key, (int(ends[-1]),))
        parts = jnp.split(flat, ends[:-1])
        return [
            part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
        ]

    return jax.tree.unflatten(treedef, drawn(jax.random.key(seed, impl="rbg")))


def time_steps(report: Report, network: str, shapes: Shapes, budget: Budget) -> None:
    """Time steps without an update of the masks, and steps with one."""
    params, grads = random_leaves(shapes, 0), random_leaves(shapes, 1)
    compiling = Budget(0.7 * budget.left)
    built = build(report, _makers(params, grads).items(), compiling)
    if not built:
        return
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    title = f"AdamW on {network}, {size:,} parameters"
    key = {"network": network, "weights": size}
    host = [arm for arm in built if not arm.donates]
    training = [arm for arm in built if arm.donates]
    single = [arm for arm in training if not arm.about["together"]]
    several = [arm for arm in training if arm.about["together"]]
    for words, together in (("one by one", 1), (f"{TOGETHER} to a program", TOGETHER)):
        arms = single if together == 1 else several
        if not arms:
            continue
        count = steps_at_once(report, arms[0]) if together == 1 else 1
        candidates = [
            harness.Candidate(
                arm.about["name"], arm.block(count, _at(1)), count * together
            )
            for arm in arms
        ]
        half = Budget(0.4 * budget.left)
        compare(
            report,
            f"{title}: a step without an update, {words}",
            candidates,
            half,
            kind="step",
            together=together,
            **key,
        )
    report.listing(
        f"{title}: bytes of a step", [arm.row() for arm in single], kind="bytes", **key
    )
    due = [arm for arm in single if arm.about["moves"] and arm.name != FROM_HOST]
    candidates = [harness.Candidate(BARE, single[0].block(1))]
    candidates += [
        harness.Candidate(arm.about["name"], arm.block(1, _at(EVERY)))
        for arm in (*due, *host)
    ]
    compare(
        report,
        f"{title}: an update of the masks, with its step or from the host",
        candidates,
        budget,
        kind="update_step",
        **key,
    )


def _makers(params: Any, grads: Any) -> dict[str, Callable[[], Arm]]:
    """Return functions that build each step, most important first."""
    bare = ADAMW.bare

    def rigl(base: optax.GradientTransformation, **options: Any) -> Any:
        topology = so.rigl(steps.SPARSITY, every=EVERY, stop=STOP)
        return so.sparsify(base, topology, **options)

    inside = {
        "RigL": lambda: rigl(bare),
        FROM_HOST: lambda: rigl(bare, host_updates=True),
        "static": lambda: so.sparsify(bare, so.static(steps.SPARSITY)),
        "RigL + SparseOpt": lambda: rigl(ADAMW.corrected),
        "SET": lambda: so.sparsify(
            bare, so.set_(steps.SPARSITY, every=EVERY, stop=STOP)
        ),
    }

    def arm(name: str, together: bool) -> Arm:
        by_hand = name == steps.BY_HAND
        step = steps.step_by_hand if by_hand else steps.optimizer_step
        begin = steps.start_by_hand if by_hand else steps.start
        tx = inside[name]() if name in inside else bare
        step = functools.partial(step, tx)
        return Arm(
            f"{name}, {TOGETHER} to a program" if together else name,
            functools.partial(_repeated, step) if together else step,
            begin(tx, params),
            (grads,),
            about={
                "name": name,
                "together": together,
                "moves": name in inside and name != "static",
            },
        )

    def update_from_host() -> Arm:
        tx = inside[FROM_HOST]()
        update = functools.partial(steps.topology_step, tx)
        about = {"name": FROM_HOST}
        # Each starts from the same weights, because no step comes between them.
        carry = _at(EVERY)(steps.start(tx, params))
        return Arm(f"{FROM_HOST}, update", update, carry, (grads,), False, about)

    def makers(*names: str, together: bool = False) -> dict[str, Callable[[], Arm]]:
        words = f", {TOGETHER} to a program" * together
        return {f"{n}{words}": functools.partial(arm, n, together) for n in names}

    return {
        **makers(BARE, "RigL", FROM_HOST),
        f"{FROM_HOST}, update": update_from_host,
        **makers(BARE, "RigL", FROM_HOST, together=True),
        **makers("static", steps.BY_HAND, "RigL + SparseOpt", "SET"),
    }


def _repeated(step: Callable[..., Any], carry: Any, grads: Any) -> Any:
    return jax.lax.fori_loop(0, TOGETHER, lambda _, carry: step(carry, grads), carry)


def _at(count: int) -> Callable[[Any], Any]:
    """Return a function that sets a state's step, and so whether updates are due."""

    def reset(carry: Any) -> Any:
        state, params = carry
        if isinstance(state, so.SparseState):
            state = state._replace(count=jnp.int32(count))
        return state, params

    return reset


def select(report: Report, network: str, shapes: Shapes, budget: Budget) -> None:
    """Select a tenth of the scores in one array, by the library and by sorting."""
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    one = jax.ShapeDtypeStruct((size,), jnp.float32)
    scores = [jnp.abs(leaf) for leaf in jax.tree.leaves(random_leaves(one, 2))]
    ways = {"top_k_mask": top_k_mask}
    ways |= {name: way for name, (way, _) in selection.SORTS.items()}
    ready = {name: selection.over_leaves(way) for name, way in ways.items()}
    ready["one read, sum"] = jax.jit(lambda leaves: [jnp.sum(x) for x in leaves])
    candidates = [
        harness.Candidate(name, functools.partial(way, scores))
        for name, way in ready.items()
    ]
    title = f"{size:,} scores in one array"
    compare(report, title, candidates, budget, kind="selection", weights=size)
    # The threshold from a sort selects too many where scores are tied.
    expected = ready["top_k_mask"](scores)[0]
    rows = [
        {"name": name, "differing": int(jnp.sum(ready[name](scores)[0] != expected))}
        for name in selection.SORTS
    ]
    report.listing(f"{title}: differing", rows, kind="same_masks", weights=size)


def update(report: Report, network: str, shapes: Shapes, budget: Budget) -> None:
    """Time an update of all kernels, by the library and by ``argsort``."""
    kernels = {
        path.replace("/", "_"): jax.ShapeDtypeStruct(
            (math.prod(leaf.shape[:-1]), leaf.shape[-1]), jnp.float32
        )
        for path, leaf in paths.flatten_with_paths(shapes)
        if path.endswith("kernel")
    }
    params, grads = random_leaves(kernels, 0), random_leaves(kernels, 1)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    for label, make in (("RigL", so.rigl), ("SET", so.set_)):
        method: Any = make(steps.SPARSITY, every=EVERY, stop=1000)
        state, sparse = begin(method, params, grads, EVERY)
        ours = jax.jit(functools.partial(change, method))
        theirs = jax.jit(functools.partial(change_by_sorting, method, EVERY))
        candidates = [
            harness.Candidate(
                "topology.update", functools.partial(ours, state, sparse, grads)
            ),
            harness.Candidate(
                "argsort", functools.partial(theirs, state, sparse, grads), every=2
            ),
        ]
        title = f"{label}: an update of {weights:,} weights of {network}'s kernels"
        share = Budget((0.6 if label == "RigL" else 1.0) * budget.left)
        key = {"network": network, "weights": weights, "method": label}
        timings = compare(report, title, candidates, share, kind="update", **key)
        if len(timings) == len(candidates):
            pairs = zip(
                jax.tree.leaves(masks_of(ours(state, sparse, grads))),
                jax.tree.leaves(theirs(state, sparse, grads)),
                strict=True,
            )
            differing = sum(int(jnp.sum(mask != other)) for mask, other in pairs)
            report.claim(
                f"{title}: weights in which both differ", differing, at_most=0, **key
            )
        if budget.left < 0:
            return


def _as_shapes(shapes: Any) -> Shapes:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )

"""The short trainings that are recorded: every method, storage and way to update."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

import sparseopt_jax as so

STEPS = 30
# The masks are updated at steps 2, 7, 12, 17 and 22.
EVERY: dict[str, Any] = {"every": 5, "start": 2, "stop": 24}
SCHEDULE: dict[str, Any] = {**EVERY, "drop_fraction": 0.4}

# Two kernels of one shape, two of others, a stack of two kernels.
SHAPES = {
    "conv": {"kernel": (3, 3, 4, 8), "bias": (8,)},
    "first": {"kernel": (8, 12)},
    "second": {"kernel": (8, 12)},
    "norm": {"scale": (8,)},
    "stack": {"kernel": (2, 8, 4)},
}
DIMS = {"stack/kernel": so.NeuronDims(reduction_axis=1, output_axis=2)}
BATCH_STATS = {"norm": {"mean": np.zeros(8), "var": np.arange(1.0, 9.0)}}


def random_tree(seed: int, scale: float) -> Any:
    """Return a tree of float32 arrays between ``-scale`` and ``scale``."""
    rng = np.random.default_rng(seed)

    def at_leaf(shape):
        return (scale * (2 * rng.random(shape) - 1)).astype(np.float32)

    return jax.tree.map(at_leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def momentum() -> optax.GradientTransformation:
    return optax.sgd(0.1, momentum=0.9)


def adamw() -> optax.GradientTransformation:
    return optax.adamw(0.01, weight_decay=0.1)


def corrected() -> optax.GradientTransformation:
    return optax.chain(so.scale_by_sparseopt(dims=DIMS), optax.sgd(0.1))


def batch_corrected() -> optax.GradientTransformation:
    links = {"conv/kernel": "norm"}
    return optax.chain(so.scale_by_batch_variance(links, dims=DIMS), momentum())


@dataclasses.dataclass(frozen=True)
class Method:
    """A topology, and the trainings that record it.

    Attributes:
      topology: builds it.
      inner: builds the optimizer inside ``sparsify``.
      updates: whether the host updates the masks ``"before"`` or ``"after"`` the step;
        None if there is nothing to update.
      storages: how masks are stored.
      stays_dense: whether masks apply only in the forward pass.
    """

    topology: Callable[[], Any]
    inner: Callable[[], optax.GradientTransformation] = momentum
    updates: str | None = "after"
    storages: tuple[str, ...] = ("plain", "packed")
    stays_dense: bool = False


COMPACT = ("plain", "packed", "compact")

METHODS: dict[str, Method] = {
    "static": Method(
        lambda: so.static(0.6, dims=DIMS), corrected, updates=None, storages=COMPACT
    ),
    "static_uniform_block": Method(
        lambda: so.static(
            0.5, distribution="uniform", structure=so.Block((2, 2)), dims=DIMS
        ),
        updates=None,
        storages=COMPACT,
    ),
    "set": Method(lambda: so.set_(0.6, dims=DIMS, **SCHEDULE), adamw, storages=COMPACT),
    "set_explored": Method(
        lambda: so.set_(
            0.6,
            dims=DIMS,
            track_explored=True,
            min_fan_in=2,
            decay="linear",
            **SCHEDULE,
        ),
        corrected,
    ),
    "set_constant_fan_in": Method(
        lambda: so.set_(0.5, structure=so.ConstantFanIn(), dims=DIMS, **SCHEDULE),
        storages=COMPACT,
    ),
    "set_channel": Method(
        lambda: so.set_(0.5, structure=so.Channel(), dims=DIMS, **SCHEDULE)
    ),
    "rigl": Method(
        lambda: so.rigl(0.6, dims=DIMS, **SCHEDULE),
        updates="before",
        storages=COMPACT,
    ),
    "rigl_adamw": Method(
        lambda: so.rigl(0.6, dims=DIMS, **SCHEDULE), adamw, updates="before"
    ),
    "rigl_averaged": Method(
        lambda: so.rigl(
            0.6, dims=DIMS, averaged_steps=3, corrected_growth=True, **SCHEDULE
        ),
        corrected,
        updates="before",
    ),
    "rigl_n_of_m": Method(
        lambda: so.rigl(structure=so.NM(2, 4), dims=DIMS, **SCHEDULE),
        corrected,
        updates="before",
        storages=COMPACT,
    ),
    "rigl_block": Method(
        lambda: so.rigl(0.5, structure=so.Block((2, 2)), dims=DIMS, **SCHEDULE),
        adamw,
        updates="before",
        storages=COMPACT,
    ),
    "rigl_constant_fan_in": Method(
        lambda: so.rigl(0.5, structure=so.ConstantFanIn(), dims=DIMS, **SCHEDULE),
        updates="before",
    ),
    "set_itop": Method(
        lambda: so.set_itop(0.6, every=5, stop=24, dims=DIMS), storages=COMPACT
    ),
    "rigl_itop": Method(
        lambda: so.rigl_itop(0.6, every=5, stop=24, dims=DIMS),
        updates="before",
        storages=COMPACT,
    ),
    "mest": Method(lambda: so.mest(0.6, dims=DIMS, **SCHEDULE), storages=COMPACT),
    "snfs": Method(lambda: so.snfs(0.6, dims=DIMS, **SCHEDULE)),
    "srigl": Method(
        lambda: so.srigl(0.6, dims=DIMS, **SCHEDULE), corrected, updates="before"
    ),
    "set_smet": Method(
        lambda: so.set_smet(0.6, every=5, stop=24, dims=DIMS), adamw, storages=COMPACT
    ),
    "granet": Method(
        lambda: so.granet(0.7, initial_sparsity=0.3, dims=DIMS, **SCHEDULE),
        updates="before",
    ),
    "gradual_magnitude": Method(
        lambda: so.gradual_magnitude(0.7, initial_sparsity=0.2, dims=DIMS, **EVERY),
        adamw,
    ),
    "gradual_magnitude_global": Method(
        lambda: so.gradual_magnitude(0.7, scope="global", dims=DIMS, **EVERY)
    ),
    "ac_dc": Method(
        lambda: so.ac_dc(0.7, compress=(4, 14, 24), decompress=(9, 19), dims=DIMS)
    ),
    "one_shot": Method(lambda: so.one_shot(0.6, at=7, dims=DIMS), corrected),
    "one_shot_saliency_global": Method(
        lambda: so.one_shot(0.6, at=12, score="saliency", scope="global", dims=DIMS)
    ),
    "ste": Method(lambda: so.ste(0.6, every=5, start=2, dims=DIMS), stays_dense=True),
    "ste_every_step": Method(
        lambda: so.ste(structure=so.NM(2, 4), dims=DIMS), adamw, stays_dense=True
    ),
    "sr_ste": Method(
        lambda: so.sr_ste(0.6, every=5, dims=DIMS), adamw, stays_dense=True
    ),
    "top_kast": Method(
        lambda: so.top_kast(0.7, trained_sparsity=0.4, every=5, dims=DIMS),
        stays_dense=True,
    ),
    "two_phases": Method(
        lambda: so.phases(
            (0, so.rigl(0.6, dims=DIMS, **SCHEDULE)),
            (14, so.static(masks=so.PREVIOUS_MASKS, dims=DIMS)),
        ),
        updates="before",
    ),
    "three_phases": Method(
        lambda: so.phases(
            (0, so.static(0.3, dims=DIMS)),
            (6, so.gradual_magnitude(0.7, every=5, start=7, stop=15, dims=DIMS)),
            (18, so.set_(masks=so.PREVIOUS_MASKS, every=3, stop=29, dims=DIMS)),
        ),
        corrected,
    ),
    "mixed_phases": Method(
        lambda: so.phases(
            (0, so.set_(0.5, dims=DIMS, **SCHEDULE)),
            (12, so.rigl(0.7, every=5, stop=28, dims=DIMS)),
        ),
        updates=None,
    ),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One training.

    Attributes:
      make: builds the transformation, and the topology if the host updates.
      updates: as in ``Method``; None if the graph updates the masks.
      stays_dense: as in ``Method``.
      apply_updates: adds updates to parameters.
    """

    make: Callable[[], tuple[optax.GradientTransformation, Any]]
    updates: str | None = None
    stays_dense: bool = False
    apply_updates: Callable[..., Any] = lambda params, updates, state: (
        optax.apply_updates(params, updates)
    )


def _sparsified(method: Method, storage: str, *, host_updates: bool) -> Variant:
    def make():
        topology = method.topology()
        options = {} if storage == "plain" else {storage: True}
        tx = so.sparsify(
            method.inner(), topology, key=3, host_updates=host_updates, **options
        )
        return tx, topology

    updates = method.updates if host_updates else None
    return Variant(make, updates, method.stays_dense)


def _whole(make: Callable[[], Any], **options: Any) -> Variant:
    return Variant(lambda: (make(), None), **options)


def _set() -> so.Topology:
    return so.set_(0.6, dims=DIMS, **SCHEDULE)


def _rigl() -> so.Topology:
    return so.rigl(0.6, dims=DIMS, **SCHEDULE)


def _set_blocks() -> so.Topology:
    return so.set_smet(0.5, block=4, every=5, stop=24, dims=DIMS)


# Transformations other than a topology within `sparsify`.
OTHERS: dict[str, Variant] = {
    "sparseopt/rigl": _whole(
        lambda: optax.chain(so.sparseopt(_rigl(), dims=DIMS), momentum()),
        apply_updates=so.apply_updates,
    ),
    "sparseopt/set": _whole(
        lambda: optax.chain(so.sparseopt(_set(), dims=DIMS), momentum()),
        apply_updates=so.apply_updates,
    ),
    "smet/compact": _whole(lambda: so.smet(0.01, _set_blocks(), warmup_steps=4)),
    "smet/plain": _whole(lambda: so.smet(0.01, _set(), compact=False)),
    "smet/host": Variant(
        lambda: (
            so.smet(
                0.01, topology := _set_blocks(), weight_decay=0.1, host_updates=True
            ),
            topology,
        ),
        "after",
    ),
    "sparse_sgd": _whole(
        lambda: so.sparse_sgd(
            0.1, _rigl(), momentum=0.9, nesterov=True, weight_decay=0.1, sparseopt=True
        )
    ),
    "sparse_adamw": _whole(lambda: so.sparse_adamw(0.01, _set(), sparseopt=True)),
    "sparse_lars": _whole(lambda: so.sparse_lars(1.0, _set(), weight_decay=0.1)),
    "sparse_lamb": _whole(lambda: so.sparse_lamb(0.01, _rigl(), weight_decay=0.1)),
    "batch_variance": _whole(lambda: so.sparsify(batch_corrected(), _rigl())),
    "ham": _whole(lambda: so.sparsify(so.ham(momentum(), 0.1, alpha=2.0), _rigl())),
    "sign_in": _whole(lambda: so.sparsify(so.sign_in(momentum(), every=5), _set())),
}


def _variants() -> Iterator[tuple[str, Variant]]:
    for name, method in METHODS.items():
        for storage in method.storages:
            yield (
                f"{name}/{storage}/graph",
                _sparsified(method, storage, host_updates=False),
            )
            if method.updates is not None:
                yield (
                    f"{name}/{storage}/host",
                    _sparsified(method, storage, host_updates=True),
                )
    yield from OTHERS.items()


VARIANTS: dict[str, Variant] = dict(_variants())


@dataclasses.dataclass(frozen=True)
class Moment:
    """A training after one of its steps: trees of NumPy arrays."""

    masks: Any
    updates: Any
    params: Any
    state: Any


def train(variant: Variant) -> Iterator[Moment]:
    """Yield the training of a variant after each of its steps."""
    tx, topology = variant.make()
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def step(grads, params, state):
        updates, state = tx.update(grads, state, params, batch_stats=BATCH_STATS)
        return updates, variant.apply_updates(params, updates, state), state

    @jax.jit
    def update_masks(grads, params, state):
        state, params = so.update_topology(tx, grads, state, params)
        return params, state

    params = random_tree(0, 1.0)
    masks_of = jax.jit(so.get_masks)
    state = tx.init(params)
    if not variant.stays_dense:
        params = jax.device_get(so.apply_masks(params, state))
    for count in range(STEPS):
        grads = random_tree(100 + count, 0.5)
        due = variant.updates is not None and bool(topology.due(count))
        if due and variant.updates == "before":
            params, state = update_masks(grads, params, state)
        updates, params, state = step(grads, params, state)
        if due and variant.updates == "after":
            params, state = update_masks(grads, params, state)
        yield Moment(*jax.device_get((masks_of(state), updates, params, state)))

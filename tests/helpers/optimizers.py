"""The table that all contract tests run over, and the training they watch.

Add a ``Row`` here for each new transformation of the package.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from sparseopt_jax.masks.state import is_sparse_state, stays_dense

STEPS = 8

# Two kernels of distinct shapes; no other leaf has the shape of either.
SHAPES = {
    "conv": {"kernel": (3, 3, 2, 8), "bias": (8,)},
    "dense": {"kernel": (6, 8), "bias": (8,)},
    "norm": {"scale": (8,)},
}
KERNELS = ("conv", "dense")
BATCH_STATS = {"norm": {"mean": jnp.zeros(8), "var": jnp.arange(1.0, 9.0)}}


def tree_of_shapes(dtype: Any = jnp.float32) -> Any:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def random_tree(seed: int, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        tree_of_shapes(dtype),
    )


def gradients(step: int) -> Any:
    return random_tree(100 + step)


# Updates at steps 2 and 5 of a run. Half of the weights are active and up to half of
# those are dropped, so some dropped weights are grown back at once.
SCHEDULE = {"every": 3, "start": 2, "stop": 9, "drop_fraction": 0.5}


def rigl(**options: Any) -> so.Topology:
    return so.rigl(0.5, **SCHEDULE, **options)


def set_(**options: Any) -> so.Topology:
    return so.set_(0.5, **SCHEDULE, **options)


def static() -> so.Topology:
    return so.static(0.5)


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _kernel_labels(params: Any) -> Any:
    return jax.tree.map(lambda p: "kernel" if p.ndim > 1 else "other", params)


_NEED_VALUES = {"inject_hyperparams", "prodigy", "schedule_free"}

# Optimizers inside sparsify. Learning rates are such that every weight moves visibly
# within a run, and stays finite.
INNER: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.01),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
    "lion": lambda: optax.lion(0.01),
    "rmsprop": lambda: optax.rmsprop(0.01, centered=True, momentum=0.9),
    "adagrad": lambda: optax.adagrad(0.1),
    "adafactor": lambda: optax.adafactor(0.1),
    "adafactor_factored": lambda: optax.adafactor(
        0.1, min_dim_size_to_factor=2, momentum=0.9
    ),
    "amsgrad": lambda: optax.amsgrad(0.01),
    "novograd": lambda: optax.novograd(0.01, weight_decay=0.1),
    "adan": lambda: optax.adan(0.01),
    "adabelief": lambda: optax.adabelief(0.01),
    "yogi": lambda: optax.yogi(0.01),
    "radam": lambda: optax.radam(0.01),
    "lamb": lambda: optax.lamb(0.01, weight_decay=0.1),
    "lars": lambda: optax.lars(0.1, weight_decay=0.1),
    "muon": lambda: optax.contrib.muon(0.01),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "prodigy": lambda: optax.contrib.prodigy(1.0, estim_lr0=0.01),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.clip(0.1), optax.adam(0.01)
    ),
    "masked_decay": lambda: optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), _is_kernel), optax.sgd(0.1)
    ),
    "partition": lambda: optax.partition(
        {"kernel": optax.sgd(0.1, momentum=0.9), "other": optax.adam(0.01)},
        _kernel_labels,
    ),
    "ham": lambda: so.ham(optax.sgd(0.1, momentum=0.9), 0.1, alpha=2.0),
    "sign_in": lambda: so.sign_in(optax.sgd(0.1, momentum=0.9), every=3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.linear_schedule(0.01, 0.0, 100)
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One transformation.

    Attributes:
      id: its name in a report.
      make: builds it.
      topology: its topology.
      needs: what it requires beyond ``update`` and ``optax.apply_updates``:
        ``"batch_stats"``, ``"so.apply_updates"``, ``"so.update_topology"``; or the
        ``"values"`` of the parameters at ``init``, if shapes alone are not enough.
    """

    id: str
    make: Callable[[], optax.GradientTransformation]
    topology: Any
    needs: frozenset[str] = frozenset()

    @property
    def prunes(self) -> bool:
        """Tell whether its density decreases, so that it grows nothing."""
        return getattr(self.topology, "density", None) is not None

    @property
    def stays_dense(self) -> bool:
        """Tell whether masks apply only in the forward pass."""
        return self.topology.stays_dense

    @property
    def starts_fresh(self) -> bool:
        """Tell whether grown weights start with the optimizer's initial state."""
        owns_grown = not (
            self.prunes or self.stays_dense or "so.apply_updates" in self.needs
        )
        return owns_grown and self.topology.moves


def _row(id: str, topology: Any, make: Callable, *needs: str) -> Row:
    return Row(id, lambda: make(topology), topology, frozenset(needs))


def _around(inner: Callable[[], optax.GradientTransformation], **options: Any):
    return lambda topology: so.sparsify(inner(), topology, **options)


_momentum = INNER["momentum"]

PACKAGE = [
    _row("sparsify_static", static(), _around(_momentum)),
    _row("sparsify_set", set_(), _around(_momentum)),
    _row("sparsify_rigl", rigl(track_explored=True), _around(_momentum)),
    _row("sparsify_set_packed", set_(), _around(_momentum, packed=True)),
    _row(
        "sparsify_rigl_packed",
        rigl(track_explored=True),
        _around(_momentum, packed=True),
    ),
    _row(
        "sparsify_set_host",
        set_(),
        _around(_momentum, host_updates=True),
        "so.update_topology",
    ),
    _row(
        "sparsify_rigl_host",
        rigl(),
        _around(_momentum, host_updates=True),
        "so.update_topology",
    ),
    _row("sparsify_set_compact", set_(), _around(_momentum, compact=True)),
    _row("sparsify_rigl_compact", rigl(), _around(_momentum, compact=True)),
    _row(
        "scale_by_sparseopt",
        rigl(),
        _around(lambda: optax.chain(so.scale_by_sparseopt(), _momentum())),
    ),
    _row(
        "scale_by_batch_variance",
        rigl(),
        _around(
            lambda: optax.chain(
                so.scale_by_batch_variance({"conv/kernel": "norm"}), _momentum()
            )
        ),
        "batch_stats",
    ),
    _row(
        "sparseopt_chain",
        rigl(),
        lambda topology: optax.chain(so.sparseopt(topology), _momentum()),
        "so.apply_updates",
    ),
    _row(
        "sparse_sgd",
        rigl(),
        lambda topology: so.sparse_sgd(
            0.1, topology, momentum=0.9, weight_decay=0.1, sparseopt=True
        ),
    ),
    _row(
        "sparse_adamw",
        set_(),
        lambda topology: so.sparse_adamw(
            0.01, topology, weight_decay=0.1, sparseopt=True
        ),
    ),
    _row(
        "sparse_lars",
        set_(),
        lambda topology: so.sparse_lars(
            10.0, topology, weight_decay=0.1, sparseopt=True
        ),
    ),
    _row(
        "sparse_lamb",
        rigl(),
        lambda topology: so.sparse_lamb(
            0.01, topology, weight_decay=0.1, sparseopt=True
        ),
    ),
]

# Updates at 2 and 5, like the others; pruning starts with that at 2.
_PRUNING = {"every": 3, "start": 2, "stop": 6, "initial_sparsity": 0.25}

METHODS = [
    _row(
        "rigl_2_of_4",
        # Groups run along the neurons: the kernels do not have four inputs.
        so.rigl(structure=so.NM(2, 4, axis=-1), **SCHEDULE),
        _around(_momentum),
    ),
    _row(
        "srigl",
        so.srigl(0.5, distribution={"*": 0.5}, **SCHEDULE),
        _around(_momentum),
    ),
    _row("snfs", so.snfs(0.5, **SCHEDULE), _around(_momentum)),
    _row(
        "gradual_magnitude",
        so.gradual_magnitude(0.5, **_PRUNING),
        _around(_momentum),
    ),
    _row(
        "phases",
        so.phases(
            (0, so.static(0.25)), (2, rigl()), (6, so.static(masks=so.PREVIOUS_MASKS))
        ),
        _around(_momentum),
    ),
    _row("ste", so.ste(0.5), _around(_momentum)),
]

AROUND = [
    _row(
        "around_multi_steps",
        rigl(),
        lambda topology: optax.MultiSteps(
            so.sparsify(_momentum(), topology), every_k_schedule=2
        ).gradient_transformation(),
    ),
    _row(
        "around_apply_if_finite",
        rigl(),
        lambda topology: optax.apply_if_finite(so.sparsify(_momentum(), topology), 3),
    ),
    _row(
        "around_masked",
        rigl(),
        lambda topology: optax.masked(so.sparsify(_momentum(), topology), _is_kernel),
    ),
    _row(
        "around_partition",
        rigl(),
        lambda topology: optax.partition(
            {"kernel": so.sparsify(_momentum(), topology), "other": optax.adam(0.01)},
            _kernel_labels,
        ),
    ),
    _row(
        "around_inject_hyperparams",
        rigl(),
        lambda topology: optax.inject_hyperparams(
            so.sparse_sgd, static_args=("topology", "key")
        )(optax.linear_schedule(0.1, 0.0, 100), topology, momentum=0.9),
        "values",
    ),
]

ROWS = [
    *PACKAGE,
    *METHODS,
    *(
        _row(id, rigl(), _around(make), *(["values"] if id in _NEED_VALUES else []))
        for id, make in INNER.items()
    ),
    *AROUND,
]

INNER_WITH_SET = [
    dataclasses.replace(row, id=f"{row.id}_with_set", topology=set_(), make=make)
    for row in ROWS
    if row.id in INNER
    for make in [functools.partial(_around(INNER[row.id]), set_())]
]


class Moment(NamedTuple):
    """A run after one of its steps."""

    params: Any
    state: Any

    @property
    def sparse(self) -> so.SparseState:
        (state,) = sparse_states(self.state)
        return state

    @property
    def changed_at(self) -> int:
        """Return the step of the last update; -1 if there has been none."""
        topology_state = self.sparse.topology_state
        return int(topology_state.updated_at) if topology_state else -1

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Return the masks by the names of their layers."""
        return {
            name: np.asarray(layer["kernel"])
            for name, layer in so.get_masks(self.state).items()
            if name in KERNELS and layer != optax.MaskedNode()
        }

    def kernel(self, name: str) -> np.ndarray:
        return np.asarray(self.params[name]["kernel"])


class Run(NamedTuple):
    """A training of ``STEPS`` steps: the start, and the moment after each step."""

    moments: list[Moment]
    traces: int


def sparse_states(state: Any) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=is_sparse_state)
    return [x for x in leaves if is_sparse_state(x)]


def start(tx: optax.GradientTransformation, params: Any) -> Moment:
    state = tx.init(params)
    if stays_dense(state):
        return Moment(params, state)
    return Moment(so.apply_masks(params, state), state)


def one_step(
    tx: optax.GradientTransformation, apply_updates: Callable | None = None
) -> Callable[..., Moment]:
    """Return a training step as a user would write it."""
    tx = optax.with_extra_args_support(tx)

    def step(grads, params, state):
        updates, state = tx.update(
            grads, state, params, batch_stats=BATCH_STATS, unknown=jnp.ones(())
        )
        if apply_updates is not None:
            return Moment(apply_updates(params, updates, state), state)
        return Moment(optax.apply_updates(params, updates), state)

    return step


def train(
    row: Row,
    compiled: Callable = jax.jit,
    steps: int = STEPS,
    part: Callable = lambda tree: tree,
    begun: tuple[int, Moment] | None = None,
) -> Run:
    """Train ``part`` of the parameters, from the start or from the moment of a step."""
    tx = row.make()
    apply_updates = so.apply_updates if "so.apply_updates" in row.needs else None
    traces = []

    @compiled
    def step(*args):
        traces.append(args)
        return one_step(tx, apply_updates)(*args)

    @compiled
    def change(grads, params, state):
        state, params = so.update_topology(tx, grads, state, params)
        return Moment(params, state)

    first, moment = begun or (0, start(tx, part(random_tree(0))))
    moments = [moment]
    for count in range(first, steps):
        now, grads = moments[-1], part(gradients(count))
        due = "so.update_topology" in row.needs and row.topology.due(count)
        if due and row.topology.replaces_step:
            now = change(grads, *now)
        now = step(grads, *now)
        if due and not row.topology.replaces_step:
            now = change(grads, *now)
        moments.append(now)
    return Run(moments, len(traces))

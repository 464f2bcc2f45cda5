"""Masks of the forward pass alone: the weights behind them stay dense and are trained.

The forward pass uses ``apply_masks(params, opt_state)``, outside of what is
differentiated: the gradient of those masked weights goes straight through to the dense
ones.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparseopt_jax.arguments.checks import number
from sparseopt_jax.arguments.method_options import check_options
from sparseopt_jax.arrays.conditions import if_due
from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.engine.inner_state import has_caches, initial_state, without_caches
from sparseopt_jax.engine.transformations import checked_inner
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.plans import LeafPlan
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.lost_masks import check_not_lost
from sparseopt_jax.masks.owners import check_update, record_owner
from sparseopt_jax.masks.state import ForwardMaskState, map_masked
from sparseopt_jax.masks.stored_masks import stored, unpacked, whole
from sparseopt_jax.topologies.methods.static import static
from sparseopt_jax.topologies.phases import Phases
from sparseopt_jax.topologies.schedules import FOREVER, UpdateSchedule, told_updates
from sparseopt_jax.topologies.topology import Topology, TopologyState
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.prng_keys import store_key, typed_key


@dataclasses.dataclass(frozen=True, kw_only=True)
class StraightThrough:
    """Masks chosen by magnitude from dense weights. Build it with ``ste``, ``sr_ste``
    or ``top_kast``.

    Attributes:
      topology: how many weights of each layer the forward pass uses, and in what
        structure.
      schedule: the steps after which masks are chosen anew.
      decay: added to the gradient of an inactive weight for each of its size (SR-STE).
      trained: how many weights of each layer are trained; None for all (Top-KAST).
      penalty: added to the gradient of a weight for each of its size, for weights that
        are trained and not used times ``1 / density`` (Top-KAST).
    """

    topology: Topology
    schedule: UpdateSchedule
    decay: float = 0.0
    trained: Topology | None = None
    penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("decay", "penalty"):
            number(name, getattr(self, name), 0)

    @property
    def name(self) -> str:
        """What it is called in tables and checkpoints."""
        return self.topology.name

    @property
    def dims(self) -> Dims:
        """The axes of kernels."""
        return self.topology.dims

    @property
    def moves(self) -> bool:
        """True: masks follow the weights."""
        return True

    @property
    def updates(self) -> str:
        """How often masks are chosen anew: as ``Topology.updates``."""
        return told_updates(self.schedule)

    @property
    def replaces_step(self) -> bool:
        """False: masks are chosen after a step."""
        return False

    @property
    def keeps_counts(self) -> bool:
        """True: a layer has as many active weights at any time."""
        return True

    @property
    def dense_gradients(self) -> float:
        """As ``Topology.dense_gradients``: 1, unless only some weights are trained."""
        if self.trained is None:
            return 1.0
        used, trained = self.topology.sparsity, self.trained.sparsity
        return (used - trained) / used if used else 1.0  # pyright: ignore

    def leaves(self, params: Any) -> list[LeafPlan]:
        """What becomes of each leaf: as ``Topology.leaves``."""
        return self.topology.leaves(params)

    def due(self, count: Any) -> Any:
        """Whether masks are chosen anew after step ``count``: as ``Topology.due``."""
        return self.schedule.due(count)

    def init(self, key: jax.Array, params: Any) -> tuple[Any, Any, TopologyState]:
        """The first masks, those of the trained weights, and what is kept besides.

        Masks are chosen by magnitude where ``params`` holds arrays, at random where it
        holds shapes only.
        """
        masks, state = self.topology.init(key, params)
        trained = () if self.trained is None else self.trained.init(key, params)[0]
        leaves = jax.tree.leaves(params)
        if leaves and all(isinstance(x, jax.Array | np.ndarray) for x in leaves):
            masks, trained = self.choose(params)
            state = state._replace(fan_ins=self.topology.fan_ins(masks))
        return masks, trained, state

    def choose(self, params: Any) -> tuple[Any, Any]:
        """Masks of the largest weights: those used, and those trained."""
        masks = _largest(self.topology, params)
        return masks, () if self.trained is None else _largest(self.trained, params)

    def refreshed(
        self, state: ForwardMaskState, count: Any, params: Any, packed: bool
    ) -> ForwardMaskState:
        """The state with masks of the largest of these weights, of step ``count``."""
        masks, trained = self.choose(params)
        old = unpacked(state.masks, params)
        topology_state = state.topology_state._replace(
            updated_at=jnp.asarray(count, jnp.int32),
            fan_ins=self.topology.fan_ins(masks),
            grown=map_masked(lambda new, old: count_true(new & ~old), masks, old),
        )
        masks, trained = stored(packed, (masks, trained))
        return state._replace(
            masks=masks, trained_masks=trained, topology_state=topology_state
        )

    def gradient(self, masks: Any, trained: Any, params: Any, grads: Any) -> Any:
        """What the dense weights are trained by, from the forward pass's gradient."""
        if self.decay:
            grads = map_masked(
                lambda m, g, p: g + (self.decay * jnp.where(m, 0, p)).astype(g.dtype),
                *(masks, grads, params),
            )
        if self.penalty:
            share = {
                plan.path: plan.active / (plan.layer.size * plan.layer.copies)
                for plan in self.leaves(params)
                if plan.layer and plan.active
            }

            def penalized(path, g, p, m):
                if paths.is_hole(g) or paths.is_hole(m):
                    return g
                strength = jnp.where(m, self.penalty, self.penalty / share[path])
                return g + (strength * p).astype(g.dtype)

            grads = paths.map_with_paths(penalized, grads, params, masks)
        return self.restricted(trained, grads)

    def restricted(self, trained: Any, tree: Any) -> Any:
        """``tree`` with zeros at weights that are not trained."""
        if self.trained is None:
            return tree
        return map_masked(lambda m, x: jnp.where(m, x, 0), trained, tree)


# Everything that ``sparsify`` takes.
AnyTopology = Topology | Phases | StraightThrough


def _largest(topology: Topology, params: Any) -> Any:
    plans = {plan.path: plan for plan in topology.leaves(params)}

    def at_leaf(path, param):
        plan = plans.get(path)
        if plan is None or plan.units is None or plan.per_cell is None:
            return optax.MaskedNode()
        score = jnp.abs(param).astype(jnp.float32)
        return plan.units.choose(score, plan.per_cell)

    return paths.map_with_paths(at_leaf, params)


def make_straight_through(
    inner: optax.GradientTransformation,
    method: StraightThrough,
    key: jax.typing.ArrayLike,
    *,
    host_updates: bool,
    packed: bool,
) -> optax.GradientTransformationExtraArgs:
    """The owner of masks of the forward pass: what ``sparsify`` makes of them."""
    inner = checked_inner(inner)
    named = environment.named_by(inner)

    def init_fn(params):
        init_key, own_key = jax.random.split(typed_key(key))
        masks, trained, topology_state = method.init(init_key, params)
        masks, trained = stored(packed, (masks, trained))
        record_owner(method, inner, params, masks, packed, key=key)
        return ForwardMaskState(
            count=jnp.zeros([], jnp.int32),
            key=store_key(own_key),
            masks=masks,
            trained_masks=trained,
            topology_state=topology_state,
            inner_state=inner.init(params),
        )

    def update_fn(updates, state, params=None, **extra_args):
        check_update(updates, params, extra_args)
        state = whole(state) if packed else state
        check_not_lost(method, state, params)
        masks = unpacked(state.masks, params)
        trained = unpacked(state.trained_masks, params)
        told = environment.of_masks(masks, state.topology_state.fan_ins, method.dims)
        updates = method.gradient(masks, trained, params, updates)
        args = (updates, state.inner_state, params)
        updates, inner_state = environment.run(inner, named, told, *args, **extra_args)
        # Weight decay and momentum would move what is not trained, too.
        updates = method.restricted(trained, updates)
        state = state._replace(inner_state=inner_state)
        if not host_updates:
            state = _refreshed_if_due(inner, method, state, params, updates, packed)
        return updates, state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _refreshed_if_due(
    inner: optax.GradientTransformation,
    method: StraightThrough,
    state: Any,
    params: Any,
    updates: Any,
    packed: bool,
) -> ForwardMaskState:
    def refresh(light, params, updates):
        stepped = optax.apply_updates(params, updates)
        return method.refreshed(light, state.count, stepped, packed)

    always = method.schedule == UpdateSchedule(1, 0, FOREVER)
    light = if_due(
        always or method.due(state.count),
        *(refresh, state._replace(inner_state=()), params, updates),
    )
    inner_state = state.inner_state
    changed = light.topology_state.updated_at == state.count
    if has_caches(inner_state):
        fresh = initial_state(inner, params)
        inner_state = without_caches(changed, inner_state, fresh)
    return light._replace(inner_state=inner_state)


def forward_topology(
    name: str, sparsity: float | None, options: dict[str, Any]
) -> Topology:
    """How many weights the forward pass uses, and in what structure.

    Args:
      name: what the method is called.
      sparsity: as in ``static``.
      options: arguments of ``static`` by name.

    Returns:
      The topology.

    Raises:
      TypeError: for an argument that magnitudes leave no room for.
    """
    by_magnitude = "its masks are those of the largest weights"
    check_options(
        name,
        static,
        options,
        unfit=dict.fromkeys(("masks", "min_fan_in", "track_explored"), by_magnitude),
    )
    return dataclasses.replace(static(sparsity, **options), name=name)

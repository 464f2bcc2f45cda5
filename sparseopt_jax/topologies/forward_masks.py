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
from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.plans import LeafPlan
from sparseopt_jax.masks.state import map_masked
from sparseopt_jax.topologies.base import Topology, TopologyState
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import UpdateSchedule, told_updates
from sparseopt_jax.trees import paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardMasks(Topology):
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

    topology: Rewiring
    schedule: UpdateSchedule
    decay: float = 0.0
    trained: Rewiring | None = None
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
    def updates(self) -> str:
        """How often masks are chosen anew: as ``Topology.updates``."""
        return told_updates(self.schedule)

    @property
    def keeps_counts(self) -> bool:
        """True: a layer has as many active weights at any time."""
        return True

    @property
    def stays_dense(self) -> bool:
        """True: masks are of the forward pass alone."""
        return True

    @property
    def dense_gradients(self) -> float:
        """As ``Topology.dense_gradients``: 1, unless only some weights are trained."""
        if self.trained is None:
            return 1.0
        used, trained = self.topology.sparsity, self.trained.sparsity
        return (used - trained) / used if used else 1.0  # pyright: ignore

    def plan(self, params: optax.Params) -> list[LeafPlan]:
        """Decide about each leaf: as ``Topology.plan``."""
        return self.topology.plan(params)

    def due(self, count: Any) -> Any:
        """Whether masks are chosen anew after step ``count``: as ``Topology.due``."""
        return self.schedule.due(count)

    def init(self, key: jax.Array, params: optax.Params) -> tuple[Any, TopologyState]:
        """Make the first masks: as ``Topology.init``.

        They are chosen by magnitude where ``params`` holds arrays, at random where it
        holds shapes only.
        """
        masks, state = self.topology.init(key, params)
        if _are_arrays(params):
            masks = _largest(self.topology, params)
            state = state._replace(fan_ins=self.topology.fan_ins(masks))
        return masks, state

    def init_trained(self, key: jax.Array, params: optax.Params) -> Any:
        """Make the first masks of the trained weights, by ``init``'s key.

        Returns:
          A tree like the masks; ``()`` where all weights are trained.
        """
        if self.trained is None or _are_arrays(params):
            return self.choose_trained(params)
        return self.trained.init(key, params)[0]

    def choose_trained(self, params: optax.Params) -> Any:
        """Mask the largest weights, as many as are trained; ``()`` where all are."""
        return () if self.trained is None else _largest(self.trained, params)

    def update(
        self,
        key: jax.Array,
        count: jax.Array,
        masks: Any,
        state: TopologyState,
        params: optax.Params,
        grads: optax.Updates,
    ) -> tuple[Any, TopologyState]:
        """Choose masks of the largest weights: as ``Topology.update``.

        Neither the key nor the gradient is read.
        """
        del key, grads
        chosen = _largest(self.topology, params)
        return chosen, state._replace(
            updated_at=jnp.asarray(count, jnp.int32),
            fan_ins=self.topology.fan_ins(chosen),
            grown=map_masked(lambda new, old: count_true(new & ~old), chosen, masks),
        )

    def gradient(self, masks: Any, trained: Any, params: Any, grads: Any) -> Any:
        """What the dense weights are trained by, from the forward pass's gradient."""
        if self.decay:
            grads = map_masked(
                lambda m, g, p: g + (self.decay * jnp.where(m, 0, p)).astype(g.dtype),
                masks,
                grads,
                params,
            )
        if self.penalty:
            share = {
                plan.path: plan.active / (plan.layer.size * plan.layer.copies)
                for plan in self.plan(params)
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


def _are_arrays(params: optax.Params) -> bool:
    leaves = jax.tree.leaves(params)
    return bool(leaves) and all(isinstance(x, jax.Array | np.ndarray) for x in leaves)


def _largest(topology: Rewiring, params: optax.Params) -> Any:
    plans = {plan.path: plan for plan in topology.plan(params)}

    def at_leaf(path, param):
        plan = plans.get(path)
        if plan is None or plan.units is None or plan.per_cell is None:
            return optax.MaskedNode()
        score = jnp.abs(param).astype(jnp.float32)
        return plan.units.choose(score, plan.per_cell)

    return paths.map_with_paths(at_leaf, params)

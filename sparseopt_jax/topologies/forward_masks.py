"""Masks of the forward pass only: the weights stay dense and are trained.

The forward pass uses ``apply_masks(params, opt_state)``, computed outside the
differentiated function: the gradient of the masked weights is passed straight through
to the dense ones.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparseopt_jax.arguments.checks import number
from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.masks.state import map_masked
from sparseopt_jax.masks.storage import (
    Masks,
    MaskStorage,
    Stored,
    View,
    unpacked,
)
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import UpdateSchedule, described_updates
from sparseopt_jax.trees import paths


class ForwardState(NamedTuple):
    """The state of a topology that masks only the forward pass.

    Its field ``trained`` distinguishes it from ``TopologyState``.

    Attributes:
      updated_at: as in ``TopologyState``.
      explored: ``()``.
      turned: ``()``.
      fan_ins: as in ``TopologyState``.
      grown: as in ``TopologyState``.
      memory: ``()``.
      trained: masks of the weights that are trained; ``()`` if all are.
    """

    updated_at: jax.Array
    explored: Any
    turned: Any
    fan_ins: Any
    grown: Any
    memory: Any
    trained: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardMasks(Topology):
    """A topology that masks the forward pass to the largest of the dense weights.

    Build it with ``ste``, ``sr_ste`` or ``top_kast``.

    Attributes:
      topology: how many weights of each layer the forward pass uses, and in what
        structure.
      schedule: the steps after which masks are updated.
      decay: this times the weight is added to the gradient of inactive weights
        (SR-STE).
      trained: how many weights of each layer are trained; None for all (Top-KAST).
      penalty: this times the weight is added to the gradient; for weights that the
        forward pass does not use, it is divided by the layer's density (Top-KAST).
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
        """The name in tables and checkpoints."""
        return self.topology.name

    @property
    def dims(self) -> Dims:
        """The axes of kernels."""
        return self.topology.dims

    @property
    def updates(self) -> str:
        """How often the masks are updated; see ``Topology.updates``."""
        return described_updates(self.schedule)

    @property
    def keeps_counts(self) -> bool:
        """True: a layer's number of active weights never changes."""
        return True

    @property
    def stays_dense(self) -> bool:
        """True: only the forward pass is masked."""
        return True

    @property
    def dense_gradients(self) -> float:
        """The fraction of steps that need the dense gradient.

        1 if all weights are trained, otherwise the fraction of unused weights that are.
        """
        if self.trained is None:
            return 1.0
        used, trained = self.topology.sparsity, self.trained.sparsity
        return (used - trained) / used if used else 1.0  # pyright: ignore

    def leaves(self, params: optax.Params) -> list[LeafPlan]:
        """Decide about each leaf; see ``Topology.leaves``."""
        return self.topology.leaves(params)

    def due(self, count: Any) -> Any:
        """Return whether masks are updated after step ``count``; see ``Topology.due``.

        True itself if they always are, so that a step needs no condition.
        """
        steps = self.schedule.steps
        if self.schedule.is_endless and steps[0] == 0 and self.schedule.interval == 1:
            return True
        return self.schedule.due(count)

    def storage(self, form: MaskStorage) -> MaskStorage:
        """Return a storage that shows the optimizer all weights."""
        return ForwardStorage(form, self)

    def init(self, key: jax.Array, params: optax.Params) -> tuple[Any, ForwardState]:
        """Make the first masks; see ``Topology.init``.

        They are chosen by magnitude if ``params`` holds arrays, at random if it holds
        only shapes.
        """
        masks, state = self.topology.init(key, params)
        trained = () if self.trained is None else self.trained.init(key, params)[0]
        leaves = jax.tree.leaves(params)
        if leaves and all(isinstance(x, jax.Array | np.ndarray) for x in leaves):
            masks, trained = self._choose(params)
            state = state._replace(fan_ins=self.topology.fan_ins(masks))
        return masks, ForwardState(**state._asdict(), trained=trained)

    def _choose(self, params: optax.Params) -> tuple[Any, Any]:
        """Return masks of the largest weights: those used, and those trained."""
        masks = _largest(self.topology, params)
        return masks, () if self.trained is None else _largest(self.trained, params)

    def update(
        self,
        key: jax.Array,
        count: jax.Array,
        masks: Any,
        state: ForwardState,
        params: optax.Params,
        grads: optax.Updates,
    ) -> tuple[Any, ForwardState]:
        """Choose masks of the largest weights; see ``Topology.update``.

        Reads neither the key nor the gradient.
        """
        del key, grads
        chosen, trained = self._choose(params)
        return chosen, state._replace(
            updated_at=jnp.asarray(count, jnp.int32),
            fan_ins=self.topology.fan_ins(chosen),
            grown=map_masked(lambda new, old: count_true(new & ~old), chosen, masks),
            trained=trained,
        )

    def gradient(self, masks: Any, trained: Any, params: Any, grads: Any) -> Any:
        """Return the gradient of the dense weights from the forward pass's gradient."""
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
        """Return ``tree`` with zeros at weights that are not trained."""
        if self.trained is None:
            return tree
        return map_masked(lambda m, x: jnp.where(m, x, 0), trained, tree)


def _largest(topology: Rewiring, params: optax.Params) -> Any:
    plans = {plan.path: plan for plan in topology.leaves(params)}

    def at_leaf(path, param):
        plan = plans.get(path)
        if plan is None or plan.units is None or plan.per_cell is None:
            return optax.MaskedNode()
        score = jnp.abs(param).astype(jnp.float32)
        return plan.units.choose(score, plan.per_cell)

    return paths.map_with_paths(at_leaf, params)


class ForwardView(NamedTuple):
    """What a step reads: masks of the forward pass, and of the trained weights."""

    masks: View
    trained: Any


class ForwardStorage(MaskStorage):
    """A storage of masks that lets the optimizer see and update all weights."""

    def __init__(self, form: MaskStorage, method: ForwardMasks):
        self.form = form
        self.method = method

    def init(self, topology: Any, masks: Masks, state: Any, params: Any) -> View:
        return ForwardView(
            self.form.init(topology, masks, state, params), state.trained
        )

    def store(self, view: View) -> Stored:
        return self.form.store(view.masks)

    def pack(self, tree: Any) -> Any:
        return self.form.pack(tree)

    def view(self, stored: Stored, state: Any, params: Any) -> View:
        masks = self.form.view(stored, state, params)
        return ForwardView(masks, unpacked(state.trained, params))

    def load(self, stored: Stored, params: Any) -> Masks:
        return self.form.load(stored, params)

    def move(
        self, stored: Stored, masks: Masks, new: Masks, state: Any
    ) -> tuple[Stored, Any]:
        return self.form.move(stored, masks, new, state)

    def converted(self, like: Stored, masks: Masks) -> Stored:
        return self.form.converted(like, masks)

    def take(self, view: View, tree: Any) -> Any:
        """Return all of ``tree``; see ``MaskStorage.take``."""
        del view
        return tree

    def gradient(self, view: View, grads: Any, params: Any) -> Any:
        """Return the gradient of the dense weights, with the method's decays."""
        return self.method.gradient(view.masks, view.trained, params, grads)

    def moved(self, view: View, updates: Any) -> Any:
        """Return the updates of trained weights only, whatever weight decay adds."""
        return self.method.restricted(view.trained, updates)

    def inner_masks(self, view: View) -> Any:
        return view.masks

    def trained_masks(self, view: View) -> Any:
        """Return the masks of the trained weights, or holes if all are trained."""
        if self.method.trained is not None:
            return view.trained
        return map_masked(lambda *_: optax.MaskedNode(), view.masks, view.masks)

    def to_zero(self, before: View, after: View, updates: Any, params: Any) -> Any:
        """Return the updates unchanged: no weight is taken to zero."""
        del before, after, params
        return updates

    def kept_entries(self, old: View, new: View) -> tuple[Any, ...]:
        """Return no masks: the optimizer's whole state is kept."""
        del old, new
        return ()

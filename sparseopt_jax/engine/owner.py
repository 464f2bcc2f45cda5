"""The owner of the masks: a step of sparse training around a step of an optimizer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arrays.sharding_types import typed_like
from sparseopt_jax.engine.frozen_leaves import warn_of_frozen
from sparseopt_jax.engine.inner_state import in_types_of, reset
from sparseopt_jax.engine.inner_step import InnerStep
from sparseopt_jax.engine.mask_update import MaskUpdate
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.block_leaves import noted_layouts
from sparseopt_jax.masks.compact_kernel import holds_compact
from sparseopt_jax.masks.lost_masks import check_not_lost
from sparseopt_jax.masks.owners import check_update, record_owner
from sparseopt_jax.masks.state import SparseState
from sparseopt_jax.masks.storage import MaskStorage, filled, whole, without
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.trees.prng_keys import store_key, typed_key


@dataclasses.dataclass(frozen=True, eq=False)
class MaskOwner:
    """An optimizer with masks: ``sparsify``, or ``sparseopt`` as a link of a chain.

    Attributes:
      inner: the optimizer.
      topology: decides which weights are active.
      storage: how the masks are stored, and what ``inner`` sees of the weights.
      key: seed or PRNG key, as in ``sparsify``.
      host_updates: whether the host updates the masks.
      is_link: whether the optimizer follows in a chain. The weights after the step are
        then unknown here: updates do not set inactive weights to zero, and a topology
        that follows the step sees the weights before it.
    """

    inner: optax.GradientTransformationExtraArgs
    topology: Topology
    storage: MaskStorage
    key: jax.typing.ArrayLike
    host_updates: bool = False
    is_link: bool = False

    def init(self, params: optax.Params) -> SparseState:
        """Make the first masks, and the optimizer's state for the active weights."""
        if holds_compact(params):
            raise TypeError(
                "tx.init takes dense parameters: call opt_state = tx.init(params) "
                "first, then params, opt_state = so.compact_params(params, opt_state)"
            )
        topology, storage = self.topology, self.storage
        masks_key, key = jax.random.split(typed_key(self.key))
        masks, topology_state = topology.init(masks_key, params)
        if self._updates_after:
            topology_state = storage.with_old_masks(topology_state, masks)
        view = storage.init(topology, masks, topology_state, params)
        seen = storage.take(view, params)
        inner_state = self.inner.init(seen)
        fan_ins = topology_state.fan_ins
        values = environment.of_view(storage, view, fan_ins, topology.dims)
        warn_of_frozen(self.inner, topology, values, inner_state, seen)
        state = SparseState(
            count=jnp.zeros([], jnp.int32),
            key=store_key(key),
            masks=storage.store(view),
            topology_state=storage.pack(topology_state),
            inner_state=inner_state,
            layouts=noted_layouts(topology, params),
        )
        record_owner(
            topology=topology,
            inner=self.inner,
            storage=storage,
            key=self.key,
            is_link=self.is_link,
            params=params,
            masks=state.masks,
        )
        return state

    def update(
        self,
        updates: optax.Updates,
        state: SparseState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SparseState]:
        """Take one step, including an update of the masks if one is due."""
        topology, storage, given = self.topology, self.storage, state
        state = self._checked(updates, state, params, extra_args)
        grads, inner_state, count = updates, state.inner_state, state.count
        # Full layers are dense in everything below: they cost nothing, and a network of
        # sparsity 0 runs the inner optimizer's own program, bit for bit.
        full = topology.full_leaves(storage.planned(state.masks, params))
        masks = without(full, state.masks)
        topology_state = topology.observe(count, state.topology_state, grads)
        first = storage.view(masks, topology_state, params)
        args = (first, topology_state.fan_ins, grads, inner_state, params)
        step = InnerStep.of(self.inner, topology, storage, args, extra_args)
        alone = full | step.frozen
        update_masks = MaskUpdate.of(topology, storage, state, self.key, count, alone)

        if self._updates_before:  # for example RigL, whose updates replace the step
            masks, topology_state = update_masks.if_due(
                self._due(count, before=True),
                (masks, topology_state),
                lambda masks, state, params, grads: (params, grads),
                (params, grads),
            )
        view = storage.view(masks, topology_state, params)
        args = (view, topology_state.fan_ins, grads, inner_state, params)
        if self._updates_after:  # for example SET, which reads the weights after it
            step = step.taken_if_once(args)
            masks, topology_state = update_masks.if_due(
                self._due(count, before=False),
                (masks, topology_state),
                step.weights_after,
                (params, grads, inner_state),
            )
        updated = topology.moves and topology_state.updated_at == count
        after = storage.view(masks, topology_state, params)
        before = after
        if self._updates_after:
            before = storage.before_update(view, after, topology_state, params, updated)
        # Compact state is in the order of the indices, so the old ones are compared.
        # Masks that RigL has replaced must not be read after its update, and need not
        # be, because the state of inactive weights is fresh.
        old = first if storage.is_compact else before

        replaced = self._replaces and (updated & topology.replaces(count))
        updates, inner_state = step.take(
            (before, *args[1:]),
            replaced,
            lambda new: reset(self.inner, storage, old, after, new, params, updated),
        )
        if not self.is_link:
            updates = storage.to_zero(before, after, updates, params)
        new = SparseState(
            count=jnp.asarray(optax.safe_increment(count)),
            key=state.key,
            masks=filled(masks, state.masks),
            topology_state=topology_state,
            inner_state=inner_state,
            layouts=state.layouts,
        )
        return updates, typed_like(given, new)

    def _checked(
        self,
        updates: optax.Updates,
        state: SparseState,
        params: optax.Params | None,
        extra_args: dict[str, Any],
    ) -> SparseState:
        """Return the state in the form that a step reads, after checking arguments."""
        state = whole(state)
        check_update(
            updates,
            params,
            extra_args,
            shapes=self.storage.shapes(state.masks),
            scored_by=self.topology.name if self._scores_gradients(state) else None,
        )
        planned = self.storage.planned(state.masks, params)
        check_not_lost(self.topology, state, planned)
        return in_types_of(params, self.inner, self.storage, state)

    def _scores_gradients(self, state: SparseState) -> bool:
        """Return whether this step reads the gradients of inactive weights."""
        remembers = bool(jax.tree.leaves(state.topology_state.memory))
        return remembers or (self._updates and self.topology.scores_inactive)

    def _due(self, count: jax.Array, *, before: bool) -> Any:
        """Return whether an update of the masks is due before the step, or after it."""
        due = self.topology.due(count)
        if self._updates_before != self._updates_after:
            return due
        return due & (self.topology.replaces(count) == before)

    @property
    def _updates(self) -> bool:
        return self.topology.moves and not self.host_updates

    @property
    def _replaces(self) -> bool:
        """Whether updates of the masks may replace the step."""
        return self.topology.moves and self.topology.replaces_step is not False

    @property
    def _updates_before(self) -> bool:
        """Whether masks may be updated before the step."""
        replaces = self.topology.replaces_step is not False
        return self._updates and (replaces or self.is_link)

    @property
    def _updates_after(self) -> bool:
        """Whether masks may be updated after the step."""
        follows = self.topology.replaces_step is not True
        return self._updates and follows and not self.is_link

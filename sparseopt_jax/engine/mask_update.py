"""One update of the masks, as the compiled step and the host make it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from sparseopt_jax.arrays.conditions import if_due
from sparseopt_jax.masks.compact_storage import holds_active
from sparseopt_jax.masks.state import SparseState
from sparseopt_jax.masks.storage import (
    MaskStorage,
    Stored,
    filled,
    load_state,
    without,
)
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.trees.prng_keys import load_key


@dataclasses.dataclass(frozen=True)
class MaskUpdate:
    """The update of one step.

    Attributes:
      topology: decides about the masks.
      storage: how they are kept.
      key: typed PRNG key, the same at every step.
      count: int32 scalar, the step.
      left_alone: paths of leaves whose masks stay as they are.
    """

    topology: Topology
    storage: MaskStorage
    key: jax.Array
    count: jax.Array
    left_alone: frozenset[str]

    @classmethod
    def of(
        cls,
        topology: Topology,
        storage: MaskStorage,
        state: SparseState,
        key: jax.typing.ArrayLike,
        count: jax.Array,
        left_alone: frozenset[str],
    ) -> "MaskUpdate":
        """The update of step ``count``, for a state whose owner was given ``key``."""
        typed = load_key(state.key, key)
        return cls(topology, storage, typed, count, left_alone)

    def __call__(
        self, stored: Stored, state: Any, params: Any, grads: Any
    ) -> tuple[Stored, Any]:
        """Update the masks.

        Args:
          stored: the masks as the state keeps them.
          state: what the topology keeps, as the state has it.
          params: the weights, where parameters are compact their active weights.
          grads: the gradient.

        Returns:
          The new masks and what the topology keeps.
        """
        key = jax.random.fold_in(self.key, self.count)
        if self._goes_by_blocks(stored, params):
            indices = stored.with_tree(without(self.left_alone, stored.tree))
            new, state = self.topology.update(
                key, self.count, indices, state, params, grads
            )
            return stored.with_tree(filled(new.tree, stored.tree)), state
        params = self.storage.whole_weights(stored, params)
        masks, turned = self.storage.load(stored, params), state.turned
        new, state = self.topology.update(
            key,
            self.count,
            without(self.left_alone, masks),
            load_state(state._replace(turned=()), params),
            params,
            self.storage.whole_gradient(stored, grads, params),
        )
        state = state._replace(turned=turned)
        stored, state = self.storage.move(stored, masks, new, state)
        return stored, self.storage.pack(state)

    def _goes_by_blocks(self, stored: Stored, params: Any) -> bool:
        """Return whether some weights are the active ones alone, and that is enough."""
        return self.topology.updates_blocks and holds_active(stored, params)

    def if_due(
        self,
        due: Any,
        kept: tuple[Stored, Any],
        weights: Callable[..., tuple[Any, Any]],
        operands: tuple[Any, ...],
    ) -> tuple[Stored, Any]:
        """Update the masks where due.

        What growth remembers is only read here. Through the condition it would be
        copied at every step, so it is kept out of what comes back from there.

        Args:
          due: a bool, or a bool scalar.
          kept: the masks, and what the topology keeps, as in a call.
          weights: ``weights(masks, topology_state, *operands)`` gives the weights that
            the update goes by, and the gradient.
          operands: pytrees that the condition reads.

        Returns:
          As a call; what was kept where not due.
        """
        stored, state = kept
        memory = state.memory

        def update(kept, memory, *operands):
            stored, state = kept
            state = state._replace(memory=memory)
            params, grads = weights(stored, state, *operands)
            stored, state = self(stored, state, params, grads)
            return stored, state._replace(memory=())

        kept = (stored, state._replace(memory=()))
        stored, state = if_due(due, update, kept, memory, *operands)
        return stored, state._replace(memory=memory)

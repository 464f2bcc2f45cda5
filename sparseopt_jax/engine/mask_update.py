"""One update of the masks, in the compiled step or from the host."""

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
    """The update of the masks at one step.

    Attributes:
      topology: decides which weights are active.
      storage: how the masks are stored.
      key: typed PRNG key, the same at every step.
      count: int32 scalar, the step.
      left_alone: paths of leaves whose masks are not updated.
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
        """Make the update of step ``count`` for a state whose owner has ``key``."""
        typed = load_key(state.key, key)
        return cls(topology, storage, typed, count, left_alone)

    def __call__(
        self, stored: Stored, state: Any, params: Any, grads: Any
    ) -> tuple[Stored, Any]:
        """Update the masks.

        Args:
          stored: the masks in the stored form.
          state: the topology's state in the stored form.
          params: the weights; only the active ones if parameters are compact.
          grads: the gradient.

        Returns:
          The new masks and the topology's state.
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
        """Return whether weights are compact and the topology updates by blocks."""
        return self.topology.updates_blocks and holds_active(stored, params)

    def if_due(
        self,
        due: Any,
        kept: tuple[Stored, Any],
        weights: Callable[..., tuple[Any, Any]],
        operands: tuple[Any, ...],
    ) -> tuple[Stored, Any]:
        """Update the masks if due.

        The gradients that growth remembers are only read here. As a result of the
        conditional they would be copied at every step, so they are not part of it.

        Args:
          due: a bool, or a bool scalar.
          kept: the masks and the topology's state, as in ``__call__``.
          weights: ``weights(masks, topology_state, *operands)`` returns the weights and
            the gradient for the update.
          operands: pytrees that the conditional reads.

        Returns:
          As ``__call__``; ``kept`` if no update is due.
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

"""How masks are stored in the state, and which weights the inner optimizer sees.

One file per form: bytes (``byte_storage``), packed bits (``bit_storage``), indices of
active weights (``compact_storage``).
"""

import abc
from typing import Any

import jax.numpy as jnp
import optax

from sparseopt_jax.arrays.sharding_types import explicit_sharding, sharded
from sparseopt_jax.masks.packing import is_packed, restored, unpack
from sparseopt_jax.masks.state import map_masked, zero_masked
from sparseopt_jax.trees import paths

# Bool arrays in the structure of the parameters, ``optax.MaskedNode()`` if dense.
Masks = Any
# Masks in the form that the state keeps.
Stored = Any
# Masks in the form that a step reads.
View = Any


class MaskStorage(abc.ABC):
    """A way to store masks.

    The engine uses masks in three forms: bool arrays, which topologies update
    (``Masks``); the form that the state holds (``Stored``); and the form that a step
    reads (``View``), which is passed to ``take`` and ``to_zero``.
    """

    is_compact = False

    @abc.abstractmethod
    def init(self, topology: Any, masks: Masks, state: Any, params: Any) -> View:
        """Return the first view.

        Args:
          topology: the topology that made the masks.
          masks: the first masks.
          state: the topology's state.
          params: the parameters, or their shapes.

        Raises:
          ValueError: if masks cannot be kept in this form.
        """

    @abc.abstractmethod
    def pack(self, tree: Any) -> Any:
        """Return a tree with its bool arrays in the stored form."""

    def store(self, view: View) -> Stored:
        """Return the stored form of a view."""
        return self.pack(view)

    def view(self, stored: Stored, state: Any, params: Any) -> View:
        """Return the view of stored masks; ``state`` is the topology's state."""
        del state
        return self.load(stored, params)

    def load(self, stored: Stored, params: Any) -> Masks:
        """Return bool arrays with the explicit shardings of the weights."""
        return unpacked(stored, params)

    @abc.abstractmethod
    def move(
        self, stored: Stored, masks: Masks, new: Masks, state: Any
    ) -> tuple[Stored, Any]:
        """Return the new masks in the stored form, and the topology's state.

        Args:
          stored: the old masks in the stored form.
          masks: the old masks, with holes at leaves to leave alone.
          new: the new masks, with the same holes.
          state: the topology's state.
        """

    def converted(self, like: Stored, masks: Masks) -> Stored:
        """Return the stored form of masks that come from another storage.

        Args:
          like: the first masks of the same topology, in the stored form.
          masks: bool arrays.

        Raises:
          ValueError: if masks cannot be kept in this form.
        """
        del like
        return self.pack(masks)

    @abc.abstractmethod
    def take(self, view: View, tree: Any) -> Any:
        """Return a tree like the parameters in the form that the optimizer sees."""

    def weights(self, view: View, params: Any) -> Any:
        """Return the weights to pass to the optimizer's ``update``."""
        del view
        return params

    def gradient(self, view: View, grads: Any, params: Any) -> Any:
        """Return the gradient to pass to the optimizer."""
        del params
        return self.take(view, grads)

    def moved(self, view: View, updates: Any) -> Any:
        """Return the optimizer's updates of the weights that it may change."""
        del view
        return updates

    @abc.abstractmethod
    def inner_masks(self, view: View) -> Any:
        """Return the masks that inner transformations read."""

    def trained_masks(self, view: View) -> Any:
        """Return the masks of the weights that the optimizer trains.

        They are in the form of ``inner_masks``, with holes at leaves of which it trains
        all weights.
        """
        return self.inner_masks(view)

    @abc.abstractmethod
    def to_zero(self, before: View, after: View, updates: Any, params: Any) -> Any:
        """Return updates that set inactive weights to zero.

        Args:
          before: the view that the updates were computed with.
          after: the view after the step.
          updates: the optimizer's updates.
          params: the weights.
        """

    def with_kept(self, old: Stored, new: Stored, params: Any) -> Any:
        """Return the weights after an update of the masks: zero if dropped or grown.

        Args:
          old: the old masks in the stored form.
          new: the new masks in the stored form.
          params: the weights.
        """
        kept = map_masked(
            jnp.logical_and, self.load(old, params), self.load(new, params)
        )
        return zero_masked(kept, params)

    @abc.abstractmethod
    def kept_entries(self, old: View, new: View) -> tuple[Any, ...]:
        """Return masks of the entries that the optimizer's state keeps in an update.

        Each is a tree of bool arrays at the paths of the parameters, and applies to the
        leaves of the state that have its shapes. Entries where it is False are reset.
        """

    def before_update(
        self, old: View, new: View, state: Any, params: Any, updated: Any
    ) -> View:
        """Return the view before an update of the masks that this step may have made.

        Args:
          old: the view before the update.
          new: the view after it.
          state: the topology's state after the update.
          params: the weights.
          updated: whether the masks were updated.
        """
        del new, state, params, updated
        return old

    def with_old_masks(self, state: Any, masks: Masks) -> Any:
        """Return the topology's state with room to record how the masks change."""
        del masks
        return state

    def typed(self, stored: Stored, params: Any) -> Stored:
        """Return ``stored`` with the explicit shardings of the weights."""
        del params
        return stored

    def planned(self, stored: Stored, params: Any) -> Any:
        """Return a tree with the dense shapes of the weights, for the topology."""
        del stored
        return params

    def shapes(self, stored: Stored) -> dict[str, tuple[int, ...]]:
        """Return, by path, shapes that gradients may have instead of the weights'."""
        del stored
        return {}

    def whole_weights(self, stored: Stored, params: Any) -> Any:
        """Return the weights as dense arrays."""
        del stored
        return params

    def whole_gradient(self, stored: Stored, grads: Any, params: Any) -> Any:
        """Return the gradients as dense arrays."""
        del stored, params
        return grads


def load_state(state: Any, params: Any) -> Any:
    """Return a topology's state with its masks as bool arrays."""
    return type(state)._make(unpacked(kept, params) for kept in state)


def unpacked(masks: Any, params: Any) -> Masks:
    """Return masks as bool arrays with the explicit shardings of their weights."""
    bools = unpack(masks)
    if bools is masks:
        return masks
    return map_masked(
        lambda param, mask: sharded(mask, explicit_sharding(param)), params, bools
    )


def whole(state: Any) -> Any:
    """Return a state in which every packed mask that was taken apart is restored."""
    nodes = restored(state._replace(inner_state=()))
    return nodes._replace(inner_state=state.inner_state)


def without(left_out: frozenset[str], masks: Any) -> Any:
    """Return the masks, in bytes or bits, with holes at the paths of ``left_out``."""

    def at_leaf(key_path, mask):
        left = paths.path_string(key_path) in left_out
        return optax.MaskedNode() if left else mask

    return paths.map_with_key_paths(
        at_leaf, masks, is_leaf=lambda x: paths.is_hole(x) or is_packed(x)
    )


def filled(masks: Any, others: Any) -> Any:
    """Return the masks with their holes filled from the others."""
    return map_masked(lambda new, old: new, masks, others)

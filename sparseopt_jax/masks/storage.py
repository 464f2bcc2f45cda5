"""How masks are kept in the state, and what the optimizer inside sees of the weights.

One file a form: bytes (``byte_storage``), packed bits (``bit_storage``), the places of
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

# Bool arrays in the structure of the parameters, ``optax.MaskedNode()`` at dense ones.
Masks = Any
# The same as the state keeps it.
Stored = Any
# The same as a step reads it.
View = Any


class MaskStorage(abc.ABC):
    """A form of masks.

    The engine knows masks in three forms: bool arrays, which topologies update
    (``Masks``); what the state holds (``Stored``); and what a step reads (``View``),
    which ``take`` and ``to_zero`` work with.
    """

    is_compact = False

    @abc.abstractmethod
    def init(self, topology: Any, masks: Masks, state: Any, params: Any) -> View:
        """Return the first view.

        Args:
          topology: what made the masks.
          masks: the first masks.
          state: what the topology keeps.
          params: the parameters, or what stands for their shapes.

        Raises:
          ValueError: if masks cannot be kept in this form.
        """

    @abc.abstractmethod
    def pack(self, tree: Any) -> Any:
        """Return a tree with its bool arrays as they are stored."""

    def store(self, view: View) -> Stored:
        """Return what the state holds of a view."""
        return self.pack(view)

    def view(self, stored: Stored, state: Any, params: Any) -> View:
        """Return what a step reads; ``state`` is what the topology keeps."""
        del state
        return self.load(stored, params)

    def load(self, stored: Stored, params: Any) -> Masks:
        """Return bool arrays, in type sharded as the weights are."""
        return unpacked(stored, params)

    @abc.abstractmethod
    def move(
        self, stored: Stored, masks: Masks, new: Masks, state: Any
    ) -> tuple[Stored, Any]:
        """Return what holds new masks, and what the topology keeps.

        Args:
          stored: what holds the old masks.
          masks: the old masks; holes at leaves to leave alone.
          new: the new masks, with the same holes.
          state: what the topology keeps.
        """

    def converted(self, like: Stored, masks: Masks) -> Stored:
        """Return what holds masks that another storage has kept.

        Args:
          like: what holds the first masks of the same topology.
          masks: bool arrays.

        Raises:
          ValueError: if masks cannot be kept in this form.
        """
        del like
        return self.pack(masks)

    @abc.abstractmethod
    def take(self, view: View, tree: Any) -> Any:
        """Return what the optimizer sees of a tree like the parameters."""

    def weights(self, view: View, params: Any) -> Any:
        """Return the weights that the optimizer's ``update`` is given."""
        del view
        return params

    def gradient(self, view: View, grads: Any, params: Any) -> Any:
        """Return the gradient that the optimizer is given."""
        del params
        return self.take(view, grads)

    def moved(self, view: View, updates: Any) -> Any:
        """Return the optimizer's updates of the weights that it may move."""
        del view
        return updates

    @abc.abstractmethod
    def told(self, view: View) -> Any:
        """Return the masks that transformations inside read."""

    @abc.abstractmethod
    def to_zero(self, before: View, after: View, updates: Any, params: Any) -> Any:
        """Return updates that take inactive weights to zero.

        Args:
          before: what the updates were computed with.
          after: what holds after the step.
          updates: what the optimizer gave.
          params: the weights.
        """

    def with_kept(self, old: Stored, new: Stored, params: Any) -> Any:
        """Return the weights after an update: zero at what was dropped or grown.

        Args:
          old: what holds the old masks.
          new: what holds the new ones.
          params: the weights.
        """
        kept = map_masked(
            jnp.logical_and, self.load(old, params), self.load(new, params)
        )
        return zero_masked(kept, params)

    @abc.abstractmethod
    def kept_entries(self, old: View, new: View) -> tuple[Any, ...]:
        """Return masks of what the optimizer's state keeps through an update.

        Each is a tree of bool arrays by the paths of the parameters; it is for the
        leaves of the state that have its shapes. The rest starts anew.
        """

    def before_update(
        self, old: View, new: View, state: Any, params: Any, updated: Any
    ) -> View:
        """Return the view before an update that may have taken place in this step.

        Args:
          old: what was read before.
          new: what is read now.
          state: what the topology keeps, after the update.
          params: the weights.
          updated: whether the masks were updated.
        """
        del new, state, params, updated
        return old

    def with_old_masks(self, state: Any, masks: Masks) -> Any:
        """Return what the topology keeps, with room for what tells the old masks."""
        del masks
        return state

    def typed(self, stored: Stored, params: Any) -> Stored:
        """Return ``stored``, in type sharded as the weights are."""
        del params
        return stored

    def planned(self, stored: Stored, params: Any) -> Any:
        """Return what tells a topology the shapes of the weights, active or not."""
        del stored
        return params

    def shapes(self, stored: Stored) -> dict[str, tuple[int, ...]]:
        """Return the shapes that gradients may have instead of the weights'."""
        del stored
        return {}

    def whole_weights(self, stored: Stored, params: Any) -> Any:
        """Return the weights as dense arrays."""
        del stored
        return params

    def whole_gradient(self, stored: Stored, grads: Any, params: Any) -> Any:
        """Return gradients like the parameters."""
        del stored, params
        return grads


def load_state(state: Any, params: Any) -> Any:
    """Return what a topology keeps, with bool arrays."""
    return type(state)._make(unpacked(kept, params) for kept in state)


def unpacked(masks: Any, params: Any) -> Masks:
    """Mask as bool arrays, in type sharded as their weights are."""
    bools = unpack(masks)
    if bools is masks:
        return masks
    return map_masked(
        lambda param, mask: sharded(mask, explicit_sharding(param)), params, bools
    )


def whole(state: Any) -> Any:
    """A state whose packed masks are nodes again, wherever it has been taken apart."""
    nodes = restored(state._replace(inner_state=()))
    return nodes._replace(inner_state=state.inner_state)


def without(left_out: frozenset[str], masks: Any) -> Any:
    """Return the masks, in bytes or bits, with holes at the paths that are left out."""

    def at_leaf(key_path, mask):
        left = paths.path_string(key_path) in left_out
        return optax.MaskedNode() if left else mask

    return paths.map_with_key_paths(
        at_leaf, masks, is_leaf=lambda x: paths.is_hole(x) or is_packed(x)
    )


def filled(masks: Any, others: Any) -> Any:
    """Return the masks, and those of the others where they have holes."""
    return map_masked(lambda new, old: new, masks, others)

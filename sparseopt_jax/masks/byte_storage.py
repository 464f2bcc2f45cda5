"""Masks as bool arrays: one byte per weight."""

from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.conditions import chosen
from sparseopt_jax.masks.state import map_masked, zero_masked
from sparseopt_jax.masks.storage import (
    Masks,
    MaskStorage,
    Stored,
    View,
    filled,
    unpacked,
)


class ByteStorage(MaskStorage):
    """Masks kept as bool arrays; the optimizer sees zeros at inactive weights."""

    def init(self, topology: Any, masks: Masks, state: Any, params: Any) -> View:
        """Implement ``MaskStorage.init``: return the masks themselves."""
        del topology, state, params
        return masks

    def pack(self, tree: Any) -> Any:
        """Implement ``MaskStorage.pack``: return the tree unchanged."""
        return tree

    def move(
        self, stored: Stored, masks: Masks, new: Masks, state: Any
    ) -> tuple[Stored, Any]:
        """Implement ``MaskStorage.move``."""
        if jax.tree.leaves(state.turned):
            new, state = _with_flips_recorded(masks, new, state)
        return filled(self.store(new), stored), state

    def take(self, view: View, tree: Any) -> Any:
        """Implement ``MaskStorage.take``: set zeros at inactive weights."""
        return zero_masked(view, tree)

    def inner_masks(self, view: View) -> Any:
        """Implement ``MaskStorage.inner_masks``: return the bool arrays."""
        return view

    def to_zero(self, before: View, after: View, updates: Any, params: Any) -> Any:
        """Implement ``MaskStorage.to_zero``."""
        # Weights that SET grows start at zero, whatever the step computed for them.
        active = _kept(before, after)
        # In the wider of the two dtypes: a rounded -p would leave a remainder of p.
        return map_masked(
            lambda m, u, p: chosen(m, u, -p).astype(jnp.result_type(u, p)),
            active,
            updates,
            params,
        )

    def kept_entries(self, old: View, new: View) -> tuple[Any, ...]:
        """Implement ``MaskStorage.kept_entries``: keep active entries at every step.

        When RigL grows a weight, its entries are therefore already in their initial
        state. This costs nothing: the mask is available, and initial states are
        constants to the compiler. Entries of weights that SET grows are reset, because
        the step before its update has changed them.
        """
        return (_kept(old, new),)

    def with_old_masks(self, state: Any, masks: Masks) -> Any:
        """Implement ``MaskStorage.with_old_masks``."""
        return state._replace(turned=jax.tree.map(jnp.zeros_like, masks))

    def before_update(
        self, old: View, new: View, state: Any, params: Any, updated: Any
    ) -> View:
        """Implement ``MaskStorage.before_update``: revert the recorded flips."""
        del old
        if jax.tree.leaves(new) and not jax.tree.leaves(state.turned):
            raise ValueError(
                "opt_state was made with host_updates=True, but tx updates the masks "
                "within the step: call opt_state = so.convert_state(tx, params, "
                "opt_state) first"
            )
        return map_masked(
            lambda turned, mask: mask ^ (turned & updated),
            unpacked(state.turned, params),
            new,
        )


def _kept(before: View, after: View) -> View:
    """Return masks of the weights that are active in both views."""
    if before is after:
        return after
    return map_masked(jnp.logical_and, before, after)


def _with_flips_recorded(masks: Masks, new: Masks, state: Any) -> tuple[Masks, Any]:
    """Return the new masks, and a state that records which entries were flipped.

    A step that precedes SET's update uses the old masks, but the compiler computes it
    after the update, together with the state that is kept. If it still read the old
    masks there, the new ones could not reuse their memory, and every step would copy
    all masks, whether an update is due or not. So the old masks are recovered from the
    new ones, which are written by flipping entries of the old ones in place.
    """
    turned = jax.lax.optimization_barrier(map_masked(jnp.logical_xor, masks, new))
    new = map_masked(jnp.logical_xor, masks, turned)
    return new, state._replace(turned=filled(turned, unpacked(state.turned, masks)))

"""Masks as bool arrays: one byte a weight."""

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
    """Bool arrays. The optimizer sees zeros in place of inactive weights."""

    def init(self, topology: Any, masks: Masks, state: Any, params: Any) -> View:
        """As ``MaskStorage.init``: the masks themselves."""
        del topology, state, params
        return masks

    def pack(self, tree: Any) -> Any:
        """As ``MaskStorage.pack``: as they are."""
        return tree

    def move(
        self, stored: Stored, masks: Masks, new: Masks, state: Any
    ) -> tuple[Stored, Any]:
        """As ``MaskStorage.move``."""
        if jax.tree.leaves(state.turned):
            new, state = _told_apart(masks, new, state)
        return filled(self.store(new), stored), state

    def take(self, view: View, tree: Any) -> Any:
        """As ``MaskStorage.take``: zeros at inactive weights."""
        return zero_masked(view, tree)

    def told(self, view: View) -> Any:
        """As ``MaskStorage.told``: the bool arrays."""
        return view

    def to_zero(self, before: View, after: View, updates: Any, params: Any) -> Any:
        """As ``MaskStorage.to_zero``."""
        # What SET grows starts at zero, whatever the step made of it before.
        active = after
        if before is not after:
            active = map_masked(jnp.logical_and, before, after)
        # In the wider of both types: a narrowed -p would leave a remainder of p.
        return map_masked(
            lambda m, u, p: chosen(m, u, -p).astype(jnp.result_type(u, p)),
            active,
            updates,
            params,
        )

    def kept_entries(self, old: View, new: View) -> tuple[Any, ...]:
        """As ``MaskStorage.kept_entries``: those of active weights, at every step.

        Inactive ones are then as at first when they are grown, at no price: the mask is
        at hand, and initial states are constants to the compiler.
        """
        del old
        return (new,)

    def with_old_masks(self, state: Any, masks: Masks) -> Any:
        """As ``MaskStorage.with_old_masks``."""
        return state._replace(turned=jax.tree.map(jnp.zeros_like, masks))

    def before_update(
        self, old: View, new: View, state: Any, params: Any, updated: Any
    ) -> View:
        """As ``MaskStorage.before_update``, by what the update turned."""
        del old
        return map_masked(
            lambda turned, mask: mask ^ (turned & updated),
            unpacked(state.turned, params),
            new,
        )


def _told_apart(masks: Masks, new: Masks, state: Any) -> tuple[Masks, Any]:
    """New masks, and a state that tells the old ones from them, by what was turned.

    A step that SET's update follows is the old masks' step, but the compiler computes
    it after the update, together with the state that is kept. Were the old masks still
    in use there, the new ones could not take their place in memory, and every step
    would copy all masks, due or not. So they are told from the new ones, which are
    written as a change of the old ones in place.
    """
    turned = jax.lax.optimization_barrier(map_masked(jnp.logical_xor, masks, new))
    new = map_masked(jnp.logical_xor, masks, turned)
    return new, state._replace(turned=filled(turned, unpacked(state.turned, masks)))

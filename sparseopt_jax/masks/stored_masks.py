"""Masks and what is like them, as a state keeps them: bytes, or packed bits."""

from typing import Any

import optax

from sparseopt_jax.arrays.sharding_types import explicit_sharding, sharded
from sparseopt_jax.masks.packing import is_packed, pack, restored, unpack
from sparseopt_jax.masks.state import map_masked
from sparseopt_jax.trees import paths


def stored(packed: bool, tree: Any) -> Any:
    """Masks, and states that hold what is like them, as they are kept."""
    return pack(tree) if packed else tree


def loaded(masks: Any, topology_state: Any, params: Any) -> tuple[Any, Any]:
    """Masks and a topology's state with bool arrays."""
    return unpacked(masks, params), topology_state._replace(
        explored=unpacked(topology_state.explored, params),
        turned=unpacked(topology_state.turned, params),
    )


def unpacked(masks: Any, params: Any) -> Any:
    """Masks as bool arrays, in type sharded as their weights are."""
    bools = unpack(masks)
    if bools is masks:
        return masks
    return map_masked(
        lambda param, mask: sharded(mask, explicit_sharding(param)), params, bools
    )


def whole(state: Any) -> Any:
    """A state whose packed masks are nodes again, wherever it has been taken apart."""
    own = restored(state._replace(inner_state=()))
    return own._replace(inner_state=state.inner_state)


def without(left_out: frozenset[str], masks: Any) -> Any:
    """The masks, packed or not, with holes at the paths that are left out."""

    def at_leaf(key_path, mask):
        left = paths.path_string(key_path) in left_out
        return optax.MaskedNode() if left else mask

    return paths.map_with_key_paths(
        at_leaf, masks, is_leaf=lambda x: paths.is_hole(x) or is_packed(x)
    )


def filled(masks: Any, others: Any) -> Any:
    """The masks, and those of the others where they have holes."""
    return map_masked(lambda new, old: new, masks, others)

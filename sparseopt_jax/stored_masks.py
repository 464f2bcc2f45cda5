"""Masks and what is like them, as a state keeps them: bytes, or packed bits."""

from typing import Any

from sparseopt_jax.masks import map_masked
from sparseopt_jax.packing import pack, restored, unpack
from sparseopt_jax.sharding_types import explicit_sharding, sharded


def stored(packed: bool, masks: Any, topology_state: Any) -> tuple[Any, Any]:
    """Masks and what is like them, as the state keeps them: packed, or not."""
    if not packed:
        return masks, topology_state
    return pack(masks), topology_state._replace(
        explored=pack(topology_state.explored), turned=pack(topology_state.turned)
    )


def loaded(masks: Any, topology_state: Any, params: Any) -> tuple[Any, Any]:
    """The same as bool arrays."""
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
    topology_state = state.topology_state._replace(
        explored=restored(state.topology_state.explored),
        turned=restored(state.topology_state.turned),
    )
    return state._replace(masks=restored(state.masks), topology_state=topology_state)

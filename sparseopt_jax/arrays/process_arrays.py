"""Arrays that are local to each of several processes, in their common checkpoints."""

from typing import Any

import jax
import numpy as np


def is_local(x: Any) -> bool:
    """Return whether, with several processes, an array is on one process's devices."""
    sharding = getattr(x, "sharding", None)
    return (
        jax.process_count() > 1
        and sharding is not None
        and sharding.is_fully_addressable
    )


def written_once(x: Any) -> Any:
    """Convert an array for Orbax: the first process writes arrays local to each."""
    return np.array(x) if is_local(x) else x


def on_every_process(target: Any) -> Any:
    """Convert a target for Orbax: every process reads arrays local to each."""
    if not is_local(target):
        return target
    return np.broadcast_to(np.zeros((), target.dtype), target.shape)


def placed(leaf: Any, loaded: Any) -> Any:
    """Put a loaded array on the devices of its leaf, if it is local to a process."""
    if is_local(leaf) and getattr(leaf, "committed", True):
        return jax.device_put(loaded, leaf.sharding)
    return loaded

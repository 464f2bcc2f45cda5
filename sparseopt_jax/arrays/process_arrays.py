"""Arrays that each of several processes has for itself, in checkpoints of all."""

from typing import Any

import jax
import numpy as np


def is_local(x: Any) -> bool:
    """Return whether it is one of several processes' and lies on its devices alone."""
    sharding = getattr(x, "sharding", None)
    return (
        jax.process_count() > 1
        and sharding is not None
        and sharding.is_fully_addressable
    )


def written_once(x: Any) -> Any:
    """An array as Orbax writes it: what every process has is written by the first."""
    return np.array(x) if is_local(x) else x


def on_every_process(target: Any) -> Any:
    """What tells Orbax to read an array on every process that is to have its own."""
    if not is_local(target):
        return target
    return np.broadcast_to(np.zeros((), target.dtype), target.shape)


def placed(leaf: Any, loaded: Any) -> Any:
    """What was loaded for a leaf, on the devices of this process where the leaf is."""
    if is_local(leaf) and getattr(leaf, "committed", True):
        return jax.device_put(loaded, leaf.sharding)
    return loaded

"""Shardings as part of an array's type: what a mesh's explicit axes ask for.

With automatic axes the compiler places what is computed from a sharded array; with
explicit ones every operation says where its result lies.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def is_explicit(sharding: Any) -> bool:
    """Return whether the mesh of a sharding has explicit axes."""
    return AxisType.Explicit in sharding.mesh.axis_types


def explicit_sharding(x: Any) -> NamedSharding | None:
    """Return the sharding in an array's type; None where the compiler decides.

    Args:
      x: an array or tracer.

    Returns:
      What ``out_sharding`` and ``jax.sharding.reshard`` take.
    """
    sharding = jax.typeof(x).sharding
    return sharding if is_explicit(sharding) else None


def sharded(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """``x`` sharded so, whatever the mesh's axes; ``x`` itself for None."""
    if sharding is None:
        return x
    if is_explicit(sharding):
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def typed_like(old: Any, new: Any) -> Any:
    """A tree with the shardings that another, of its structure, has in its types.

    Flax's ``get_sharding`` leaves what has no names, such as counts, on every device;
    computed from sharded masks it would have another type at the next step.
    """
    return jax.tree.map(
        lambda before, x: sharded(x, explicit_sharding(before)) if _is_array(x) else x,
        old,
        new,
    )


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array)


def placed_like(x: jax.Array, leaf: Any) -> jax.Array:
    """``x`` on the devices and with the sharding of another array of its shape."""
    if isinstance(leaf, Tracer):
        return sharded(x, explicit_sharding(leaf))
    return jax.device_put(x, leaf.sharding) if isinstance(leaf, jax.Array) else x


def replicated(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` gives for these arrays, on every device of an explicit mesh.

    Inside the compiler decides about shardings. Where no argument has a sharding in its
    type, it does anyway, and about the result as well.

    Args:
      function: of arrays, to a pytree of arrays.
      *args: pytrees of arrays.

    Returns:
      Its result.
    """
    explicit = filter(None, map(explicit_sharding, jax.tree.leaves(args)))
    sharding = next(explicit, None)
    if sharding is None:
        return function(*args)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.sharding.auto_axes(function, out_sharding=whole)(*args)


def is_whole(x: jax.Array) -> bool:
    """Return whether an array is known to lie whole on every device that has it.

    Where the compiler places arrays, and there are several devices, nobody knows.

    Args:
      x: an array or tracer.
    """
    if jax.device_count() == 1:
        return True
    if not isinstance(x, Tracer):
        return x.sharding.is_fully_replicated
    sharding = jax.typeof(x).sharding
    kinds = set(sharding.mesh.axis_types)
    # Within shard_map and pmap an array is one device's part.
    return bool(kinds) and AxisType.Auto not in kinds and not any(sharding.spec)

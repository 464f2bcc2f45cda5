"""Shardings as part of an array's type, as required by the explicit axes of a mesh.

With automatic axes the compiler places the results of operations on sharded arrays;
with explicit axes every operation specifies the sharding of its result.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def is_explicit(sharding: Any) -> bool:
    """Return whether the mesh of a sharding has explicit axes."""
    return AxisType.Explicit in sharding.mesh.axis_types


def explicit_sharding(x: Any) -> NamedSharding | None:
    """Return the sharding in an array's type; None if the compiler decides.

    Args:
      x: an array or tracer.

    Returns:
      A sharding that ``out_sharding`` and ``jax.sharding.reshard`` accept, or None.
    """
    sharding = jax.typeof(x).sharding
    return sharding if is_explicit(sharding) else None


def named_sharding(leaf: Any) -> NamedSharding | None:
    """Return how a leaf is sharded over a mesh; None if that is not known yet."""
    if not isinstance(leaf, jax.Array):
        return None
    if isinstance(leaf, Tracer):
        return explicit_sharding(leaf)
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None


def on_mesh(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Return ``x`` on every device of the mesh of a sharding, if its axes are explicit.

    Programs that make arrays of this sharding from ``x`` then run outside of
    ``jax.set_mesh``, too.

    Args:
      x: an array; tracers are returned unchanged.
      sharding: of an array that is not traced; None returns ``x``.
    """
    if sharding is None or isinstance(x, Tracer) or not is_explicit(sharding):
        return x
    if not isinstance(sharding.mesh, Mesh):
        return x
    return jax.device_put(x, NamedSharding(sharding.mesh, PartitionSpec()))


def sharded(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Return ``x`` with a sharding, whatever the axes of its mesh; ``x`` for None."""
    if sharding is None:
        return x
    if is_explicit(sharding):
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def typed_like(old: Any, new: Any) -> Any:
    """Return a tree with the shardings in the types of another of its structure.

    Flax's ``get_sharding`` puts leaves without names, such as counts, on every device.
    Computed from sharded masks, they would have another type at the next step.
    """
    return jax.tree.map(
        lambda before, x: sharded(x, explicit_sharding(before)) if _is_array(x) else x,
        old,
        new,
    )


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array)


def placed_like(x: jax.Array, leaf: Any) -> jax.Array:
    """Return ``x`` with the devices and sharding of another array of its shape."""
    if isinstance(leaf, Tracer):
        return sharded(x, explicit_sharding(leaf))
    return jax.device_put(x, leaf.sharding) if isinstance(leaf, jax.Array) else x


def replicated(function: Callable[..., Any], *args: Any) -> Any:
    """Return ``function(*args)``, replicated on every device of an explicit mesh.

    Inside the function the compiler decides about shardings. If no argument has a
    sharding in its type, the compiler also decides about that of the result.

    Args:
      function: maps arrays to a pytree of arrays.
      *args: pytrees of arrays.

    Returns:
      The result of the function.
    """
    explicit = filter(None, map(explicit_sharding, jax.tree.leaves(args)))
    sharding = next(explicit, None)
    if sharding is None:
        return function(*args)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.sharding.auto_axes(function, out_sharding=whole)(*args)


def is_whole(x: jax.Array) -> bool:
    """Return whether an array is known to be whole on every device that has it.

    This is unknown, and so False, if the compiler places arrays on several devices.

    Args:
      x: an array or tracer.
    """
    if jax.device_count() == 1:
        return True
    if not isinstance(x, Tracer):
        return x.sharding.is_fully_replicated
    sharding = jax.typeof(x).sharding
    kinds = set(sharding.mesh.axis_types)
    # Inside shard_map and pmap an array is one device's part.
    return bool(kinds) and AxisType.Auto not in kinds and not any(sharding.spec)

"""Shardings as part of an array's type: what a mesh's explicit axes ask for.

With automatic axes the compiler places what is computed from a sharded array; with
explicit ones every operation says where its result lies.
"""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding


def is_explicit(sharding: Any) -> bool:
    """Whether the mesh of a sharding has explicit axes."""
    return AxisType.Explicit in sharding.mesh.axis_types


def explicit_sharding(x: Any) -> NamedSharding | None:
    """The sharding in an array's type; None where the compiler decides.

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

"""Sharing a number of weights between layers that have limited room."""

import jax
import jax.numpy as jnp


def share(total: jax.Array, weights: jax.Array, room: jax.Array) -> jax.Array:
    """Divides ``total`` in proportion to weights, no part beyond its room.

    What a full part cannot take is divided among the others, in rounds; whole numbers
    are reached by the largest remainders, ties by the lowest index.

    Args:
      total: int32 scalar; no more than the sum of ``room`` is divided.
      weights: float32 vector, not negative; all zero, or NaN, counts as all alike.
      room: int32 vector.

    Returns:
      int32 vector, whose sum is ``total``.

    Examples:
      >>> import jax.numpy as jnp
      >>> weights, room = jnp.array([3.0, 1.0, 1.0]), jnp.array([2, 9, 9])
      >>> share(jnp.int32(6), weights, room).tolist()
      [2, 2, 2]
    """
    weights = jnp.where(jnp.isfinite(weights), weights, 0.0)

    def unsettled(given):
        return (jnp.sum(given) < total) & jnp.any(given < room)

    def divide(given):
        left = total - jnp.sum(given)
        free = given < room
        own = jnp.where(free, weights, 0.0)
        # At most 1 each, so that the sum is finite.
        own = jnp.where(jnp.any(own > 0), own / jnp.max(own), free.astype(jnp.float32))
        ideal = left.astype(jnp.float32) * (own / jnp.sum(own))
        whole = jnp.minimum(jnp.floor(ideal).astype(jnp.int32), room - given)
        # Beyond 2**24 a float32 is not exact, and all together may exceed what is left.
        before = jnp.cumsum(whole) - whole
        whole = jnp.clip(left - before, 0, whole)
        # Remainders decide who gets one more; nobody beyond the room or the total.
        rest = ideal - whole.astype(jnp.float32)
        rest = jnp.where(given + whole < room, rest, -1.0)
        order = jnp.argsort(-rest, stable=True)
        more = jnp.maximum(left - jnp.sum(whole), 0)
        place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
        extra = (place < more) & (given + whole < room)
        return given + whole + extra.astype(jnp.int32)

    return jax.lax.while_loop(unsettled, divide, jnp.zeros_like(room))

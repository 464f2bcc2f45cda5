"""Fractions of large integers, rounded exactly: no unit is lost."""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Up to this number float32 represents every half, so that its products round correctly.
_EXACT = 2**22

# This many bits of a number have an exact product with half of the bits of a float32.
_LIMB = 11


def scaled(number: int, fraction: jax.Array) -> jax.Array:
    """Return ``number`` times ``fraction``, rounded to the nearest integer.

    Ties go to the even integer. For large numbers a product in float32 would be off by
    hundreds, even with a fraction of 1.

    Args:
      number: an integer of magnitude below 2**31.
      fraction: float32 scalar; its magnitude is at most 2**31 / number if the number is
        large.

    Returns:
      int32 scalar.

    Examples:
      >>> int(scaled(2**31 - 1, jnp.float32(1.0)))
      2147483647
    """
    if abs(number) <= _EXACT:
        return jnp.round(number * fraction).astype(jnp.int32)
    # Beyond this the result exceeds int32.
    most = np.nextafter(np.float32((2**31 - 1) / abs(number)), np.float32(0))
    size = jnp.clip(jnp.abs(fraction), 0.0, max(float(most), 1.0))
    size = jnp.where(jnp.isnan(size), 0.0, size)
    bits = jax.lax.bitcast_convert_type(size, jnp.int32)
    high = jax.lax.bitcast_convert_type(bits & ~0xFFF, jnp.float32)
    whole, rest = jnp.int32(0), jnp.float32(0)
    for place in range(math.ceil(31 / _LIMB)):
        limb = float((abs(number) >> place * _LIMB) % 2**_LIMB * 2 ** (place * _LIMB))
        for part in (high, size - high):
            product = limb * part
            floor = jnp.floor(product)
            whole += floor.astype(jnp.int32)
            rest += product - floor
    carried = jnp.floor(rest)
    whole, rest = whole + carried.astype(jnp.int32), rest - carried
    odd = whole % 2 == 1
    up = (rest > 0.5) | ((rest == 0.5) & odd)
    return (
        jnp.where(jnp.signbit(fraction), -1, 1)
        * jnp.sign(number)
        * (whole + up.astype(jnp.int32))
    )

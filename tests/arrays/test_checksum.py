"""The checksum of an array's bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.arrays.checksum import checksum

DTYPES = ["bool", "int8", "uint8", "int16", "float16", "bfloat16", "int32", "uint32"]
DTYPES += ["float32", "complex64", "float8_e5m2", "int4"]


def random_array(dtype, shape=(5, 7)):
    values = np.random.default_rng(0).normal(size=shape) * 3
    return jnp.asarray(values > 0 if dtype == "bool" else values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_has_one_and_a_changed_one_another(dtype):
    x = random_array(dtype)
    expected = checksum(x)
    assert expected.dtype == jnp.uint32 and expected.shape == ()
    assert checksum(np.asarray(x)) == expected
    for place in [(0, 0), (2, 3), (4, 6)]:
        changed = x.at[place].set(~x[place] if dtype == "bool" else x[place] + 1)
        assert checksum(changed) != expected
    assert checksum(x[::-1]) != expected


def test_every_single_bit_counts():
    x = np.random.default_rng(0).normal(size=8).astype(np.float32)
    seen = {int(checksum(x))}
    for entry in range(8):
        for bit in range(32):
            changed = x.copy()
            changed.view(np.uint32)[entry] ^= np.uint32(1 << bit)
            seen.add(int(checksum(changed)))
    assert len(seen) == 1 + 8 * 32


def test_signs_of_zero_and_of_nan_count():
    values = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf]
    assert len({int(checksum(np.full(3, x, np.float32))) for x in values}) == 6


def test_zeros_are_told_from_fewer_zeros_and_sizes_without_entries_work():
    found = {int(checksum(jnp.zeros(shape))) for shape in [(1,), (2,), (64,), (65,)]}
    assert len(found) == 4
    assert checksum(jnp.zeros((0, 3))) == 0
    assert checksum(jnp.zeros(())) == checksum(jnp.zeros((1,)))


def test_both_halves_of_64_bits_count():
    x = np.arange(4, dtype=np.int64)
    assert checksum(x) != checksum(x + (1 << 40))
    with jax.enable_x64(True):
        on_device = checksum(jnp.asarray(x))
    assert on_device == checksum(x)

"""Which products run by block: by the table, on request, or by measuring."""

import jax
import jax.numpy as jnp
import pytest

import sparseopt_jax as so
from sparseopt_jax.compute import crossover, measuring
from sparseopt_jax.compute.dispatch import Dispatch
from sparseopt_jax.compute.kernel_products import BlockShape
from tests.helpers.compact_kernels import compact


def _shape(extent, sparsity, samples=128):
    blocks = 1024 // extent
    active = round((1 - sparsity) * blocks**2)
    return BlockShape((extent, extent), (blocks, blocks), active, samples)


@pytest.mark.parametrize(
    ("shape", "pays"),
    [
        (_shape(64, 0.9), True),
        (_shape(32, 0.8), True),
        (_shape(32, 0.5), False),
        (_shape(32, 0.5, samples=16), True),
        (_shape(16, 0.8), False),
        (_shape(8, 0.99), False),
        (_shape(128, 0.5)._replace(block=(128, 16)), False),
    ],
)
def test_the_table(shape, pays):
    assert crossover.pays(shape) == pays
    assert Dispatch("auto", measure=False).by_block("", shape, jnp.float32) == pays
    assert Dispatch("block", measure=False).by_block("", shape, jnp.float32)
    assert not Dispatch("dense", measure=False).by_block("", shape, jnp.float32)


def test_both_ways_are_timed_once_for_a_shape():
    shape = BlockShape((16, 16), (2, 2), 1, 4)
    times = measuring.times(shape, jnp.float32)
    assert all(seconds > 0 for seconds in times)
    assert measuring.times(shape, jnp.float32) is times


@pytest.mark.parametrize("by_block", [True, False])
def test_the_faster_one_is_kept(monkeypatch, by_block):
    asked = []

    def times(shape, dtype):
        asked.append((shape, dtype))
        return (1.0, 2.0) if by_block else (2.0, 1.0)

    monkeypatch.setattr(measuring, "times", times)
    kernel = compact(jnp.ones((64, 96)), (16, 32), 5)
    apply_fn = so.sparse_apply(lambda kernel, x: x @ kernel, measure=True)
    program = jax.jit(apply_fn).lower(kernel, jnp.ones((8, 64))).as_text()
    # The dense array is made from the blocks only if that is faster.
    assert ("tensor<64x96xf32>" in program) == (not by_block)
    assert asked == [(BlockShape((16, 32), (4, 3), 5, 8), jnp.float32)]


def test_processes_must_not_measure_apart(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    dispatch = Dispatch("auto", measure=True)
    with pytest.raises(ValueError, match="different programs"):
        dispatch.by_block("kernel", _shape(64, 0.9), jnp.float32)

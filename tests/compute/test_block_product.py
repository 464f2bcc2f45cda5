"""The product by block equals the dense one, forward and backward, in all its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.compute import block_product as module
from sparseopt_jax.compute.block_product import Options, Places, block_product

ROWS, COLUMNS, BLOCK, ACTIVE = 3, 5, (16, 32), 7


def _operands(samples=12, dtype=jnp.float32):
    random = np.random.default_rng(0)
    places = random.permutation(ROWS * COLUMNS)[:ACTIVE]
    rows, columns = np.divmod(places.astype(np.int32), COLUMNS)
    blocks = jnp.asarray(random.normal(size=(ACTIVE, *BLOCK)), dtype)
    x = jnp.asarray(random.normal(size=(samples, ROWS, BLOCK[0])), dtype)
    return x, blocks, Places(jnp.asarray(rows), jnp.asarray(columns))


def _dense(x, blocks, places):
    whole = jnp.zeros((ROWS, COLUMNS, *BLOCK), blocks.dtype)
    whole = whole.at[places.rows, places.columns].set(blocks)
    return jnp.einsum("srb,rcbd->scd", x, whole, preferred_element_type=jnp.float32)


def _by_block(x, blocks, places, dtype=None):
    return block_product(x, blocks, places, Options(COLUMNS, dtype or x.dtype))


def _with_gradients(product, x, blocks, places):
    y, transposed = jax.vjp(lambda x, blocks: product(x, blocks, places), x, blocks)
    return y, *transposed(jnp.sin(y))


@pytest.mark.parametrize("bound", [2**30, 2**12])
def test_product_and_gradients_are_the_dense_ones(monkeypatch, bound):
    monkeypatch.setattr(module, "_GATHERED_BYTES", {"cpu": bound})
    monkeypatch.setattr(module, "_FEWEST_SAMPLES", 2)
    operands = _operands()
    assert (module._parts(*operands[:2]) > 1) == (bound == 2**12)
    found = _with_gradients(_by_block, *operands)
    expected = _with_gradients(_dense, *operands)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_sums_of_bfloat16_are_in_float32():
    x, blocks, places = _operands(dtype=jnp.bfloat16)
    found = _by_block(x, blocks, places, jnp.float32)
    expected = _dense(x.astype(jnp.float32), blocks.astype(jnp.float32), places)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    y, dx, d_blocks = _with_gradients(_by_block, x, blocks, places)
    assert y.dtype == dx.dtype == d_blocks.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))


def test_columns_without_blocks_are_zero():
    x, blocks, places = _operands()
    y = _by_block(x, blocks, Places(places.rows, jnp.zeros_like(places.columns)))
    assert not np.any(y[:, 1:]) and np.any(y[:, 0])


def test_the_inputs_alone_are_kept_for_the_gradients():
    x, blocks, places = _operands()
    _, transposed = jax.vjp(lambda x, b: _by_block(x, b, places), x, blocks)
    kept = {np.shape(leaf) for leaf in jax.tree.leaves(transposed)}
    assert kept == {x.shape, blocks.shape, places.rows.shape}


@pytest.mark.parametrize(
    ("samples", "wanted"), [(12, 4), (14, 7), (13, 1), (9, 3), (1, 1)]
)
def test_parts_divide_the_samples(monkeypatch, samples, wanted):
    monkeypatch.setattr(module, "_FEWEST_SAMPLES", 2)
    x, blocks, _ = _operands(samples)
    monkeypatch.setattr(
        module, "_GATHERED_BYTES", {"cpu": samples * ACTIVE * BLOCK[1] * 4 // 4 + 1}
    )
    assert module._parts(x, blocks) == wanted


def test_hessian_vector_products_go_forward_over_reverse():
    x, blocks, places = _operands()

    def loss(product):
        return lambda blocks: jnp.sum(jnp.sin(product(x, blocks, places)))

    found, expected = (
        jax.jvp(jax.grad(loss(product)), (blocks,), (blocks,))[1]
        for product in (_by_block, _dense)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_seeds_side_by_side():
    operands = _operands()
    two = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), operands)
    found = jax.vmap(_by_block)(*two)
    np.testing.assert_allclose(
        found[1], _by_block(*jax.tree.map(lambda a: a[::-1], operands)), rtol=1e-6
    )

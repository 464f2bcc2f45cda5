"""The same product by block in every module library, with its own way of calling."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparseopt_jax as so
from tests.helpers.compact_kernels import (
    assert_same_gradients,
    compact,
    compacted,
    dense,
)

BLOCK = (16, 16)


def _draw(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def _assert_same(apply_fn, params, x):
    def loss(params):
        return jnp.sum(jnp.sin(so.sparse_apply(apply_fn, by="block")(params, x)))

    step = jax.jit(jax.value_and_grad(loss))
    found, grads = step(params)
    expected, dense_grads = step(dense(params))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(grads, dense_grads, params)


def test_equinox():
    model = eqx.nn.MLP(32, 16, 48, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    blocks = {"*0/weight": (BLOCK, 3), "*1/weight": (BLOCK, 2)}
    params = compacted(params, blocks)
    _assert_same(
        lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, _draw(4, 32)
    )
    # With functions and other leaves that are not arrays among the parameters.
    model = compacted(model, blocks)
    apply_fn = so.sparse_apply(lambda model, x: jax.vmap(model)(x))
    y = apply_fn(model, _draw(4, 32))
    np.testing.assert_allclose(y, jax.vmap(dense(model))(_draw(4, 32)), atol=1e-5)


def test_haiku():
    model = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([48, 16], activation=jnp.tanh)(x))
    )
    params = model.init(jax.random.key(0), _draw(4, 32))
    params = compacted(params, {"*linear_0/w": (BLOCK, 3), "*linear_1/w": (BLOCK, 2)})
    _assert_same(model.apply, params, _draw(4, 32))


class Net(nnx.Module):
    """With batch statistics and dropout, whose counters change in a call."""

    def __init__(self, rngs):
        self.first = nnx.Linear(32, 48, rngs=rngs)
        self.norm = nnx.BatchNorm(48, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(48, 16, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))


def _net():
    model = Net(nnx.Rngs(0))
    blocks = {"first/kernel": (BLOCK, 3), "last/kernel": (BLOCK, 2)}
    return model, compacted(nnx.as_pure(nnx.state(model, nnx.Param)), blocks)


def test_nnx_in_place():
    model, params = _net()
    reference, _ = _net()
    nnx.update(reference, dense(params))
    nnx.update(model, params)
    x = _draw(6, 32)

    @nnx.jit
    def step(model):
        def loss(model):
            return jnp.sum(jnp.sin(so.nnx.sparse_model(model, by="block")(x)))

        return nnx.value_and_grad(loss)(model)

    (found, grads), (expected, dense_grads) = step(model), step(reference)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(nnx.as_pure(grads), nnx.as_pure(dense_grads), params)
    changed, as_dense = (
        jax.tree.leaves(nnx.state(net, nnx.Not(nnx.Param)))
        for net in (model, reference)
    )
    for a, b in zip(changed, as_dense, strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert int(model.dropout.rngs.count[...]) == 1


def test_nnx_as_functions():
    model, params = _net()
    model.eval()
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    _assert_same(
        lambda params, x: nnx.merge(graphdef, params, rest)(x), params, _draw(6, 32)
    )


def test_only_models_are_taken():
    with pytest.raises(TypeError, match="model must be an"):
        so.nnx.sparse_model(compact(_draw(32, 32), BLOCK, 2))  # pyright: ignore

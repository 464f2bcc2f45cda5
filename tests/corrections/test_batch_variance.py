"""The correction from running variances."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparseopt_jax as so

KEY = jax.random.key(0)
LINKS = {"Dense_0/kernel": "BatchNorm_0"}
MASK = jnp.arange(8)[:, None] < jnp.array([1, 2, 4, 8])


def grads(shape=(8, 4)):
    return {"Dense_0": {"kernel": jax.random.normal(KEY, shape), "bias": jnp.ones(4)}}


def stats(var):
    var = jnp.asarray(var, jnp.float32)
    return {"BatchNorm_0": {"mean": jnp.zeros_like(var), "var": var}}


def scaled(updates, batch_stats, links=LINKS, **kwargs):
    tx = so.scale_by_batch_variance(links, **kwargs)
    updates, _ = tx.update(updates, tx.init(updates), batch_stats=batch_stats)
    return updates


def test_is_the_fan_in_form_where_variances_follow_densities():
    topology = so.static(masks={"Dense_0": {"kernel": MASK, "bias": None}})
    density = MASK.sum(0) / 8
    params = jax.tree.map(jnp.zeros_like, grads())
    results = []
    for inner in (so.scale_by_sparseopt(), so.scale_by_batch_variance(LINKS, eps=0.0)):
        tx = so.sparsify(inner, topology)
        updates, _ = tx.update(
            grads(), tx.init(params), params, batch_stats=stats(3.7 * density)
        )
        results.append(updates["Dense_0"]["kernel"])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    assert not np.allclose(results[0], grads()["Dense_0"]["kernel"] * MASK, rtol=0.1)


def test_equals_a_loop_over_neurons_with_epsilon():
    var = np.array([0.5, 2.0, 0.0, 9.0])
    result = scaled(grads(), stats(var), eps=1e-2)["Dense_0"]["kernel"]
    for i in range(4):
        factor = np.sqrt(var[i] + 1e-2) / np.sqrt(var.mean() + 1e-2)
        np.testing.assert_allclose(
            result[:, i], factor * grads()["Dense_0"]["kernel"][:, i], rtol=1e-6
        )


def test_is_the_identity_at_initialisation_and_passes_what_has_no_link():
    updates = scaled(grads(), stats(jnp.ones(4)))
    np.testing.assert_array_equal(
        updates["Dense_0"]["kernel"], grads()["Dense_0"]["kernel"]
    )
    updates = scaled(grads(), stats(jnp.arange(4.0)))
    np.testing.assert_array_equal(updates["Dense_0"]["bias"], 1.0)


def test_passes_kernels_that_are_dense_inside_sparsify():
    params = {"Dense_0": grads()["Dense_0"], "Dense_1": {"kernel": jnp.ones((4, 4))}}
    topology = so.static(0.5, where=lambda path, _: path.startswith("Dense_1"))
    tx = so.sparsify(so.scale_by_batch_variance(LINKS), topology)
    updates, _ = tx.update(
        params, tx.init(params), params, batch_stats=stats(jnp.arange(4.0))
    )
    np.testing.assert_array_equal(
        updates["Dense_0"]["kernel"], params["Dense_0"]["kernel"]
    )


def test_several_output_axes_and_stacks():
    heads = {"Dense_0": {"kernel": jax.random.normal(KEY, (5, 2, 3))}}
    var = jnp.arange(1.0, 7.0)
    factor = (jnp.sqrt(var) / jnp.sqrt(var.mean())).reshape(2, 3)
    for shape in ((6,), (2, 3)):
        result = scaled(
            heads, stats(var.reshape(shape)), eps=0.0, dims=so.NeuronDims(0, (1, 2))
        )
        np.testing.assert_allclose(
            result["Dense_0"]["kernel"], heads["Dense_0"]["kernel"] * factor, rtol=1e-6
        )
    stack = {"Dense_0": {"kernel": jnp.ones((2, 5, 3))}}
    var = var.reshape(2, 3)
    result = scaled(stack, stats(var), eps=0.0, dims=so.NeuronDims(1, 2))
    expected = jnp.sqrt(var / var.mean(1, keepdims=True))
    np.testing.assert_allclose(result["Dense_0"]["kernel"][:, 0], expected, rtol=1e-6)


def test_reads_an_nnx_state():
    model = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    model.var[...] = jnp.array([1.0, 2.0, 3.0, 4.0])
    state = nnx.state({"BatchNorm_0": model}, nnx.BatchStat)
    plain = scaled(grads(), stats([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(
        scaled(grads(), state)["Dense_0"]["kernel"], plain["Dense_0"]["kernel"]
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_the_type(dtype):
    updates = jax.tree.map(lambda x: x.astype(dtype), grads())
    result = scaled(updates, stats(jnp.arange(4.0)))
    assert result["Dense_0"]["kernel"].dtype == dtype


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="links must be a mapping"):
        so.scale_by_batch_variance([("a", "b")])
    with pytest.raises(TypeError, match="links must be a mapping"):
        so.scale_by_batch_variance({"a": 1})
    with pytest.raises(ValueError, match="at least one kernel"):
        so.scale_by_batch_variance({})
    with pytest.raises(ValueError, match="eps must be at least 0, got -1"):
        so.scale_by_batch_variance(LINKS, eps=-1.0)
    with pytest.raises(
        ValueError, match=r"'b/kernel', which is not a parameter.*Dense_0/k"
    ):
        so.scale_by_batch_variance({"b/kernel": "BatchNorm_0"}).init(grads())
    with pytest.raises(ValueError, match="batch_stats=batch_stats"):
        scaled(grads(), None)
    with pytest.raises(ValueError, match=r"no 'BatchNorm_1/var'.*are BatchNorm_0"):
        scaled(grads(), stats(jnp.ones(4)), {"Dense_0/kernel": "BatchNorm_1"})
    with pytest.raises(
        ValueError, match=r"variances of shape \(5,\).*neurons of shape"
    ):
        scaled(grads(), stats(jnp.ones(5)))
    with pytest.raises(ValueError, match=r"'Dense_0/bias' of shape .4,., which has no"):
        scaled(grads(), stats(jnp.ones(4)), {"Dense_0/bias": "BatchNorm_0"})


def test_chains_behind_adam():
    inner = optax.chain(optax.scale_by_adam(), so.scale_by_batch_variance(LINKS))
    params = grads()
    state = inner.init(params)
    updates, _ = inner.update(params, state, params, batch_stats=stats(jnp.arange(4.0)))
    sizes = np.abs(np.asarray(updates["Dense_0"]["kernel"])).mean(0)
    np.testing.assert_allclose(sizes, np.sqrt(np.arange(4) / 1.5), atol=3e-3)

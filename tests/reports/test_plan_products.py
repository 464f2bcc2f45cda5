"""The plan's note on products that can run by block."""

import jax.numpy as jnp
import pytest

import sparseopt_jax as so

KERNELS = {"a": (64, 128), "b": (128, 128), "c": (128, 64), "d": (64, 64), "e": (8, 8)}


@pytest.fixture(scope="module")
def params():
    return {name: {"kernel": jnp.ones(shape)} for name, shape in KERNELS.items()}


@pytest.fixture(scope="module")
def topology():
    blocks = {"a/*": (32, 64), "b/*": (32, 32), "c/*": (16, 16), "d/*": (32, 32)}
    structure = {path: so.Block(shape) for path, shape in blocks.items()}
    return so.static(0.75, distribution="uniform", structure=structure)


def _apply(params, samples):
    x = jnp.ones((samples, 64)) @ params["a"]["kernel"]
    x = x @ (2 * params["b"]["kernel"])
    return x @ params["c"]["kernel"]


def test_without_the_model_the_table_speaks_for_many_samples(params, topology):
    plan = so.plan(params, topology)
    assert plan.products == {
        "a/kernel": "dense, because block 32x64 at 0.75 does not pay here",
        "b/kernel": "dense, because block 32 at 0.75 does not pay here",
        "c/kernel": "dense, because block 16 at 0.75 does not pay here",
        "d/kernel": "dense, because block 32 at 0.75 does not pay here",
    }
    assert "compact products" in str(plan) and "so.sparse_apply" in str(plan)


def test_the_model_is_asked_before_training(params, topology):
    plan = so.plan(params, topology, apply_fn=lambda params: _apply(params, 16))
    assert plan.products == {
        "a/kernel": "by block",
        "b/kernel": "refused: passes through mul",
        "c/kernel": "by block",
        "d/kernel": "not used by apply_fn",
    }


def test_products_of_one_kernel_may_differ(params, topology):
    def apply_fn(params):
        return _apply(params, 16)[0, 0] + _apply(params, 512)[0, 0]

    plan = so.plan(params, topology, apply_fn=apply_fn)
    assert plan.products["a/kernel"] == (
        "1 of 2 dense, because block 32x64 at 0.75 does not pay here"
    )


def test_other_structures_are_not_spoken_of(params):
    plan = so.plan(params, so.static(0.5))
    assert not plan.products and "compact" not in str(plan)

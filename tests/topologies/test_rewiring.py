"""Arguments of a composed topology, and what its construction refuses."""

import jax.numpy as jnp
import pytest

import sparseopt_jax as so


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.2, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [so.static, lambda s: so.rigl(s, every=1, stop=2)])
def test_sparsity_out_of_range(make, sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        make(sparsity)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"sparsity": None}, ValueError, "sparsity must be given"),
        ({"sparsity": "high"}, TypeError, "sparsity must be a number, got 'high'"),
        ({"distribution": "erk"}, ValueError, "erdos_renyi_kernel, uniform, got 'erk'"),
        ({"distribution": 3}, TypeError, "distribution must be a name"),
        ({"distribution": {"a": 1.0}}, ValueError, r"distribution\['a'\] must be in"),
        ({"where": "kernel"}, TypeError, "where must be a function"),
        ({"dims": (0, 1)}, TypeError, "dims must be None, a NeuronDims"),
        ({"masks": {"a": jnp.ones(3)}}, ValueError, "'a' holds float32"),
    ],
)
def test_bad_arguments_are_named_at_construction(kwargs, error, message):
    with pytest.raises(error, match=message):
        so.static(**({"sparsity": 0.5} | kwargs))

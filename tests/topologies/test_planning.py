"""What a topology decides about leaves, and which leaves do not fit."""

import jax.numpy as jnp
import optax
import pytest

import sparseopt_jax as so

PARAMS = {"a": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}


@pytest.mark.parametrize(
    ("topology", "params", "message"),
    [
        (so.static(0.99), PARAMS, "'a/kernel' 0 of 16 weights"),
        (
            so.static(0.5),
            {"bias": jnp.ones(3)},
            "no parameter can be made sparse.*bias",
        ),
        (so.static(0.5, where=lambda path, _: False), PARAMS, "excluded by where"),
        (so.static(0.5, distribution={"b/*": 0.5}), PARAMS, r"'b/\*' matches no leaf"),
        (so.static(0.5, dims={"b": so.NeuronDims()}), PARAMS, "dims: the pattern 'b'"),
        (
            so.static(0.5, dims={"a/kernel": so.NeuronDims(0, 2)}),
            PARAMS,
            "exceeds the rank of 'a/kernel'",
        ),
        (
            so.static(masks={"a": {"kernel": jnp.ones((2, 2), bool), "bias": None}}),
            PARAMS,
            r"at 'a/kernel' has shape \(2, 2\), its parameter \(4, 4\)",
        ),
        (
            so.static(masks={"b": {"kernel": jnp.ones((4, 4), bool), "bias": None}}),
            PARAMS,
            "structure of the parameters.*b/kernel.*a/kernel",
        ),
        (
            so.static(masks={"a": {"kernel": None, "bias": None}}),
            PARAMS,
            "no bool array",
        ),
        (
            so.static(masks={"a": jnp.ones(3, bool)}),
            {"a": jnp.ones(3, jnp.int32)},
            "parameter of dtype int32",
        ),
    ],
)
def test_what_does_not_fit_the_parameters_fails_at_init(topology, params, message):
    with pytest.raises(ValueError, match=message):
        so.sparsify(optax.sgd(0.1), topology).init(params)


def test_a_glob_of_dims_passes_over_leaves_that_stay_dense():
    params = {
        "stack": {
            "kernel": jnp.ones((3, 4, 5)),
            "bias": jnp.ones((3, 5)),
            "gate": jnp.ones((4, 5)),
            "steps": jnp.ones(3),
        }
    }
    dims = {"stack/*": so.NeuronDims(1, 2)}
    topology = so.static(0.5, dims=dims, where=lambda path, x: "gate" not in path)
    plans = {plan.path: plan for plan in topology.leaves(params)}
    assert plans["stack/kernel"].axes == ((0,), (1,), (2,))
    assert [path for path, plan in plans.items() if plan.layer] == ["stack/kernel"]
    with pytest.raises(ValueError, match="exceeds the rank of 'stack/gate'"):
        so.static(0.5, dims=dims).leaves(params)
    with pytest.raises(ValueError, match=r"the pattern 'stack/\*' fits no leaf"):
        so.static(0.5, dims={"stack/*": so.NeuronDims(1, 3)}).leaves(params)

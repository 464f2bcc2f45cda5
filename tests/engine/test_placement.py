"""A warning is raised for a correction that a later normalisation cancels."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import sparseopt_jax as so

TOPOLOGY = so.static(0.9)
CORRECTION = so.scale_by_sparseopt()
LINKS = {"Dense_0/kernel": "BatchNorm_0"}


def labels(params):
    return jax.tree.map(lambda _: "a", params)


def adam_of_a_user():
    def scale_by_my_adam():
        def update_fn(updates, state, params=None):
            return jax.tree.map(jnp.sign, updates), state

        return optax.GradientTransformation(lambda params: (), update_fn)

    return scale_by_my_adam()


NORMALISING = {
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(1e-3),
    "adafactor": optax.adafactor(1e-3),
    "adagrad": optax.adagrad(1e-3),
    "adamax": optax.adamax(1e-3),
    "amsgrad": optax.amsgrad(1e-3),
    "lamb": optax.lamb(1e-3),
    "lion": optax.lion(1e-3),
    "nadam": optax.nadam(1e-3),
    "novograd": optax.novograd(1e-3),
    "radam": optax.radam(1e-3),
    "rmsprop": optax.rmsprop(1e-3),
    "rprop": optax.rprop(1e-3),
    "sign_sgd": optax.sign_sgd(1e-3),
    "yogi": optax.yogi(1e-3),
    "muon": optax.contrib.muon(1e-3),
    "prodigy": optax.contrib.prodigy(1e-3),
    "local_adam": so.scale_by_local_adam(),
    "masked": optax.masked(optax.adam(1e-3), True),
    "partition": optax.partition({"a": optax.adam(1e-3), "b": optax.sgd(1)}, labels),
    "inject": optax.inject_hyperparams(optax.adam)(1e-3),
    "named": optax.named_chain(("clip", optax.clip(1)), ("adam", optax.adam(1e-3))),
    "finite": optax.apply_if_finite(optax.adam(1e-3), 3),
    "schedule_free": optax.contrib.schedule_free(optax.adam(1e-3), 1e-3),
    "ham": so.ham(optax.adam(1e-3), 1e-3),
    "then_scaled": optax.chain(optax.adam(1e-3), optax.scale(0.5)),
    "of_a_user": adam_of_a_user(),
}


@pytest.mark.parametrize("name", NORMALISING)
def test_a_correction_before_a_normalisation_warns(name):
    inner = optax.chain(CORRECTION, optax.clip(1.0), NORMALISING[name])
    with pytest.warns(UserWarning, match=r"scale_by_sparseopt before \w+ has"):
        so.sparsify(inner, TOPOLOGY)


@pytest.mark.parametrize(
    "inner",
    [
        optax.named_chain(("so", CORRECTION), ("adam", optax.adam(1e-3))),
        optax.chain(optax.chain(CORRECTION), optax.chain(optax.adam(1e-3))),
        optax.chain(optax.masked(CORRECTION, True), optax.adam(1e-3)),
        optax.masked(optax.chain(CORRECTION, optax.adam(1e-3)), True),
        optax.partition(
            {"a": optax.chain(CORRECTION, optax.adam(1e-3)), "b": optax.sgd(1)}, labels
        ),
        optax.chain(
            optax.partition({"a": CORRECTION, "b": optax.identity()}, labels),
            optax.scale_by_adam(),
        ),
    ],
)
def test_both_are_found_in_any_nest(inner):
    with pytest.warns(UserWarning, match="scale_by_sparseopt before scale_by_adam has"):
        so.sparsify(inner, TOPOLOGY)


@pytest.mark.parametrize("options", [{"packed": True}, {"host_updates": True}])
def test_every_form_of_sparsify_warns_of_its_caller(options):
    with pytest.warns(UserWarning, match=r"so\.sparse_adamw") as caught:
        so.sparsify(optax.chain(CORRECTION, optax.adam(1e-3)), TOPOLOGY, **options)
    assert [warning.filename for warning in caught] == [__file__]


def test_batch_variance_is_a_correction():
    inner = optax.chain(so.scale_by_batch_variance(LINKS), optax.adam(1e-3))
    with pytest.warns(UserWarning, match="scale_by_batch_variance before"):
        so.sparsify(inner, TOPOLOGY)


@pytest.mark.parametrize(
    "inner",
    [
        optax.chain(CORRECTION, optax.sgd(0.1, momentum=0.9)),
        optax.chain(CORRECTION, optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        optax.chain(CORRECTION, so.ham(optax.sgd(0.1), 0.1)),
        optax.chain(CORRECTION, so.sign_in(optax.sgd(0.1), every=10)),
        optax.chain(CORRECTION, optax.lars(0.1)),
        optax.chain(CORRECTION, optax.contrib.normalize(), optax.sgd(0.1)),
        optax.chain(optax.scale_by_adam(), CORRECTION, optax.scale(-1e-3)),
        optax.chain(optax.adam(1e-3), CORRECTION),
        optax.partition({"a": CORRECTION, "b": optax.adam(1e-3)}, labels),
        # HAM's multiplicative step uses the first, Adam's step the second.
        optax.chain(
            CORRECTION,
            so.ham(optax.chain(optax.scale_by_adam(), CORRECTION, optax.scale(-1)), 1),
        ),
    ],
)
def test_what_is_well_placed_does_not_warn(inner):
    so.sparsify(inner, TOPOLOGY)


@pytest.mark.parametrize(
    "optimizer", [so.sparse_sgd, so.sparse_adamw, so.sparse_lars, so.sparse_lamb]
)
def test_ready_made_optimizers_do_not_warn(optimizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer(0.1, TOPOLOGY, sparseopt=True)

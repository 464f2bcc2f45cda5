"""Finished transformations are read: their parts, in order, by name."""

import functools

import jax
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.tracing.transformation_links import links, read

ADAM = optax.adam(1e-3)
ADAM_LINKS = ["scale_by_adam", "scale"]
COSINE = optax.cosine_decay_schedule(0.1, 1000)


def labels(params):
    return jax.tree.map(lambda _: "all", params)


def names(tx):
    return [link.name for link in links(tx)]


def wrapper_of_a_user(inner):
    def update_fn(updates, state, params=None):
        updates, state = inner.update(updates, state, params)
        return jax.tree.map(lambda u: 0.5 * u, updates), state

    return optax.GradientTransformation(inner.init, update_fn)


@pytest.mark.parametrize(
    "tx",
    [
        optax.with_extra_args_support(ADAM),
        optax.named_chain(("adam", ADAM)),
        optax.masked(ADAM, True),
        optax.partition({"all": ADAM}, labels),
        optax.inject_hyperparams(optax.adam)(1e-3),
        optax.MultiSteps(ADAM, 2),
        optax.MultiSteps(ADAM, 2).gradient_transformation(),
        optax.chain(optax.MultiSteps(ADAM, 2).gradient_transformation()),
        optax.apply_if_finite(ADAM, 3),
        optax.contrib.schedule_free(ADAM, 1e-3),
        optax.lookahead(ADAM, 2, 0.5),
        optax.conditionally_mask(ADAM, lambda step, **_: jax.numpy.asarray(step) > 3),
        optax.contrib.mechanize(ADAM),
        so.ham(ADAM, 1e-3),
        so.sign_in(ADAM, every=10),
        so.sparsify(ADAM, so.static(0.9)),
        so.sparsify(ADAM, so.static(0.9), packed=True),
        so.sparsify(ADAM, so.static(0.9), compact=True),
        so.sparsify(ADAM, so.ste(0.9)),
        wrapper_of_a_user(ADAM),
        optax.GradientTransformation(ADAM.init, jax.jit(ADAM.update)),
        optax.GradientTransformation(ADAM.init, functools.partial(ADAM.update)),
        optax.masked(optax.apply_if_finite(optax.chain(ADAM), 3), True),
    ],
)
def test_wrappers_are_looked_through(tx):
    assert names(tx) == ADAM_LINKS


def test_links_are_in_the_order_in_which_they_work():
    tx = optax.chain(
        optax.clip(1.0),
        optax.named_chain(("decay", optax.add_decayed_weights(0.1)), ("adam", ADAM)),
        so.scale_by_sparseopt(),
    )
    expected = ["clip", "add_decayed_weights", *ADAM_LINKS, "scale_by_sparseopt"]
    assert names(tx) == expected


def test_only_chains_work_in_turn():
    tx = optax.partition({"a": ADAM, "b": optax.chain(ADAM)}, labels)
    assert not read(tx).in_turn
    assert [part.in_turn for part in read(tx).parts] == [True, True]


def test_scheduled_hyperparameters_are_those_of_the_first_step():
    tx = optax.inject_hyperparams(optax.adamw)(COSINE, weight_decay=0.2)
    adam, decay, scale = links(tx)
    assert (adam.name, decay.name, scale.name) == (
        *("scale_by_adam", "add_decayed_weights"),
        "scale",
    )
    assert scale.variables["step_size"] == pytest.approx(-0.1)
    assert decay.variables["weight_decay"] == 0.2


def test_every_link_can_be_run():
    params = {"kernel": jax.numpy.ones((2, 3))}
    for link in links(optax.chain(optax.sgd(0.1, momentum=0.9), ADAM)):
        link.update(params, link.init(params), params)


def test_a_topology_is_not_a_transformation():
    assert names(so.sparsify(optax.sgd(0.1), so.static(0.9))) == ["identity", "scale"]


def test_a_function_that_wraps_another_is_not_taken_for_it():
    @functools.wraps(ADAM.update)
    def halved(updates, state, params=None):
        return ADAM.update(updates, state, params)

    link = read(optax.GradientTransformation(ADAM.init, halved))
    assert link.update is halved and not link.in_turn

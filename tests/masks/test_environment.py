"""What an owner of masks passes on, and to whom: those that ask, and nobody else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.masks import environment

PARAMS = {"kernel": jnp.arange(1.0, 33.0).reshape(4, 8)}


def naming():
    def update(updates, state, params=None, *, masks=None, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda u, m: jnp.where(m, u, 7.0), updates, masks), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def strict(seen):
    def update(updates, state, params=None, *, temperature):
        del params
        seen.append(temperature)
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def catching(seen):
    def update(updates, state, params=None, **extra_args):
        del params
        seen.append(sorted(extra_args))
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def factory(learning_rate):
    return optax.chain(naming(), optax.sgd(learning_rate))


@pytest.mark.parametrize(
    ("inner", "names"),
    [
        (lambda: optax.adam(0.1), set()),
        (naming, {"masks"}),
        (lambda: optax.chain(optax.clip(1.0), naming()), {"masks"}),
        (lambda: optax.masked(naming(), True), {"masks"}),
        (lambda: optax.inject_hyperparams(factory)(0.1), {"masks"}),
        (lambda: optax.apply_if_finite(naming(), 1), {"masks"}),
        (lambda: optax.partition({"all": naming()}, "all"), {"masks"}),
        (lambda: so.scale_by_sparseopt(), set()),
        (lambda: so.ham(optax.sgd(0.1), 0.1), set()),
        (optax.lbfgs, set()),
    ],
)
def test_named_by(inner, names):
    assert environment.named_by(inner()) == names


@pytest.mark.parametrize("form", [{}, {"compact": True}, {"packed": True}])
def test_only_what_the_caller_passes_reaches_others(form):
    seen = []
    tx = so.sparsify(catching(seen), so.rigl(0.5, every=1, stop=9), **form)
    state = tx.init(PARAMS)
    seen.clear()
    tx.update(PARAMS, state, PARAMS, temperature=2.0)
    assert seen == [["temperature"]]


def test_one_that_rejects_unknown_arguments_works_beside_ours():
    seen = []
    inner = optax.chain(so.scale_by_sparseopt(), strict(seen), optax.sgd(0.1))
    tx = so.sparsify(inner, so.static(0.5))
    state = tx.init(PARAMS)
    updates, _ = tx.update(PARAMS, state, PARAMS, temperature=2.0)
    alone = so.sparsify(
        optax.chain(so.scale_by_sparseopt(), optax.sgd(0.1)), so.static(0.5)
    )
    expected, _ = alone.update(PARAMS, alone.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["kernel"], expected["kernel"])
    assert seen == [2.0]


def test_masks_of_the_next_update_reach_one_that_is_compiled_by_itself():
    ours = so.scale_by_sparseopt()
    compiled = optax.GradientTransformationExtraArgs(ours.init, jax.jit(ours.update))
    topology = so.rigl(0.5, every=1, stop=9)
    found = []
    for inner in (ours, compiled):
        tx = so.sparsify(optax.chain(inner, optax.sgd(0.1)), topology)
        state = tx.init(PARAMS)
        params = so.apply_masks(PARAMS, state)
        for step in range(4):
            grads = jax.tree.map(lambda p, step=step: jnp.sin(p + step), PARAMS)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        found.append(params["kernel"])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_ours_outside_of_an_owner_are_told_nothing():
    with pytest.raises(ValueError, match="found no masks"):
        so.scale_by_sparseopt().update(PARAMS, optax.EmptyState(), PARAMS)


class TestRefused:
    @pytest.mark.parametrize(
        ("inner", "message"),
        [
            (lambda: optax.sgd, r"inner must be a transformation .* optax.sgd\(0.1\)"),
            (lambda: optax.MultiSteps(optax.sgd(0.1), 2), "MultiSteps: put it outside"),
            (
                lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
                "MultiSteps: put it outside",
            ),
            (
                lambda: optax.chain(
                    optax.clip(1.0),
                    optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
                ),
                "MultiSteps: put it outside",
            ),
            (
                lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
                "sam.*opaque_mode=True",
            ),
        ],
    )
    @pytest.mark.parametrize("topology", [so.static(0.5), so.ste(0.5)])
    def test_at_construction(self, inner, message, topology):
        with pytest.raises((TypeError, ValueError), match=message):
            so.sparsify(inner(), topology)

    def test_packed_with_compact(self):
        with pytest.raises(ValueError, match="packed and compact"):
            so.sparsify(optax.sgd(0.1), so.static(0.5), packed=True, compact=True)

    @pytest.mark.parametrize("form", [{}, {"compact": True}])
    @pytest.mark.parametrize("topology", [so.static(0.5), so.ste(0.5)])
    def test_gradients_of_single_examples(self, form, topology):
        if form and topology.name == "ste":
            pytest.skip("ste is not compact")
        tx = so.sparsify(optax.sgd(0.1), topology, **form)
        each = jax.tree.map(lambda p: jnp.stack([p] * 3), PARAMS)
        message = r"'kernel' has shape \(3, 4, 8\).*differentially_private_aggregate"
        with pytest.raises(ValueError, match=message):
            tx.update(each, tx.init(PARAMS), PARAMS)

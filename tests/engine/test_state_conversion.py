"""States that another form of the same optimizer takes over."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.optimizers import SCHEDULE, Moment, gradients, one_step, random_tree
from tests.helpers.optimizers import start as begin

FORMS = {
    "plain": {},
    "packed": {"packed": True},
    "compact": {"compact": True},
    "host": {"host_updates": True},
}
TOPOLOGIES = {
    "static": so.static(0.5),
    "set": so.set_(0.5, track_explored=True, **SCHEDULE),
    "rigl_averaged": so.rigl(0.5, averaged_steps=2, **SCHEDULE),
    "blocks": so.set_(0.5, structure=so.Block(4), **SCHEDULE),
    "n_of_m": so.rigl(structure=so.NM(2, 4, axis=-1), **SCHEDULE),
}
WRAPS = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
}


@functools.cache
def make(topology, form):
    return so.sparsify(optax.adam(0.01), TOPOLOGIES[topology], **FORMS[form])


@functools.cache
def compiled(tx):
    return jax.jit(one_step(tx))


def run(tx, now, steps):
    step = compiled(tx)
    for count in steps:
        now = step(gradients(count), now.params, now.state)
    return now


def assert_same(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        *(one.params, other.params),
    )
    masks = so.get_masks(one.state), so.get_masks(other.state)
    jax.tree.map(np.testing.assert_array_equal, *masks)


@pytest.mark.parametrize(
    "topology",
    [
        *("static", "set"),
        pytest.param("blocks", marks=pytest.mark.slow),
        pytest.param("rigl_averaged", marks=pytest.mark.slow),
        pytest.param("n_of_m", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_in_another_form(topology):
    made = {form: make(topology, form) for form in FORMS}
    # Between the updates at steps 2 and 5, and after the second.
    begun = {f: run(tx, begin(tx, random_tree(0)), range(4)) for f, tx in made.items()}
    whole = run(made["plain"], begun["plain"], range(4, 7))
    for form, other in itertools.permutations(("plain", "packed", "compact"), 2):
        tx = made[other]
        state = so.convert_state(tx, begun[form].params, begun[form].state)
        structure = jax.tree.structure(begun[other].state)
        assert jax.tree.structure(state) == structure
        now = run(tx, begun[form]._replace(state=state), range(4, 7))
        assert_same(now, whole)
    # The host's form has no place for what a step computes.
    state = so.convert_state(made["host"], begun["plain"].params, begun["plain"].state)
    assert jax.tree.structure(state) == jax.tree.structure(begun["host"].state)


@pytest.mark.parametrize("form", ["plain", "packed"])
def test_a_state_of_the_host_does_not_fit_updates_within_the_step(form):
    from_host, tx = make("set", "host"), make("set", form)
    now = begin(from_host, random_tree(0))
    with pytest.raises(ValueError, match=r"host_updates=True.*so\.convert_state\(tx"):
        tx.update(gradients(0), now.state, now.params)
    run(tx, now._replace(state=so.convert_state(tx, now.params, now.state)), range(1))


@pytest.mark.parametrize("wrap", WRAPS)
def test_inside_of_wrappers(wrap):
    plain, compact = (WRAPS[wrap](make("set", form)) for form in ("plain", "compact"))
    now = run(plain, begin(plain, random_tree(0)), range(4))
    state = so.convert_state(compact, now.params, now.state)
    taken = run(compact, now._replace(state=state), range(4, 7))
    assert_same(taken, run(plain, now, range(4, 7)))
    back = so.convert_state(plain, now.params, state)
    jax.tree.map(np.testing.assert_array_equal, so.get_masks(back), so.get_masks(state))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "inner", [optax.adam(0.01), optax.chain(optax.trace(0.9), optax.scale(-0.1))]
)
def test_a_dense_run_becomes_sparse(inner, form):
    params = random_tree(0)
    dense = run(inner, Moment(params, inner.init(params)), range(3))
    tx = so.sparsify(inner, TOPOLOGIES["set"], **FORMS[form])
    state = so.convert_state(tx, dense.params, dense.state)
    sparse = so.apply_masks(dense.params, state)
    masks = so.get_masks(state)
    plain = so.convert_state(
        so.sparsify(inner, TOPOLOGIES["set"]), dense.params, dense.state
    )
    moments = [
        next(
            x for x in jax.tree.leaves(s) if x.shape == (6, 8) and x.dtype == "float32"
        )
        for s in (plain.inner_state, dense.state)
    ]
    mask = masks["dense"]["kernel"]
    np.testing.assert_array_equal(*(m[mask] for m in moments))
    # One more step equals the inner optimizer's with these moments.
    updates, _ = tx.update(gradients(3), state, sparse)
    expected, _ = inner.update(gradients(3), dense.state, sparse)
    np.testing.assert_allclose(
        updates["dense"]["kernel"][mask], expected["dense"]["kernel"][mask], rtol=1e-5
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", [so.rigl, so.set_])
def test_weights_grown_after_a_dense_run_have_no_history(method, form):
    inner = optax.sgd(0.1, momentum=0.9)
    params = random_tree(0)
    dense = run(inner, Moment(params, inner.init(params)), range(2))
    # The first step updates the masks.
    topology = method(0.5, every=3, stop=9, drop_fraction=0.5)
    tx = so.sparsify(inner, topology, **FORMS[form])
    state = so.convert_state(tx, dense.params, dense.state)
    now, before = so.apply_masks(dense.params, state), so.get_masks(state)
    host = form == "host"
    if host and topology.replaces_step:
        state, now = so.update_topology(tx, gradients(2), state, now)
    now = run(tx, Moment(now, state), [2])
    if host and not topology.replaces_step:
        state, params = so.update_topology(tx, gradients(2), now.state, now.params)
        now = Moment(params, state)
    grown = so.get_masks(now.state)["dense"]["kernel"] & ~before["dense"]["kernel"]
    plain = so.convert_state(so.sparsify(inner, topology), now.params, now.state)
    momentum = plain.inner_state[0].trace["dense"]["kernel"]
    assert grown.any()
    assert not momentum[grown].any()


def test_a_line_search_forgets_the_loss_of_a_dense_run():
    inner = optax.scale_by_backtracking_linesearch(4, store_grad=True)
    params = random_tree(0)
    state = inner.init(params)._replace(value=jnp.float32(1.5))
    converted = so.convert_state(so.sparsify(inner, so.static(0.5)), params, state)
    assert jnp.isinf(converted.inner_state.value)


def test_blocks_that_share_a_count():
    topology = so.set_smet(0.5, stop=9, every=3, block=4)
    compact, plain = (so.smet(0.01, topology, compact=c) for c in (True, False))
    now = run(compact, begin(compact, random_tree(0)), range(5))
    there = so.convert_state(plain, now.params, now.state)
    back = so.convert_state(compact, now.params, there)
    for one, other in itertools.pairwise(
        [so.convert_state(plain, now.params, back), there]
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert_same(
        run(plain, now._replace(state=there), range(5, 8)),
        run(compact, now, range(5, 8)),
    )


class TestRefused:
    params = random_tree(0)

    def test_another_optimizer(self):
        tx = so.sparsify(optax.adam(0.01), so.static(0.5))
        other = so.sparsify(optax.sgd(0.01, momentum=0.9), so.static(0.5))
        with pytest.raises(ValueError, match=r"(holds nothing at|nested differently)"):
            so.convert_state(tx, self.params, other.init(self.params))

    def test_a_dense_state_for_a_chain(self):
        tx = optax.chain(so.sparsify(optax.adam(0.01), so.static(0.5)))
        with pytest.raises(ValueError, match="convert before tx"):
            so.convert_state(tx, self.params, optax.adam(0.01).init(self.params))

    def test_numbers_of_another_topology(self):
        state = so.sparsify(optax.adam(0.01), so.static(0.7)).init(self.params)
        tx = so.sparsify(optax.adam(0.01), so.static(0.5), compact=True)
        with pytest.raises(ValueError, match="active units"):
            so.convert_state(tx, self.params, state)

    def test_no_masks_at_all(self):
        tx = optax.adam(0.01)
        with pytest.raises(ValueError, match="no masks found"):
            so.convert_state(tx, self.params, tx.init(self.params))

    def test_forward_masks_for_masks(self):
        state = so.sparsify(optax.adam(0.01), so.ste(0.5)).init(self.params)
        tx = so.sparsify(optax.adam(0.01), so.static(0.5))
        with pytest.raises(ValueError, match="ste"):
            so.convert_state(tx, self.params, state)


def test_under_jit():
    tx = so.sparsify(optax.adam(0.01), so.static(0.5), packed=True)
    plain = so.sparsify(optax.adam(0.01), so.static(0.5))
    params = random_tree(0)
    convert = jax.jit(lambda p, s: so.convert_state(tx, p, s))
    state = plain.init(params)
    assert jnp.array_equal(
        so.get_masks(convert(params, state))["dense"]["kernel"],
        so.get_masks(state)["dense"]["kernel"],
    )

"""Resetting the moments with ``reset_inner``, and messages about lost masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparseopt_jax as so
from sparseopt_jax.masks.state import find_states, is_sparse_state, stays_dense

PARAMS = {
    "a": {"kernel": jnp.linspace(-1, 1, 72).reshape(8, 9), "bias": jnp.ones(9)},
    "b": {"kernel": jnp.linspace(1, 2, 16).reshape(4, 4)},
}
MOVING = so.set_(0.5, every=2, stop=20, track_explored=True)


def sparse(topology=MOVING, **options):
    return so.sparsify(optax.adam(1e-2), topology, **options)


LABELS = {"a": {"kernel": "x", "bias": "z"}, "b": {"kernel": "y"}}

WRAPPED = {
    "plain": sparse,
    "packed": lambda: sparse(packed=True),
    "compact": lambda: sparse(compact=True),
    "ste": lambda: sparse(so.ste(0.5)),
    "packed top_kast": lambda: sparse(
        so.top_kast(0.5, trained_sparsity=0.25), packed=True
    ),
    "host": lambda: sparse(host_updates=True),
    "chain": lambda: optax.chain(optax.clip(1.0), sparse()),
    "MultiSteps": lambda: optax.MultiSteps(sparse(), 2).gradient_transformation(),
    "masked": lambda: optax.masked(
        sparse(), {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
    ),
    "partition": lambda: optax.partition(
        {
            "x": sparse(),
            "y": sparse(so.rigl(0.5, every=2, stop=20)),
            "z": optax.sgd(0.1),
        },
        LABELS,
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda learning_rate: so.sparsify(optax.adam(learning_rate), MOVING)
    )(learning_rate=0.01),
    "smet": lambda: so.smet(0.01, so.set_smet(0.5, stop=1000)),
    "sparse_lamb": lambda: so.sparse_lamb(0.01, MOVING),
}


@functools.cache
def made(form):
    return WRAPPED[form]()


@functools.cache
def trained(tx):
    """Return parameters and state after four steps, and the step."""

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda x: jnp.sin(3 * x), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(PARAMS)
    params = PARAMS if stays_dense(state) else so.apply_masks(PARAMS, state)
    for _ in range(4):
        params, state = step(params, state)
    return params, state, step


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def inner_states(state):
    return [sparse_state.inner_state for sparse_state in find_states(state)]


LATER = ("MultiSteps", "masked", "inject_hyperparams", "packed top_kast")


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[pytest.mark.slow] if form in LATER else [])
        for form in WRAPPED
    ],
)
def test_the_inner_state_is_that_of_a_first_step_and_masks_are_kept(form):
    tx = made(form)
    params, state, step = trained(tx)
    new = so.reset_inner(tx, params, state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    # No inner optimizer here stores the weights.
    first = inner_states(tx.init(PARAMS))
    assert_same(inner_states(new), first)
    before = jax.tree.leaves(inner_states(state))
    after = jax.tree.leaves(inner_states(new))
    assert any((a != b).any() for a, b in zip(before, after, strict=True))

    def without_inner(state):
        return jax.tree.map(
            lambda x: x._replace(inner_state=()) if is_sparse_state(x) else x,
            state,
            is_leaf=is_sparse_state,
        )

    assert_same(without_inner(new), without_inner(state))
    step(params, new)
    assert_same(jax.jit(lambda p, s: so.reset_inner(tx, p, s))(params, state), new)


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compact": True}])
def test_what_an_optimizer_keeps_of_the_weights_is_of_the_present_ones(options):
    copies = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.array, params),
        lambda updates, state, params=None: (updates, state),
    )
    tx = so.sparsify(optax.chain(copies, optax.sgd(0.1)), MOVING, **options)
    params, state, _ = trained(tx)
    other = jax.tree.map(lambda x: x + 1, params)
    kept = so.reset_inner(tx, other, state).inner_state[0]
    expected = so.apply_masks(other, state)
    if options.get("compact"):
        expected = so.compact_gradients(expected, state)
    assert_same(kept, expected)


def test_what_follows_the_sparseopt_link_is_reset():
    tx = optax.chain(so.sparseopt(MOVING), optax.sgd(0.1, momentum=0.9))
    params, state, _ = trained(tx)
    new = so.reset_inner(tx, params, state)
    assert_same(new[0], state[0])
    assert_same(new[1], tx.init(PARAMS)[1])


def test_an_nnx_optimizer_is_reset():
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, sparse(), wrt=nnx.Param)
    so.nnx.mask_model(model, optimizer)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 4))) ** 2))
    optimizer.update(model, grads(model))
    masks = so.get_masks(optimizer)
    assert int(optimizer.opt_state.inner_state[0].count[...]) == 1
    optimizer.opt_state = so.reset_inner(
        optimizer.tx, nnx.state(model, nnx.Param), optimizer.opt_state
    )
    assert int(optimizer.opt_state.inner_state[0].count[...]) == 0
    assert_same(so.get_masks(optimizer), masks)
    optimizer.update(model, grads(model))
    assert int(optimizer.opt_state.inner_state[0].count[...]) == 1


def test_a_state_without_masks_or_of_another_tx_is_told():
    params, state, _ = trained(made("plain"))
    with pytest.raises(ValueError, match=r"no masks found.*sparsify"):
        so.reset_inner(optax.adam(0.1), params, optax.adam(0.1).init(params))
    where = sparse(so.static(0.5, where=lambda path, leaf: path.startswith("a")))
    with pytest.raises(ValueError, match="not made by this tx"):
        so.reset_inner(where, params, state)


# Masks that have been lost.


@pytest.mark.parametrize(
    "form", ["plain", "packed", "compact", "ste", "chain", "masked", "sparse_lamb"]
)
def test_a_step_with_wiped_masks_is_an_error_before_the_weights_are_lost(form):
    tx = made(form)
    params, state, _ = trained(tx)
    wiped = optax.tree.map_params(tx, jnp.zeros_like, state)
    with pytest.raises(ValueError, match=r"no weight of 'a/kernel'.*so\.reset_inner"):
        tx.update(params, wiped, params)
    tx.update(params, so.reset_inner(tx, params, state), params)


def test_one_lost_layer_is_named():
    tx = made("plain")
    params, state, _ = trained(tx)
    masks = {**state.masks, "b": {"kernel": jnp.zeros((4, 4), bool)}}
    with pytest.raises(ValueError, match=r"no weight of 'b/kernel' is active.*set_? "):
        tx.update(params, state._replace(masks=masks), params)


def test_layers_that_are_empty_by_design_train():
    masks = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), PARAMS)
    masks = {**masks, "a": {**masks["a"], "kernel": PARAMS["a"]["kernel"] > 0}}
    masks["a"]["bias"] = optax.MaskedNode()
    try:
        tx = sparse(so.static(masks=masks))
        state = tx.init(PARAMS)
    except ValueError:
        return  # refused when the topology is made
    tx.update(PARAMS, state, PARAMS)
    competing = sparse(
        so.gradual_magnitude(0.9, every=1, start=0, stop=5, scope="global")
    )
    state = competing.init(PARAMS)
    empty = {**state.masks, "b": {"kernel": jnp.zeros((4, 4), bool)}}
    competing.update(PARAMS, state._replace(masks=empty), PARAMS)


def test_under_jit_nothing_is_added():
    tx = made("plain")
    params, state, _ = trained(tx)
    text = str(jax.make_jaxpr(tx.update)(params, state, params))
    assert "_any_of_each" not in text
    # A state that is known while the rest is traced.
    jax.jit(lambda params: tx.update(params, state, params))(params)

"""Optimizers that evaluate the loss themselves, inside sparsify."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

X = jax.random.normal(jax.random.key(0), (32, 8))
PARAMS = {"kernel": jax.random.normal(jax.random.key(3), (8, 4))}
MOVES = {"every": 3, "start": 1, "stop": 60, "drop_fraction": 0.5}


def loss(params):
    return jnp.mean((X @ params["kernel"] - X[:, :4]) ** 2)


INNER = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(
        optax.sgd(0.5), optax.scale_by_backtracking_linesearch(10, store_grad=True)
    ),
    "zoom": lambda: optax.chain(optax.sgd(0.5), optax.scale_by_zoom_linesearch(10)),
    "corrected": lambda: optax.chain(so.scale_by_sparseopt(), optax.lbfgs()),
}
TOPOLOGIES = {
    "static": so.static(0.5),
    "set": so.set_(0.5, **MOVES),
    "rigl": so.rigl(0.5, **MOVES),
}
QUICK = ("lbfgs", "rigl")


# All of them with SET, and one with RigL.
@pytest.mark.parametrize(
    ("inner", "packed", "topology"),
    [
        pytest.param(
            *(inner, packed, topology),
            marks=[]
            if not packed and (topology == "set" or (inner, topology) == QUICK)
            else pytest.mark.slow,
        )
        for inner in INNER
        for packed in (False, True)
        for topology in TOPOLOGIES
    ],
)
def test_they_work_as_optax_documents_them(inner, topology, packed):
    tx = so.sparsify(INNER[inner](), TOPOLOGIES[topology], packed=packed)
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    first = loss(params)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    for _ in range(14):
        params, state = step(params, state)
    assert loss(params) < 0.4 * first
    assert int((params["kernel"] != 0).sum()) <= 16
    inactive = ~so.get_masks(state)["kernel"]
    assert not params["kernel"][inactive].any()


def test_through_a_train_state_that_has_statistics():
    state = so.linen.TrainState.create(
        apply_fn=None,
        params=PARAMS,
        tx=so.sparsify(optax.lbfgs(), TOPOLOGIES["rigl"]),
        batch_stats={"norm": {"var": jnp.ones(4)}},
    )
    first = loss(state.params)

    @jax.jit
    def step(state):
        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(
            grads=grads, value=value, grad=grads, value_fn=loss
        )

    for _ in range(10):
        state = step(state)
    assert loss(state.params) < 0.5 * first


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("topology", ["set", "rigl"])
def test_cached_gradients_are_dense_and_void_after_an_update_of_the_masks(
    topology, host
):
    topology = TOPOLOGIES[topology]
    tx = so.sparsify(INNER["backtracking"](), topology, host_updates=host)
    of_state = optax.value_and_grad_from_state(loss)
    cached_gradient = jax.jit(lambda params, state: of_state(params, state=state))
    gradient = jax.jit(jax.value_and_grad(loss))
    change = jax.jit(functools.partial(so.update_topology, tx))

    @jax.jit
    def step(params, state, value, grad):
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    def run(cached):
        state = tx.init(PARAMS)
        params, turned = so.apply_masks(PARAMS, state), 0
        for count in range(30):
            value, grad = gradient(params)
            if cached:
                fresh, fresh_grad = value, grad
                value, grad = cached_gradient(params, state)
                np.testing.assert_allclose(value, fresh, rtol=1e-5)
                jax.tree.map(
                    functools.partial(np.testing.assert_allclose, atol=1e-5),
                    *(grad, fresh_grad),
                )
            before = so.get_masks(state)["kernel"]
            due = host and topology.due(count)
            if due and topology.replaces_step:
                state, params = change(grad, state, params)
                value, _ = gradient(params)
            params, state = step(params, state, value, grad)
            if due and not topology.replaces_step:
                state, params = change(grad, state, params)
            turned += int((before != so.get_masks(state)["kernel"]).sum())
        return turned, float(loss(params))

    turned, last = run(cached=True)
    assert turned > 0
    assert last < 2 * run(cached=False)[1] + 0.01


def test_sam_in_its_opaque_mode():
    sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True)
    tx = so.sparsify(sam, TOPOLOGIES["rigl"])
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    first = loss(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(
            grads, state, params, grad_fn=lambda p, _: jax.grad(loss)(p)
        )
        return optax.apply_updates(params, updates), state

    for _ in range(10):
        params, state = step(params, state)
    assert loss(params) < first
    assert not params["kernel"][~so.get_masks(state)["kernel"]].any()


def moved(inner, **extra_args):
    """Return the first update of a kernel of which half the weights are active."""
    tx = so.sparsify(inner, TOPOLOGIES["static"])
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    updates, _ = tx.update(jax.grad(loss)(params), state, params, **extra_args)
    return updates["kernel"], so.get_masks(state)["kernel"]


def test_sam_sees_the_gradients_of_active_weights_only():
    clipped = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0))
    sam = optax.contrib.sam(clipped, optax.sgd(0.05), opaque_mode=True)
    update, mask = moved(sam, grad_fn=lambda params, _: jax.grad(loss)(params))
    # It is clipped by the norm of the gradient of the active weights.
    np.testing.assert_allclose(jnp.linalg.norm(update), 0.01, rtol=1e-5)
    assert not update[~mask].any()


def test_sophia_sees_the_curvature_of_active_weights_only():
    def obj_fn(params):
        return jnp.sum(params["kernel"]) ** 2

    def masked_obj_fn(params):
        return obj_fn(so.apply_masks(params, {"kernel": mask}))

    curvature = optax.contrib.hutchinson_estimator_diag_hessian()
    update, mask = moved(curvature, obj_fn=obj_fn)
    expected, _ = moved(curvature, obj_fn=masked_obj_fn)
    np.testing.assert_array_equal(update, expected)

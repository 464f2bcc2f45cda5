"""The step of a sparse optimizer, worked by hand, and its forms compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

KEY = jax.random.key(0)


def array(*values):
    return jnp.array(values, jnp.float32)


def bits(*values):
    return jnp.array(values, bool)


MASK = bits(1, 1, 1, 1, 0, 0, 0, 0)
PARAMS = {"w": array(4, -3, 2, -1, 0, 0, 0, 0), "b": array(1)}


def rigl(**kwargs):
    options = {"every": 2, "stop": 3, "drop_fraction": 0.5, "decay": "constant"}
    return so.rigl(masks={"w": MASK, "b": None}, **(options | kwargs))


def set_(**kwargs):
    options = {"every": 2, "stop": 3, "drop_fraction": 0.5, "decay": "constant"}
    return so.set_(masks={"w": MASK, "b": None}, **(options | kwargs))


def run(tx, params, gradients):
    """Return parameters, masks and states after each step."""
    state = tx.init(params)
    params = so.apply_masks(params, state)
    update = jax.jit(tx.update)
    history = []
    for grad in gradients:
        updates, state = update({"w": grad, "b": array(1)}, state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, so.get_masks(state)["w"], state))
    return history


def test_static_by_hand():
    tx = so.sparsify(optax.sgd(0.5), so.static(masks={"w": MASK, "b": None}))
    [(params, mask, state)] = run(tx, PARAMS, [array(2, 2, 2, 2, 2, np.nan, np.inf, 2)])
    np.testing.assert_array_equal(params["w"], array(3, -4, 1, -2, 0, 0, 0, 0))
    np.testing.assert_array_equal(params["b"], array(0.5))
    np.testing.assert_array_equal(mask, MASK)
    assert int(state.count) == 1


def test_rigl_replaces_the_gradient_step():
    # Step 0 updates the masks and moves no weight: 2 and -1 are dropped, indices 4 and
    # 6 grown at zero. Step 1 is an ordinary step with the new masks.
    grad = array(9, 9, 0, 0, 5, -1, -7, 2)
    first, second = run(so.sparsify(optax.sgd(0.5), rigl()), PARAMS, [grad, grad])
    params, mask, _ = first
    np.testing.assert_array_equal(mask, bits(1, 1, 0, 0, 1, 0, 1, 0))
    np.testing.assert_array_equal(params["w"], array(4, -3, 0, 0, 0, 0, 0, 0))
    np.testing.assert_array_equal(params["b"], array(1))
    params, mask, _ = second
    np.testing.assert_array_equal(mask, bits(1, 1, 0, 0, 1, 0, 1, 0))
    np.testing.assert_array_equal(params["w"], array(-0.5, -7.5, 0, 0, -2.5, 0, 3.5, 0))
    np.testing.assert_array_equal(params["b"], array(0.5))


def test_set_takes_the_gradient_step_and_judges_the_weights_after_it():
    # The step changes w to 0.5 -0.5 4 -5, so the first two are the smallest then;
    # before it they were the largest.
    grad = array(3.5, -2.5, -2, 4, 1, 1, 1, 1)
    [(params, mask, _)] = run(so.sparsify(optax.sgd(1.0), set_()), PARAMS, [grad])
    np.testing.assert_array_equal(mask[2:4], True)
    assert int(mask.sum()) == 4
    np.testing.assert_array_equal(params["w"][2:4], array(4, -5))
    np.testing.assert_array_equal(params["b"], array(0))
    # Weights dropped and grown elsewhere are zero; those that came back keep their
    # value.
    came_back = np.where(np.asarray(mask[:2]), [0.5, -0.5], 0.0)
    np.testing.assert_array_equal(params["w"][:2], came_back)
    np.testing.assert_array_equal(params["w"][4:], 0.0)


def test_grown_weights_start_with_a_fresh_state():
    # Momentum builds up on the first four for a step; then 2 of them are replaced. The
    # accumulator of adagrad starts at 0.1, not at zero.
    grad = array(1, 1, 1, 1, 5, 1, 7, 2)
    inner = optax.chain(optax.scale_by_rss(0.1), optax.trace(0.9), optax.scale(-0.1))
    tx = so.sparsify(inner, rigl(start=1))
    before, after = run(tx, PARAMS, [grad, grad])
    (rss, trace, _), (old_rss, old_trace, _) = (
        s.inner_state for _, _, s in (after, before)
    )
    np.testing.assert_array_equal(after[1], bits(1, 1, 0, 0, 1, 0, 1, 0))
    assert (old_trace.trace["w"][:4] != 0).all()
    kept = np.asarray(after[1] & MASK)
    fresh = np.where(kept, old_rss.sum_of_squares["w"], np.float32(0.1))
    np.testing.assert_array_equal(rss.sum_of_squares["w"], fresh)
    np.testing.assert_array_equal(
        trace.trace["w"], np.where(kept, old_trace.trace["w"], 0)
    )
    np.testing.assert_array_equal(rss.sum_of_squares["b"], old_rss.sum_of_squares["b"])


def test_dropped_and_regrown_at_once_keeps_value_and_state():
    # Of the smallest two, 2 and -1, the last has the largest inactive gradient.
    still = array(*[1] * 8)
    grad = array(0, 0, 0, -8, 5, 1, 7, 2)
    tx = so.sparsify(optax.sgd(0.0, momentum=0.9), rigl(start=1))
    before, after = run(tx, PARAMS, [still, grad])
    np.testing.assert_array_equal(after[1], bits(1, 1, 0, 1, 0, 0, 1, 0))
    assert after[0]["w"][3] == before[0]["w"][3] == -1
    old, new = (s.inner_state[0].trace["w"] for _, _, s in (before, after))
    np.testing.assert_array_equal(new, array(old[0], old[1], 0, old[3], 0, 0, 0, 0))


def test_schedules_do_not_lag():
    # Half of the steps are RigL's; the learning rate counts all of them.
    rates = []
    schedule = lambda count: 0.1 * (count + 1)  # noqa: E731
    tx = so.sparsify(optax.sgd(schedule), rigl(every=2, stop=100))
    state = tx.init(PARAMS)
    for _ in range(6):
        updates, state = tx.update({"w": jnp.zeros(8), "b": array(1)}, state, PARAMS)
        rates.append(float(-updates["b"][0]))
    np.testing.assert_allclose(rates, [0, 0.2, 0, 0.4, 0, 0.6], rtol=1e-6)
    assert int(optax.tree.get(state, "ScaleByScheduleState").count) == 6


def test_floating_point_state_is_held_while_rigl_replaces_the_step():
    grad = array(*[1] * 8)
    tx = so.sparsify(optax.adam(0.1), rigl(start=1))
    before, after = run(tx, PARAMS, [grad, 100 * grad])
    old, new = (s.inner_state[0] for _, _, s in (before, after))
    kept = np.asarray(after[1] & MASK)
    np.testing.assert_array_equal(new.mu["w"][kept], old.mu["w"][kept])
    np.testing.assert_array_equal(new.nu["b"], old.nu["b"])
    assert (int(old.count), int(new.count)) == (1, 2)


@pytest.mark.filterwarnings("ignore:scale_by_sparseopt before")
def test_sparsity_zero_is_the_inner_optimizer_bit_for_bit():
    params = {"k": jax.random.normal(KEY, (9, 7)), "b": jnp.ones(7)}
    inner = optax.chain(so.scale_by_sparseopt(), optax.adam(1e-2))
    sparse, dense = so.sparsify(inner, so.static(0.0)), optax.adam(1e-2)
    results = []
    for tx in (sparse, dense):
        p, state = params, tx.init(params)

        @jax.jit
        def step(p, state, key, tx=tx):
            grads = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), p)
            updates, state = tx.update(grads, state, p)
            return optax.apply_updates(p, updates), state

        for seed in range(10):
            p, state = step(p, state, jax.random.key(seed))
        results.append(p)
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize(
    ("make", "inner"),
    [
        (so.rigl, optax.sgd(0.1, momentum=0.9)),
        (so.set_, optax.adam(0.05)),
        pytest.param(so.rigl, optax.adam(0.05), marks=pytest.mark.slow),
        pytest.param(so.set_, optax.sgd(0.1, momentum=0.9), marks=pytest.mark.slow),
    ],
)
def test_changes_from_the_host_are_those_within_the_step(make, inner):
    topology = make(0.75, every=3, stop=20, track_explored=True)
    params = {"k": jax.random.normal(KEY, (9, 8)), "b": jnp.zeros(8)}
    gradients = jax.jit(
        jax.grad(lambda p, x: jnp.sum((jnp.tanh(x @ p["k"]) + p["b"] - 1) ** 2))
    )

    def train(host_updates):
        tx = so.sparsify(inner, topology, host_updates=host_updates)
        update = jax.jit(tx.update)
        change = jax.jit(functools.partial(so.update_topology, tx))
        apply_updates = jax.jit(optax.apply_updates)
        state = tx.init(params)
        p = so.apply_masks(params, state)
        for step in range(24):
            grads = gradients(p, jax.random.normal(jax.random.key(step), (5, 9)))
            due = host_updates and topology.due(step)
            if due and topology.replaces_step:
                state, p = change(grads, state, p)
            updates, state = update(grads, state, p)
            p = apply_updates(p, updates)
            if due and not topology.replaces_step:
                state, p = change(None, state, p)  # SET reads no gradients
        # The host's form does not store what it does not need.
        kept = state.topology_state._replace(turned=())
        assert not (host_updates and state.topology_state.turned)
        return p, state._replace(topology_state=kept)

    in_graph, from_host = train(False), train(True)
    # Two programs, in which the compiler may fuse different products and sums.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        *(in_graph, from_host),
    )
    jax.tree.map(np.testing.assert_array_equal, in_graph[1].masks, from_host[1].masks)
    first = so.sparsify(inner, topology).init(params).masks["k"]
    assert (in_graph[1].masks["k"] != first).any()


def test_a_narrow_gradient_does_not_leave_a_remainder():
    # 1 + 2**-20 is not a bfloat16: an update of that type could not turn it into zero.
    params = {"k": jnp.full((4, 4), 1 + 2**-20, jnp.float32)}
    grads = {"k": jnp.ones((4, 4), jnp.bfloat16)}
    tx = so.sparsify(optax.sgd(0.1), so.static(0.5))
    updates, state = tx.update(grads, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["k"] != 0, so.get_masks(state)["k"])


@pytest.mark.parametrize(
    "key", [0, np.int64(0), jnp.int32(0), KEY, jax.random.key_data(KEY)]
)
def test_every_kind_of_key_gives_the_same_masks(key):
    params = {"k": jnp.ones((6, 6))}
    states = [
        so.sparsify(optax.sgd(1.0), so.static(0.5), key=k).init(params)
        for k in (0, key)
    ]
    np.testing.assert_array_equal(states[0].masks["k"], states[1].masks["k"])
    other = so.sparsify(optax.sgd(1.0), so.static(0.5), key=1).init(params)
    assert (other.masks["k"] != states[0].masks["k"]).any()


def test_bad_calls_are_named():
    params = {"k": jnp.ones((4, 4))}
    with pytest.raises(TypeError, match="topology must be a Topology"):
        so.sparsify(optax.sgd(0.1), 0.9)
    with pytest.raises(TypeError, match="key must be an int or a PRNG key, got 'a'"):
        so.sparsify(optax.sgd(0.1), so.static(0.5), key="a").init(params)
    tx = so.sparsify(optax.sgd(0.1), so.static(0.5))
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"tx.update\(grads, opt_state, params\)"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="masks must not be passed to update"):
        tx.update(params, state, params, masks=state.masks)
    with pytest.raises(ValueError, match="a static topology never changes"):
        so.update_topology(tx, params, state, params)
    with pytest.raises(ValueError, match="holds no SparseState"):
        so.update_topology(tx, params, optax.EmptyState(), params)
    moving = so.sparsify(optax.sgd(0.1), so.rigl(0.5, every=1, stop=2))
    with pytest.raises(ValueError, match="rigl needs gradients to update its masks"):
        so.update_topology(moving, None, moving.init(params), params)
    with pytest.raises(ValueError, match="was not made by this tx"):
        so.update_topology(moving, params, tx.init({"j": jnp.ones((4, 4))}), params)
    twice = optax.chain(moving, so.sparsify(optax.sgd(0.1), so.static(0.5)))
    for call in (
        lambda state: so.update_topology(twice, params, state, params),
        lambda state: so.reset_inner(twice, params, state),
        lambda state: so.convert_state(twice, params, state),
    ):
        with pytest.raises(ValueError, match=r"two sparsify .* same leaves sparse"):
            call(twice.init(params))

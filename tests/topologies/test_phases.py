"""One topology after another: what is passed on, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.checkpoint.record import describe_topology
from sparseopt_jax.topologies.schedules import FOREVER

KEY = jax.random.key(0)
PARAMS = {
    "k": jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32),
    "b": jnp.ones(6),
}


def grads_at(step):
    rng = np.random.default_rng(100 + step)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS
    )


def trained(topology, steps, *, compiled=jax.jit, inner=None, **options):
    """Return parameters, masks and states, initially and after each step."""
    tx = so.sparsify(inner or optax.sgd(0.1, momentum=0.9), topology, **options)
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    update = compiled(tx.update)
    history = [(params, np.asarray(so.get_masks(state)["k"]), state)]
    for step in range(steps):
        updates, state = update(grads_at(step), state, params)
        params = optax.apply_updates(params, updates)
        mask = np.asarray(so.get_masks(state)["k"])
        inactive = np.asarray(params["k"])[~mask]
        np.testing.assert_array_equal(inactive.view(np.int32), 0)
        (momentum,) = [
            np.asarray(x)
            for x in jax.tree.leaves(state.inner_state)
            if x.shape == mask.shape
        ]
        np.testing.assert_array_equal(momentum[~mask], 0)
        history.append((params, mask, state))
    return history


def largest(weights, k):
    mask = np.zeros(weights.size, bool)
    mask[np.argsort(-np.abs(weights).ravel(), kind="stable")[:k]] = True
    return mask.reshape(weights.shape)


def moved(params, other):
    return not np.array_equal(params["b"], other["b"])


# Dense, pruned gradually, updated by RigL, frozen: updates at 2, 4, 6, at 7 and 9, and
# at the start of the last phase, at 11. The first follow the step, RigL replaces it.
HALF = {"drop_fraction": 0.5, "decay": "constant"}
FOUR = so.phases(
    (0, so.static(0.0)),
    (2, so.gradual_magnitude(0.75, every=2, start=2, stop=7)),
    (7, so.rigl(masks=so.PREVIOUS_MASKS, every=2, start=7, stop=11, **HALF)),
    (11, so.static(masks=so.PREVIOUS_MASKS)),
)


@pytest.fixture(scope="module")
def four():
    return trained(FOUR, 13)


def test_masks_are_handed_on(four):
    masks = [mask for _, mask, _ in four]
    counts = [int(mask.sum()) for mask in masks]
    half = 12 + round(36 * 0.5**3)
    assert counts == [48] * 5 + [half] * 2 + [12] * 7
    assert (masks[7] != masks[8]).any() and (masks[9] != masks[10]).any()
    np.testing.assert_array_equal(masks[8], masks[9])
    for mask in masks[11:]:
        np.testing.assert_array_equal(mask, masks[10])


def test_pruning_sees_the_weights_after_the_step(four):
    # The step that the update follows was that of the dense network.
    (before, _, state), (_, mask, _) = four[4:6]
    velocity = 0.9 * state.inner_state[0].trace["k"] + grads_at(4)["k"]
    stepped = np.asarray(before["k"] - 0.1 * velocity)
    np.testing.assert_array_equal(mask, largest(stepped, int(mask.sum())))


def test_each_phase_replaces_the_step_or_follows_it(four):
    steps = [moved(four[step][0], four[step + 1][0]) for step in range(13)]
    assert [step for step, replaces in enumerate(steps) if not replaces] == [7, 9]
    changed_at = [int(state.topology_state.updated_at) for _, _, state in four[1:]]
    assert changed_at == [-1, -1, 2, 2, 4, 4, 6, 7, 7, 9, 9, 9, 9]


def test_it_is_due_where_a_topology_is_and_where_a_phase_begins():
    due = [step for step in range(15) if FOUR.due(step)]
    assert due == [2, 4, 6, 7, 9]  # and frozen from 11
    assert all(FOUR.due(step) in (True, False) for step in range(15))
    compiled = jax.jit(FOUR.due)
    assert [step for step in range(15) if compiled(jnp.int32(step))] == due
    for step in range(15):
        left = [found for found in due if found >= step]
        assert FOUR.next_due(jnp.int32(step)) == min(left, default=FOREVER)
    replaces = [step for step in due if FOUR.replaces(step)]
    assert replaces == [7, 9]
    replaces = jax.jit(FOUR.replaces)
    assert [step for step in due if replaces(jnp.int32(step))] == [7, 9]


def test_compiled_equals_eager(four):
    eager = trained(FOUR, 8, compiled=lambda function: function)
    for (params, mask, state), (other, own_mask, own_state) in zip(
        eager, four, strict=False
    ):
        np.testing.assert_array_equal(mask, own_mask)
        np.testing.assert_allclose(params["k"], other["k"], rtol=1e-5, atol=1e-6)
        assert jax.tree.structure(state) == jax.tree.structure(own_state)


def test_what_becomes_of_each_leaf_in_the_end():
    plans = {plan.path: plan.active for plan in FOUR.leaves(PARAMS)}
    assert plans == {"k": 12, "b": None}
    assert FOUR.full_leaves(PARAMS) == frozenset()
    assert FOUR.moves and not FOUR.keeps_counts and FOUR.replaces_step is None
    late = so.phases((0, so.static(0.0)), (5, so.static(masks=so.PREVIOUS_MASKS)))
    assert late.full_leaves(PARAMS) == {"k"}


# Methods that start with masks of other sizes.


def changed(topology, count, mask, param, grad):
    @jax.jit
    def update(count, mask, param, grad):
        _, state = topology.init(KEY, {"w": param})
        state = topology.observe(count, state, {"w": grad})
        masks, _ = topology.update(
            KEY, count, {"w": mask}, state, {"w": param}, {"w": grad}
        )
        return masks["w"]

    return np.asarray(update(jnp.int32(count), mask, param, grad))


def test_a_late_rigl_prunes_moves_and_grows_at_once():
    # 8 of 16 weights remain, of which half are dropped and grown: the 4 largest weights
    # stay, the 4 largest gradients of the others are grown.
    late = so.phases(
        (0, so.static(0.0)),
        (4, so.rigl(0.5, every=4, stop=9, **HALF)),
    )
    assert [step for step in range(12) if late.due(step)] == [4, 8]
    param = jnp.arange(16.0, 0, -1).reshape(4, 4)
    grad = jnp.zeros((4, 4)).at[2, 1:].set(1.0).at[3, 0].set(-2.0).at[0].set(9.0)
    mask = changed(late, 4, jnp.ones((4, 4), bool), param, grad)
    np.testing.assert_array_equal(
        mask, [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]]
    )


def test_a_phase_between_two_changes_only_prunes():
    # At 5 the phase begins; its first update is at 8.
    late = so.phases((0, so.static(0.0)), (5, so.rigl(0.5, every=4, stop=9)))
    assert [step for step in range(12) if late.due(step)] == [5, 8]
    param = jnp.arange(16.0, 0, -1).reshape(4, 4)
    mask = changed(late, 5, jnp.ones((4, 4), bool), param, -param)
    np.testing.assert_array_equal(mask.sum(1), [4, 4, 0, 0])


def test_a_sparser_phase_is_filled_up():
    more = so.phases((0, so.static(0.75)), (3, so.rigl(0.5, every=9, stop=90)))
    param = jnp.arange(16.0).reshape(4, 4)
    old = (param >= 12).astype(bool)
    mask = changed(more, 3, old, param * old, jnp.where(param < 4, 1.0, 0.0))
    np.testing.assert_array_equal(mask.sum(1), [4, 0, 0, 4])


def test_a_structure_is_reached_where_its_phase_begins():
    late = so.phases((0, so.static(0.0)), (3, so.rigl(structure=so.NM(1, 2), **EVERY)))
    param = jnp.array([[1.0, 4], [2, 3], [8, 5], [7, 6]])
    mask = changed(late, 3, jnp.ones((4, 2), bool), param, param)
    np.testing.assert_array_equal(mask, [[0, 1], [1, 0], [1, 0], [0, 1]])


EVERY = {"every": 10, "start": 10, "stop": 90, "drop_fraction": 0.5}


def test_masks_of_a_structure_are_kept_within_it():
    kept = so.phases(
        (0, so.static(structure=so.NM(1, 2))),
        (5, so.rigl(masks=so.PREVIOUS_MASKS, structure=so.NM(1, 2), **EVERY)),
    )
    # Half of 4 are dropped: the small ones, in the last two groups.
    old = jnp.array([[1, 1], [0, 0], [1, 1], [0, 0]], bool)
    param = jnp.array([[5.0, 6], [0, 0], [1, 2], [0, 0]])
    grad = jnp.array([[0.0, 0], [9, 9], [0, 3], [1, 2]])
    mask = changed(kept, 10, old, param, grad)
    np.testing.assert_array_equal(mask, [[1, 1], [0, 0], [0, 1], [1, 0]])


def test_srigl_begins_from_dense_without_losing_its_neurons():
    late = so.phases((0, so.static(0.0)), (3, so.srigl(0.75, **EVERY)))
    param = jax.random.normal(KEY, (8, 6))
    mask = changed(late, 3, jnp.ones((8, 6), bool), param, param)
    np.testing.assert_array_equal(mask.sum(0), 2)
    order = np.argsort(np.argsort(-np.abs(param), axis=0), axis=0)
    np.testing.assert_array_equal(mask, order < 2)


def test_what_srigl_has_shared_out_is_not_taken_back():
    # A neuron of three is ablated, the others have 3 of the planned 2 weights each.
    late = so.phases((0, so.static(0.0)), (3, so.srigl(0.5, **EVERY)))
    old = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    param = jnp.array([[9.0, 8, 0], [7, 6, 0], [5, 1, 0], [0, 0, 0]])
    # 0.5 / 2 (1 + cos(pi 40 / 90)) = 0.293: of 6 weights one is dropped.
    grad = jnp.array([[0.0, 0, 9], [0, 0, 9], [0, 0, 9], [3, 4, 9]])
    mask = changed(late, 40, old, param, grad)
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]])


def test_what_snfs_has_shared_out_is_not_taken_back():
    late = so.phases((0, so.static(0.5)), (3, so.snfs(0.5, **EVERY)))
    params = {"a": jnp.arange(8.0).reshape(2, 4), "b": jnp.arange(8.0).reshape(2, 4)}
    old = {"a": params["a"] >= 2, "b": params["b"] >= 6}
    _, state = late.init(KEY, params)
    # At the end nothing is dropped.
    masks, _ = late.update(KEY, jnp.int32(90), old, state, params, params)
    assert [int(masks[name].sum()) for name in "ab"] == [6, 2]


def test_layers_that_are_full_before_may_lose_weights():
    first = so.static(0.4, distribution={"full": 0.0})
    last = so.snfs(masks=so.PREVIOUS_MASKS, **EVERY | {"start": 2, "every": 2})
    tx = so.sparsify(optax.sgd(0.1), so.phases((0, first), (2, last)))
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
        for name in ("full", "other")
    }
    state = tx.init(params)
    params = so.apply_masks(params, state)
    assert so.get_masks(state)["full"].all()
    update = jax.jit(tx.update)
    for _ in range(3):
        # The other layer has the larger gradients.
        grads = {name: rng.normal(size=(4, 5)) for name in params}
        grads = {"full": 0.1 * grads["full"], "other": grads["other"]}
        grads = jax.tree.map(jnp.float32, grads)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for name, mask in so.get_masks(state).items():
        np.testing.assert_array_equal(np.asarray(params[name])[~mask], 0)
    assert not so.get_masks(state)["full"].all()


# From the host.


def test_changes_from_the_host_are_those_within_the_step():
    topology = so.phases(
        (0, so.static(0.0)),
        (2, so.gradual_magnitude(0.75, every=2, start=2, stop=7)),
        (7, so.set_(masks=so.PREVIOUS_MASKS, every=2, start=7, stop=11, **HALF)),
    )
    assert topology.replaces_step is False
    expected = trained(topology, 10)
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), topology, host_updates=True)
    update = jax.jit(tx.update)
    change = jax.jit(functools.partial(so.update_topology, tx))
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    for step in range(10):
        updates, state = update(grads_at(step), state, params)
        params = optax.apply_updates(params, updates)
        if topology.due(step):
            state, params = change(grads_at(step), state, params)
        other, mask, _ = expected[step + 1]
        np.testing.assert_array_equal(so.get_masks(state)["k"], mask)
        np.testing.assert_allclose(params["k"], other["k"], rtol=1e-5, atol=1e-6)


def test_the_host_cannot_change_what_replaces_steps_and_what_follows_them():
    with pytest.raises(ValueError, match="all replace the gradient step, or all"):
        so.sparsify(optax.sgd(0.1), FOUR, host_updates=True)


# What is refused.


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ((), ValueError, "at least one pair"),
        ((so.static(0.5),), TypeError, "first step and a topology, got Rew"),
        (((0, 0.5),), TypeError, r"step and a topology, got \(0, 0.5"),
        (((0, so.ste(0.5)),), TypeError, "pair of its first step and a topology"),
        (((1, so.static(0.5)),), ValueError, r"begin at 0 and ascend, got steps \(1,"),
        (
            ((0, so.static(0.5)), (5, so.static(0.6)), (5, so.static(0.7))),
            ValueError,
            r"begin at 0 and ascend, got steps \(0, 5, 5\)",
        ),
        (
            ((0, so.static(masks=so.PREVIOUS_MASKS)),),
            ValueError,
            "first phase has no masks",
        ),
        (
            (
                (0, so.static(0.5)),
                (5, so.static(masks={"k": jnp.ones((8, 6), bool), "b": None})),
            ),
            ValueError,
            "phase 2 cannot be given masks.*PREVIOUS_MASKS",
        ),
        (
            ((0, so.static(0.5)), (5, so.static(0.5, dims=so.NeuronDims(1, 0)))),
            ValueError,
            "the same dims",
        ),
        (
            (
                (0, so.static(0.5)),
                (5, so.set_(0.5, every=1, stop=9, track_explored=True)),
            ),
            ValueError,
            "the same track_explored",
        ),
    ],
)  # fmt: skip
def test_bad_phases_are_named(parts, error, message):
    with pytest.raises(error, match=message):
        so.phases(*parts)


def test_phases_of_other_leaves_are_refused():
    topology = so.phases(
        (0, so.static(0.5)), (5, so.static(0.5, where=lambda path, _: path == "a"))
    )
    params = {"a": jnp.ones((4, 4)), "c": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="phase 1 and phase 2 differ in c"):
        so.sparsify(optax.sgd(0.1), topology).init(params)


def test_previous_masks_are_a_word_that_files_hold():
    with pytest.raises(TypeError, match=r"so\.PREVIOUS_MASKS in phases, got 'keep'"):
        so.static(masks="keep")
    assert so.static(masks="kept") == so.static(masks=so.PREVIOUS_MASKS)
    assert describe_topology(so.static(masks=so.PREVIOUS_MASKS))["masks"] == "kept"


def test_previous_masks_are_for_phases():
    tx = so.sparsify(optax.sgd(0.1), so.static(masks=so.PREVIOUS_MASKS))
    with pytest.raises(ValueError, match="takes over the masks of the previous phase"):
        tx.init(PARAMS)


def test_freezing_costs_no_gradient_step():
    moving = so.rigl(0.5, every=2, stop=4)
    topology = so.phases((0, moving), (4, so.static(masks=so.PREVIOUS_MASKS)))
    assert [step for step in range(8) if topology.due(step)] == [0, 2]


def test_previous_masks_may_be_of_vectors():
    masks = {"w": jnp.arange(8) % 2 == 0}
    kept = so.rigl(masks=so.PREVIOUS_MASKS, every=1, stop=9, drop_fraction=0.5)
    tx = so.sparsify(optax.sgd(0.1), so.phases((0, so.static(masks=masks)), (1, kept)))
    params = {"w": jnp.arange(1.0, 9.0)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert int(so.get_masks(state)["w"].sum()) == 4

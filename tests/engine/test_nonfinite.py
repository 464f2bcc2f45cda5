"""Non-finite gradients: masks, counts and zeros stay valid.

In addition, ``test_composition`` tests ``apply_if_finite`` with only NaN, and
``test_invariants`` any gradients and weights in a single step.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.host_loop import step_with_update
from tests.helpers.optimizers import (
    Moment,
    gradients,
    one_step,
    random_tree,
    rigl,
    set_,
    start,
)

TOPOLOGIES = {"rigl": rigl(), "set": set_(), "static": so.static(0.5)}
INNER = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
    "clipped_sparseopt": lambda: optax.chain(
        so.scale_by_sparseopt(), optax.clip_by_global_norm(1.0), optax.sgd(0.1)
    ),
}
ORDINARY, UPDATE = 1, 2  # steps; further updates follow at 5 and 8
STEPS = 10
BAD = [jnp.nan, jnp.inf]

PAIRS = [
    ("rigl", "momentum"),
    ("rigl", "adam"),
    ("set", "momentum"),
    ("set", "clipped_sparseopt"),
    ("static", "momentum"),
]
moving_method = pytest.mark.parametrize("method", ["rigl", "set"])
bad_value = pytest.mark.parametrize("bad", BAD, ids=str)
bad_step = pytest.mark.parametrize("bad_step", [ORDINARY, UPDATE])


def part(tree):
    """Return one kernel and the dense leaves: enough if layers do not matter."""
    return {name: tree[name] for name in ("dense", "norm")}


@functools.cache
def compiled(method, inner, wrap=None):
    """Compile a transformation and its step; ``wrap`` wraps the owner of the masks."""
    tx = so.sparsify(INNER[inner](), TOPOLOGIES[method])
    tx = tx if wrap is None else wrap(tx)
    return tx, jax.jit(one_step(tx))


def everywhere(weights, grad, bad):
    return jnp.full_like(grad, bad)


def one_active(weights, grad, bad):
    """Put a bad value at the largest weight, which no update drops."""
    return grad.ravel().at[np.abs(weights).argmax()].set(bad).reshape(grad.shape)


def one_inactive(weights, grad, bad):
    return grad.at[tuple(np.argwhere(weights == 0)[0])].set(bad)


PLACES = [everywhere, one_active, one_inactive]


def spoiled(now, grads, place, bad):
    """Return gradients with bad values; those of dense leaves are unchanged."""
    kernel = place(now.kernel("dense"), grads["dense"]["kernel"], bad)
    return {**grads, "dense": {**grads["dense"], "kernel": kernel}}


def trained(method, inner, bad_step=None, place=everywhere, bad=jnp.nan, wrap=None):
    """Return the moments of a run in which one gradient is bad."""
    tx, step = compiled(method, inner, wrap)
    moments = [start(tx, part(random_tree(0)))]
    for count in range(STEPS):
        grads = part(gradients(count))
        if count == bad_step:
            grads = spoiled(moments[-1], grads, place, bad)
        moments.append(step(grads, *moments[-1]))
    return moments


def assert_intact(now, first):
    mask, old = now.masks["dense"], first.masks["dense"]
    assert mask.dtype == np.bool_ and mask.sum() == old.sum()
    assert now.kernel("dense")[~mask].tobytes() == bytes(4 * (~mask).sum())
    for leaf in jax.tree.leaves(now.sparse.inner_state):
        if leaf.shape == mask.shape:
            np.testing.assert_array_equal(leaf[~mask], 0)
    fan_ins = now.sparse.topology_state.fan_ins["dense"]["kernel"]
    np.testing.assert_array_equal(fan_ins, mask.sum(0, keepdims=True))


def finite(now):
    return np.isfinite(now.kernel("dense"))


@pytest.mark.parametrize(("method", "inner"), PAIRS)
@pytest.mark.parametrize("place", PLACES)
@bad_step
def test_masks_counts_and_zeros_hold_ever_after(method, inner, place, bad_step):
    for bad in BAD:
        moments = trained(method, inner, bad_step, place, bad)
        for now in moments:
            assert_intact(now, moments[0])


@moving_method
@bad_value
def test_weights_that_are_no_numbers_stay_where_they_are(method, bad):
    moments = trained(method, "momentum", ORDINARY, one_active, bad)
    spoiled_weights = ~finite(moments[ORDINARY + 1])
    assert spoiled_weights.sum() == 1
    first, last = moments[0].masks["dense"], moments[-1].masks["dense"]
    assert last[spoiled_weights].all()
    # The other weights still move.
    assert (first != last).any()
    np.testing.assert_array_equal(~finite(moments[-1]), spoiled_weights)


@moving_method
def test_without_any_number_nothing_moves(method):
    moments = trained(method, "momentum", ORDINARY)
    for now in moments[ORDINARY + 1 :]:
        np.testing.assert_array_equal(now.masks["dense"], moments[0].masks["dense"])
        np.testing.assert_array_equal(finite(now), ~now.masks["dense"])


@bad_value
def test_rigl_takes_no_step_with_the_gradient_it_grows_by(bad):
    moments = trained("rigl", "momentum", UPDATE, everywhere, bad)
    assert (moments[UPDATE].masks["dense"] != moments[UPDATE + 1].masks["dense"]).any()
    for now in moments:
        assert finite(now).all()
        assert all(
            jnp.isfinite(x).all()
            for x in jax.tree.leaves(now.sparse.inner_state)
            if jnp.issubdtype(x.dtype, jnp.floating)
        )


def test_rigl_grows_infinity_first_and_nan_last():
    def grown(bad):
        moments = trained("rigl", "momentum", UPDATE, one_inactive, bad)
        old, new = (moments[UPDATE + i].masks["dense"] for i in (0, 1))
        return (new & ~old)[tuple(np.argwhere(~old)[0])]

    assert grown(jnp.inf) and grown(-jnp.inf) and not grown(jnp.nan)


@pytest.mark.parametrize(("method", "inner"), PAIRS)
@bad_value
def test_bad_gradients_of_inactive_weights_touch_no_step(method, inner, bad):
    moments = trained(method, inner, ORDINARY, one_inactive, bad)
    expected = trained(method, inner)
    for now, other in zip(moments, expected, strict=True):
        assert now.kernel("dense").tobytes() == other.kernel("dense").tobytes()


# apply_if_finite.


def outside(tx):
    return optax.apply_if_finite(tx, 3)


@moving_method
@bad_step
@pytest.mark.parametrize("place", PLACES)
def test_apply_if_finite_around_sees_every_gradient(method, bad_step, place):
    for bad in BAD:
        moments = trained(method, "momentum", bad_step, place, bad, outside)
        before, after = moments[bad_step], moments[bad_step + 1]
        jax.tree.map(
            np.testing.assert_array_equal,
            (before.params, before.masks, before.sparse.count),
            (after.params, after.masks, after.sparse.count),
        )
        for now in moments:
            assert_intact(now, moments[0])
            assert finite(now).all()
        assert (moments[0].masks["dense"] != moments[-1].masks["dense"]).any()


@moving_method
def test_apply_if_finite_inside_sees_the_gradients_of_active_weights(method):
    topology = TOPOLOGIES[method]
    tx = so.sparsify(optax.apply_if_finite(INNER["momentum"](), 3), topology)
    step = jax.jit(one_step(tx))
    for bad_step, place, bad in itertools.product((ORDINARY, UPDATE), PLACES, BAD):
        now = first = start(tx, part(random_tree(0)))
        for count in range(STEPS):
            grads = part(gradients(count))
            if count == bad_step:
                grads = spoiled(now, grads, place, bad)
            now = step(grads, *now)
            assert_intact(now, first)
            assert finite(now).all()
            assert (now.changed_at == count) == topology.due(count)
        skipped = int(now.sparse.inner_state.total_notfinite)
        # What RigL grows is active in its own step, and infinity is grown first.
        grown = method == "rigl" and bad_step == UPDATE and jnp.isinf(bad)
        assert skipped == (place is not one_inactive or grown)


@moving_method
def test_apply_if_finite_gives_in_after_its_limit(method):
    tx, step = compiled(method, "momentum", lambda tx: optax.apply_if_finite(tx, 1))
    now = first = start(tx, part(random_tree(0)))
    for count in range(STEPS):
        grads = spoiled(now, part(gradients(count)), everywhere, jnp.nan)
        now = step(grads, *now)
        assert_intact(now, first)
        assert finite(now).all() == (count < 1)


# If other code applies the updates.


@moving_method
def test_a_train_state_and_a_plain_chain_keep_their_zeros(method):
    chain = optax.chain(so.sparseopt(TOPOLOGIES[method]), optax.sgd(0.1, momentum=0.9))
    for tx in (compiled(method, "momentum")[0], chain):
        step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
        begin = so.linen.TrainState.create(
            apply_fn=None, params=part(random_tree(0)), tx=tx
        )
        first = so.get_masks(begin)["dense"]["kernel"]
        for bad_step in (ORDINARY, UPDATE):
            state = begin
            for count in range(STEPS):
                now, grads = Moment(state.params, state.opt_state), gradients(count)
                if count == bad_step:
                    grads = spoiled(now, grads, everywhere, jnp.nan)
                state = step(state, part(grads))
                mask = np.asarray(so.get_masks(state)["dense"]["kernel"])
                assert mask.sum() == first.sum()
                kernel = np.asarray(state.params["dense"]["kernel"])
                np.testing.assert_array_equal(kernel[~mask], 0)


@moving_method
def test_changes_from_the_host_hold_too(method):
    topology = TOPOLOGIES[method]
    tx = so.sparsify(INNER["momentum"](), topology, host_updates=True)
    step = jax.jit(one_step(tx))

    @jax.jit
    def change(grads, params, state):
        state, params = so.update_topology(tx, grads, state, params)
        return Moment(params, state)

    for bad_step in (ORDINARY, UPDATE):
        now = first = start(tx, part(random_tree(0)))
        for count in range(STEPS):
            grads = part(gradients(count))
            if count == bad_step:
                grads = spoiled(now, grads, everywhere, jnp.nan)
            if topology.due(count) and topology.replaces_step:
                now = change(grads, *now)
            now = step(grads, *now)
            if topology.due(count) and not topology.replaces_step:
                now = change(grads, *now)
            assert_intact(now, first)


SCHEDULED = {
    "one_shot": so.one_shot(0.75, at=6),
    "gradual_magnitude": so.gradual_magnitude(0.75, every=1, stop=8),
    "ac_dc": so.ac_dc(0.75, compress=[3, 9], decompress=[6]),
    "phases": so.phases((0, so.static(0.0)), (5, so.static(0.75))),
    "rigl": so.rigl(0.75, every=3, start=1, stop=10),
}


def numbers_of_active_weights(topology, rejected):
    """Train from the host while ``apply_if_finite`` rejects some steps.

    Returns the numbers after each step, and the steps that moved the weights.
    """
    inner = so.sparsify(optax.sgd(0.1), topology, host_updates=True)
    tx = optax.apply_if_finite(inner, 10)
    change = jax.jit(functools.partial(so.update_topology, tx))
    update = jax.jit(tx.update)
    params = {"kernel": jax.random.normal(jax.random.key(0), (6, 8))}
    state = tx.init(params)
    params, numbers, moved = so.apply_masks(params, state), [], []
    for number in range(12):
        grads = jax.tree.map(jnp.sin, params)
        bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
        due = topology.due(number)
        if due and topology.replaces_step:
            state, params = change(grads, state, params)
        updates, state = update(bad if number in rejected else grads, state, params)
        if jnp.any(updates["kernel"]):
            moved.append(number)
        params = optax.apply_updates(params, updates)
        if due and not topology.replaces_step:
            state, params = change(grads, state, params)
        numbers.append(int(so.get_masks(state)["kernel"].sum()))
    return numbers, moved


@pytest.mark.parametrize("name", SCHEDULED)
def test_updates_from_the_host_follow_the_loop_after_rejected_steps(name):
    topology = SCHEDULED[name]
    expected, _ = numbers_of_active_weights(topology, ())
    for rejected in ([2], [0, 1, 2, 3, 4, 5]):
        numbers, moved = numbers_of_active_weights(topology, rejected)
        assert numbers == expected
        assert set(moved).isdisjoint(rejected)
        if topology.replaces_step:
            # An update replaces a step that is not rejected, if one is left before the
            # next update.
            taken = [n for n in range(12) if n not in rejected]
            assert len(moved) == len(taken) - (3 if rejected == [2] else 2)


def test_an_update_from_the_host_that_is_never_due_raises():
    topology = so.one_shot(0.75, at=1)
    tx = so.sparsify(optax.sgd(0.1), topology, host_updates=True)
    params = {"kernel": jnp.ones((6, 8))}
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state, params)
    state, params = so.update_topology(tx, None, state, params)
    with pytest.raises(ValueError, match=r"no update .* left after step 2: .*due"):
        so.update_topology(tx, None, state, params)


@pytest.mark.parametrize("name", ["rigl", "saliency"])
def test_a_postponed_update_from_the_host_is_the_one_within_the_step(name):
    topologies = {
        "rigl": SCHEDULED["rigl"],
        "saliency": so.one_shot(0.75, at=4, score="saliency"),
    }
    topology = topologies[name]

    def trained(host):
        tx = so.sparsify(optax.sgd(0.1), topology, host_updates=host)
        tx = optax.apply_if_finite(tx, 10)
        change = jax.jit(functools.partial(so.update_topology, tx))
        update = jax.jit(tx.update)
        params = {"kernel": jax.random.normal(jax.random.key(0), (6, 8))}
        state = tx.init(params)
        params, waiting = so.apply_masks(params, state), False
        for number in range(7):
            bad = number in (4, 5)
            grads = jax.tree.map(
                lambda x, bad=bad: jnp.full_like(x, jnp.nan) if bad else jnp.sin(x),
                params,
            )
            waiting |= host and topology.due(number)
            now = waiting and not bad
            state, params = step_with_update(
                topology, update, change, grads, state, params, due=now
            )
            waiting = waiting and bad
        return params["kernel"], so.get_masks(state)["kernel"]

    (weights, masks), (expected, expected_masks) = map(trained, (True, False))
    np.testing.assert_array_equal(masks, expected_masks)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)

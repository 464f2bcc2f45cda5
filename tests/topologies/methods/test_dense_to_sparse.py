"""Methods whose density falls while they train, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(6, 10)), jnp.float32),
    "bias": jnp.ones(10),
}
SIZES = {"a": 48, "b": 60}


def still(topology, steps, *, params=PARAMS, grads=None):
    """The masks before each step and after the last; weights stay as they are."""
    masks, state = topology.init(KEY, params)
    params = so.apply_masks(params, masks)
    grads = params if grads is None else grads
    found, update = [kernels(masks)], jax.jit(topology.update)
    for step in range(steps):
        if topology.due(step):
            masks, state = update(KEY, jnp.int32(step), masks, state, params, grads)
            params = so.apply_masks(params, masks)
        found.append(kernels(masks))
    return found


def kernels(masks):
    return {name: np.asarray(masks[name]) for name in SIZES}


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def largest(scores, k):
    """The k largest by a stable sort."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-np.ravel(scores), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def planned(topology):
    return {leaf.path: leaf.active for leaf in topology.leaves(PARAMS) if leaf.layer}


# Gradual magnitude pruning.


def test_every_layer_follows_the_cubic():
    # Updates at 2, 5 and 8, the last before the stop.
    topology = so.gradual_magnitude(0.8, every=3, start=2, stop=9)
    last = planned(topology)
    masks = still(topology, 11)
    assert [step for step in range(11) if topology.due(step)] == [2, 5, 8]
    for step, now in enumerate(masks[1:]):
        # What the last change before has left.
        changed_at = max([t for t in (2, 5, 8) if t <= step], default=2)
        left = (1 - (changed_at - 2) / 6) ** 3
        for name, size in SIZES.items():
            expected = last[name] + round((size - last[name]) * left)
            np.testing.assert_array_equal(
                now[name], largest(np.abs(PARAMS[name]), expected)
            )
    assert counts(masks[-1]) == last
    sparsity = [1 - sum(counts(now).values()) / 108 for now in masks]
    cubic = 0.8 + (0 - 0.8) * (1 - (5 - 2) / 6) ** 3
    np.testing.assert_allclose(sparsity[6], cubic, atol=0.01)


def test_it_begins_with_the_largest_weights_of_the_initial_sparsity():
    topology = so.gradual_magnitude(0.8, initial_sparsity=0.5, every=2, stop=4)
    first, *_, last = still(topology, 5)
    assert sum(counts(first).values()) == 54
    for name, mask in first.items():
        np.testing.assert_array_equal(mask, largest(np.abs(PARAMS[name]), mask.sum()))
    assert counts(last) == planned(topology)
    assert all((first[name] | ~last[name]).all() for name in SIZES)


@pytest.mark.parametrize("initial", [0.0, 0.4])
def test_layers_of_their_own_sparsity_begin_like_the_others(initial):
    topology = so.gradual_magnitude(
        0.8, initial_sparsity=initial, distribution={"a": 0.5}, every=2, stop=4
    )
    first, *_, last = still(topology, 5)
    assert counts(first) == {
        name: round((1 - initial) * n) for name, n in SIZES.items()
    }
    assert counts(last) == {"a": 24, "b": 12}


def test_a_schedule_of_optax_gives_the_sparsity():
    # Falls from 0.25 to 0, and rises to 0.75.
    schedule = optax.piecewise_interpolate_schedule("linear", 1.0, {2: 0.0})
    topology = so.gradual_magnitude(
        schedule=lambda step: 0.25 * schedule(step) + 0.25 * jnp.clip(step - 2, 0, 3),
        every=1,
        stop=6,
        distribution={"*": 0.75},
    )
    assert topology.sparsity == 0.75
    masks = still(topology, 6)
    sparsities = [0.25, 0.25, 0.125, 0.0, 0.25, 0.5, 0.75]
    for now, sparsity in zip(masks, sparsities, strict=True):
        for name, n in counts(now).items():
            assert abs(n - (1 - sparsity) * SIZES[name]) <= 0.5


def test_a_schedule_beyond_its_ends_leaves_every_layer_a_weight():
    # The sparsity goes from 0 through 0.95 to 0.5, where layers differ in theirs: drawn
    # on in proportion, the smaller one would fall below zero.
    turning = optax.piecewise_interpolate_schedule("linear", 0.95, {2: 1.0, 4: 10 / 19})
    topology = so.gradual_magnitude(
        schedule=lambda step: jnp.where(step == 0, 0.0, turning(step)),
        every=1,
        stop=5,
        distribution=lambda layers, sparsity: {
            "a": round(48 * (1 - sparsity)),
            "b": max(round(60 * (1 - 1.9 * sparsity)), 1),
        },
    )
    masks = still(topology, 5)
    for now in masks:
        assert all(1 <= n <= SIZES[name] for name, n in counts(now).items())
    assert counts(masks[-1]) == planned(topology)


def test_groups_fall_together_to_n_of_m():
    topology = so.gradual_magnitude(structure=so.NM(1, 2), every=1, start=1, stop=4)
    masks = still(topology, 6)
    for now in masks:
        for mask in now.values():
            groups = mask.reshape(mask.shape[0] // 2, 2, -1).sum(1)
            assert len(np.unique(groups)) == 1
    assert counts(masks[1]) == SIZES and counts(masks[-1]) == {"a": 24, "b": 30}
    weights = np.abs(PARAMS["a"]).reshape(4, 2, 6)
    np.testing.assert_array_equal(
        masks[-1]["a"].reshape(4, 2, 6), weights == weights.max(1, keepdims=True)
    )


# One threshold for the whole network.


def test_a_global_threshold_is_that_of_all_weights():
    topology = so.gradual_magnitude(0.8, every=2, stop=7, scope="global")
    masks = still(topology, 8)
    joined = np.concatenate([np.ravel(np.abs(PARAMS[name])) for name in SIZES])
    last = planned(topology)
    for step, now in enumerate(masks[1:]):
        left = (1 - min(step // 2 * 2, 6) / 6) ** 3
        total = sum(
            last[name] + round((size - last[name]) * left)
            for name, size in SIZES.items()
        )
        kept = largest(joined, total)
        np.testing.assert_array_equal(now["a"].ravel(), kept[:48])
        np.testing.assert_array_equal(now["b"].ravel(), kept[48:])


def test_a_global_threshold_leaves_every_layer_its_largest_weight():
    params = {**PARAMS, "b": 1e-6 * PARAMS["b"]}
    topology = so.one_shot(0.9, at=0, scope="global")
    _, now = still(topology, 1, params=params)
    assert counts(now) == {"a": 10, "b": 1}
    np.testing.assert_array_equal(now["b"], largest(np.abs(PARAMS["b"]), 1))
    np.testing.assert_array_equal(now["a"], largest(np.abs(PARAMS["a"]), 10))


def test_units_of_several_sizes_are_compared_by_their_mean_weight():
    # Of the 53 weights left one block of four is kept in any case, the others are the
    # larger single ones.
    topology = so.one_shot(0.5, at=0, scope="global", structure={"a": so.Block((2, 2))})
    params = {"a": jnp.ones((8, 6)), "b": jnp.full((6, 10), 2.0).at[0].set(0.5)}
    _, now = still(topology, 1, params=params)
    assert counts(now) == {"a": 4, "b": 49}


def test_a_global_density_rises_where_gradients_are():
    topology = so.granet(0.5, initial_sparsity=0.75, every=1, stop=3, drop_fraction=0.0)
    grads = jax.tree.map(lambda p: jnp.sin(7 * p), PARAMS)
    first, *_, last = still(topology, 3, grads=grads)
    assert [sum(counts(now).values()) for now in (first, last)] == [27, 54]
    joined = np.concatenate(
        [np.where(first[n], np.inf, np.abs(grads[n])).ravel() for n in SIZES]
    )
    found = np.concatenate([last[name].ravel() for name in SIZES])
    np.testing.assert_array_equal(found, largest(joined, 54))


# Once.


def custom(key, param, grad):
    return -jnp.abs(param)


@pytest.mark.parametrize("score", ["magnitude", "saliency", custom])
def test_one_shot_keeps_the_best(score):
    topology = so.one_shot(0.75, at=2, score=score)
    grads = jax.tree.map(lambda p: jnp.sin(7 * p), PARAMS)
    masks = still(topology, 4, grads=grads)
    assert [counts(now) == SIZES for now in masks] == [True] * 3 + [False] * 2
    for name, k in planned(topology).items():
        weights = np.abs(PARAMS[name])
        scores = {
            "magnitude": weights,
            "saliency": weights * np.abs(grads[name]),
        }.get(score, -weights)
        for now in masks[3:]:
            np.testing.assert_array_equal(now[name], largest(scores, k))


def test_one_shot_at_random_has_the_planned_counts():
    topology = so.one_shot(0.75, at=0, score="random")
    _, now, then = still(topology, 2)
    assert counts(now) == planned(topology)
    assert (now["a"] != largest(np.abs(PARAMS["a"]), planned(topology)["a"])).any()
    np.testing.assert_array_equal(now["a"], then["a"])


# Dense and sparse in turn.


def test_ac_dc_alternates_and_starts_weights_anew():
    topology = so.ac_dc(0.75, compress=[1, 5], decompress=[3])
    tx = so.sparsify(optax.adam(0.01), topology)
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    params, history = so.apply_masks(PARAMS, state), []
    for step in range(7):
        grads = jax.tree.map(lambda p, s=step: jnp.cos((3 + s) * p), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, kernels(so.get_masks(state)), state.inner_state[0]))
    sparse = planned(topology)
    assert [counts(masks) for _, masks, _ in history] == [
        SIZES, sparse, sparse, SIZES, SIZES, sparse, sparse,
    ]  # fmt: skip
    (_, masks, _), (params, _, adam) = history[2:4]
    for name, mask in masks.items():
        for tree in (params, adam.mu, adam.nu):
            np.testing.assert_array_equal(tree[name][~mask], 0)
            assert (np.asarray(tree[name])[mask] != 0).all()
    # Then they are trained.
    assert all((np.asarray(history[4][0][name]) != 0).all() for name in SIZES)


@pytest.mark.parametrize(
    ("compress", "decompress"),
    [([1, 2], []), ([1], [2]), ([2, 3], [1]), ([1, 2], [3]), ([], []), ([1, 1], [1])],
)
def test_phases_that_do_not_alternate_are_refused(compress, decompress):
    with pytest.raises(ValueError, match=r"alternate, .* first and last|must ascend"):
        so.ac_dc(0.5, compress=compress, decompress=decompress)


# GraNet.


def test_granet_prunes_all_weights_together_and_regrows_each_layer():
    topology = so.granet(0.8, every=2, stop=7, drop_fraction=0.5)
    grads = jax.tree.map(lambda p: jnp.sin(7 * p), PARAMS)
    masks = still(topology, 8, grads=grads)
    assert sum(counts(masks[0]).values()) == 54
    last, weights = planned(topology), {}
    first = counts(masks[0])
    for step in range(8):
        old, new = masks[step], masks[step + 1]
        if step not in (0, 2, 4, 6):
            assert all((old[name] == new[name]).all() for name in SIZES)
            continue
        # What was grown is at zero, and stays there without a step.
        for name in SIZES:
            weight = weights.get(
                name, np.where(masks[0][name], np.abs(PARAMS[name]), 0)
            )
            weights[name] = np.where(old[name], weight, 0)
        left = (1 - step / 6) ** 3
        total = sum(last[n] + round((first[n] - last[n]) * left) for n in SIZES)
        scores = np.concatenate(
            [np.where(old[n], weights[n], -1).ravel() for n in SIZES]
        )
        pruned = np.split(largest(scores, total), [48])
        fraction = 0.25 * (1 + np.cos(np.pi * step / 7))
        for name, kept in zip(SIZES, pruned, strict=True):
            kept = kept.reshape(old[name].shape)
            dropped = int(fraction * kept.sum())
            stay = largest(np.where(kept, weights[name], -1), kept.sum() - dropped)
            grow = np.where(stay, -1, np.abs(grads[name]))
            expected = stay | largest(grow, dropped)
            np.testing.assert_array_equal(new[name], expected)
            weights[name] = np.where(new[name] & old[name], weights[name], 0)
        assert sum(counts(new).values()) == total
    assert sum(counts(masks[-1]).values()) == sum(last.values())


# What is refused.


def test_what_does_not_fit_in_the_end_fails_at_init():
    with pytest.raises(ValueError, match="'a' 0 of 48 weights"):
        gradual(0.99, distribution={"*": 0.99}).init(KEY, PARAMS)


gradual = functools.partial(so.gradual_magnitude, every=1, stop=5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gradual(), ValueError, "sparsity must be given"),
        (lambda: gradual(1.0), ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
        (
            lambda: gradual(0.5, initial_sparsity=1.0),
            ValueError,
            r"initial_sparsity must be in \[0, 1\), got 1.0",
        ),
        (lambda: gradual(0.5, scope="all"), ValueError, "or 'global', got 'all'"),
        (lambda: gradual(0.5, start=5), ValueError, "greater than start = 5, got 5"),
        (
            lambda: gradual(0.5, schedule=optax.linear_schedule(0.0, 0.5, 5)),
            ValueError,
            "give sparsity or schedule, not both",
        ),
        (
            lambda: gradual(schedule=optax.constant_schedule(0.5)),
            ValueError,
            "other values at start and stop, got 0.5 at both",
        ),
        (
            lambda: gradual(schedule=optax.linear_schedule(0.0, 1.0, 5)),
            ValueError,
            r"schedule\(5\) must be in \[0, 1\), got 1.0",
        ),
        (
            lambda: gradual(masks={"a": jnp.ones((8, 6), bool)}),
            ValueError,
            "sparsity must be given: masks are where the density starts",
        ),
        (
            lambda: gradual(0.5, masks=so.PREVIOUS_MASKS),
            ValueError,
            "in phases it starts from",
        ),
        (lambda: so.one_shot(0.5, at=-1), ValueError, "at must be at least 0"),
        (lambda: so.one_shot(0.5, at=1.5), TypeError, "at must be an integer"),
        (lambda: so.one_shot(0.5, at=True), TypeError, "at must be an .*, got True"),
        (
            lambda: so.one_shot(0.5, at=1, score="wanda"),
            ValueError,
            "magnitude, random, saliency, or a function, got 'wanda'",
        ),
        (lambda: so.one_shot(0.5, at=1, score=3), TypeError, "drop must be a function"),
        (lambda: so.granet(0.5, every=0, stop=5), ValueError, "every must be at least"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()

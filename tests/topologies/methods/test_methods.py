"""The methods of the literature: what each adds to SET and RigL, worked by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.topologies.methods.snfs import share
from sparseopt_jax.topologies.methods.srigl import Ablate
from sparseopt_jax.topologies.schedules import UpdateSchedule

KEY = jax.random.key(0)
ALWAYS = {"every": 1, "stop": 100, "drop_fraction": 0.5, "decay": "constant"}


def array(*values):
    return jnp.array(values, jnp.float32)


def bits(*values):
    return jnp.array(values, bool)


def updated(topology, masks, params, grads, count=0):
    """The masks after one change."""
    _, state = topology.init(KEY, params)
    count = jnp.int32(count)
    state = topology.observe(count, state, grads)
    return topology.update(KEY, count, masks, state, params, grads)[0]


def changed(topology, mask, param, grad, count=0):
    """The mask of a single leaf after one change."""
    return updated(topology, {"w": mask}, {"w": param}, {"w": grad}, count)["w"]


# MEST.


def test_mest_drops_the_least_of_weight_and_gradient():
    # |w| + 2 |g| of the active: 4, 3 + 2, 2 + 6, 1 + 10. Dropped: the two largest
    # weights.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    param, grad = array(4, -3, 2, -1, 0, 0, 0, 0), array(0, 1, 3, -5, 0, 9, 0, 0)
    options = {"masks": {"w": mask}, **ALWAYS}
    new = changed(so.mest(gradient_weight=2.0, **options), mask, param, grad)
    np.testing.assert_array_equal(new[2:4], True)
    assert int(new.sum()) == 4
    # Without the gradient it is SET.
    set_, mest = so.set_(**options), so.mest(gradient_weight=0.0, **options)
    np.testing.assert_array_equal(
        changed(mest, mask, param, grad), changed(set_, mask, param, grad)
    )


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_mest_refuses_a_weight_below_zero(weight):
    with pytest.raises(
        ValueError, match=f"gradient_weight .* at least 0, got {weight}"
    ):
        so.mest(0.5, gradient_weight=weight, every=1, stop=2)


# SRigL. Columns are neurons.


def srigl(mask, gamma_sal=0.3, **options):
    return so.srigl(masks={"w": mask}, gamma_sal=gamma_sal, **(ALWAYS | options))


# Three neurons of fan-in 2. Half of the six weights are dropped: both of the last
# neuron and one of the second. The largest gradients are at the first two neurons.
LOST = bits([1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0])
LOST_PARAM = array([9, 8, 1], [7, 2, 1], [0, 0, 0], [0, 0, 0])
LOST_GRAD = array([0, 0, 0], [0, 0, 0.1], [5, 4, 0.2], [3, 0.3, 0])


def test_a_neuron_without_salient_weights_gives_them_to_the_others():
    # Of the budget of 6 both other neurons get 3.
    new = changed(srigl(LOST), LOST, LOST_PARAM, LOST_GRAD)
    np.testing.assert_array_equal(new, [[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])


def test_gamma_sal_of_zero_ablates_nobody():
    new = changed(srigl(LOST, 0.0), LOST, LOST_PARAM, LOST_GRAD)
    np.testing.assert_array_equal(new, [[1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0]])


def test_a_salient_gradient_keeps_a_neuron():
    # One of two is half of its fan-in: enough for 0.5, not for more.
    grad = LOST_GRAD.at[2, 2].set(9.0)
    for gamma_sal, stays in ((0.5, True), (0.51, False)):
        new = changed(srigl(LOST, gamma_sal), LOST, LOST_PARAM, grad)
        assert bool(new[:, 2].any()) == stays
        assert len(set(np.asarray(new.sum(0))[: 2 + stays].tolist())) == 1


def test_a_budget_that_cannot_be_divided_is_rounded_down():
    # Of four neurons of fan-in 2 one is ablated: 8 weights make 2 for each of three.
    mask = jnp.concatenate([LOST, LOST[:, :1]], 1)
    param = jnp.concatenate([LOST_PARAM, LOST_PARAM[:, :1]], 1)
    grad = jnp.concatenate([LOST_GRAD, LOST_GRAD[:, :1]], 1)
    new = changed(srigl(mask), mask, param, grad)
    np.testing.assert_array_equal(new.sum(0), [2, 2, 0, 2])


def test_no_neuron_gets_more_than_it_has_inputs():
    # The first neuron would get all 4.
    mask = bits([1, 1], [1, 1], [0, 0])
    param, grad = array([9, 1], [9, 1], [0, 0]), array([0, 2], [0, 0], [1, 0])
    new = changed(srigl(mask, 1.0), mask, param, grad)
    np.testing.assert_array_equal(new, [[1, 0], [1, 0], [1, 0]])


def test_an_ablated_neuron_does_not_come_back():
    # Its gradients are the largest of all. Counted as salient they would ablate the
    # others for it.
    mask = bits([1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0])
    topology = srigl(LOST, 0.6, drop_fraction=1.0)
    param, grad = LOST_PARAM * mask, array([0, 0, 9], [0, 0, 9], [2, 3, 9], [3, 2, 9])
    new = changed(topology, mask, param, grad)
    np.testing.assert_array_equal(new, [[0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0]])


def test_fan_ins_of_a_training_stay_equal_and_neurons_lost():
    topology = so.srigl(0.5, gamma_sal=0.9, **ALWAYS | {"stop": 20})
    params = {"w": jax.random.normal(KEY, (8, 6))}
    masks, state = topology.init(KEY, params)
    update = jax.jit(topology.update)
    alive = np.ones(6, bool)
    for step in range(12):
        key = jax.random.key(step)
        grads = {"w": jax.random.normal(key, (8, 6))}
        params = {"w": jax.random.normal(jax.random.fold_in(key, 1), (8, 6))}
        params = so.apply_masks(params, masks)
        masks, state = update(key, jnp.int32(step), masks, state, params, grads)
        fan_in = np.asarray(masks["w"]).sum(0)
        assert (fan_in[~alive] == 0).all()
        alive = fan_in > 0
        assert len(set(fan_in[alive])) == 1
    assert 0 < alive.sum() < 6


@pytest.mark.parametrize("gamma_sal", [-0.1, 1.1, float("nan")])
def test_a_fraction_of_salient_weights_out_of_range_is_refused(gamma_sal):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
        so.srigl(0.5, gamma_sal=gamma_sal, every=1, stop=2)


def test_ablation_needs_fan_ins():
    with pytest.raises(ValueError, match=r"under ConstantFanIn\(\) only, got .*Unstr"):
        so.topologies.Rewiring(sparsity=0.5, stages=(Ablate(0.3),))


# SNFS.


def test_snfs_shares_out_what_all_layers_drop():
    # Layers a and b drop 2 of 4 each. The mean momenta of their active weights are
    # 0.1 times 3 and 1, so that of the 4 lost weights a gets 3 and b one.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    param = array(4, -3, 2, -1, 0, 0, 0, 0)
    masks = {"a": mask, "b": mask, "bias": optax.MaskedNode()}
    grads = {
        "a": array(3, 3, 3, 3, 8, 7, 6, 5),
        "b": array(-1, 1, 1, 1, 8, 9, 7, 6),
        "bias": array(99),
    }
    params = {"a": param, "b": param, "bias": array(1)}
    new = updated(so.snfs(masks=masks, **ALWAYS), masks, params, grads)
    np.testing.assert_array_equal(new["a"], bits(1, 1, 0, 0, 1, 1, 1, 0))
    np.testing.assert_array_equal(new["b"], bits(1, 1, 0, 0, 0, 1, 0, 0))


def test_snfs_counts_the_momentum_of_what_it_drops():
    # As above, but the momentum of a is that of the two weights it drops.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    param = array(4, -3, 2, -1, 0, 0, 0, 0)
    masks = {"a": mask, "b": mask}
    grads = {"a": array(0, 0, 6, 6, 8, 7, 6, 5), "b": array(1, 1, 1, 1, 8, 9, 7, 6)}
    new = updated(
        so.snfs(masks=masks, **ALWAYS), masks, {"a": param, "b": param}, grads
    )
    assert [int(new[name].sum()) for name in "ab"] == [5, 3]


def test_snfs_grows_by_the_mean_of_all_gradients():
    mask = bits(1, 1, 0, 0)
    topology = so.snfs(momentum=0.5, masks={"w": mask}, every=3, stop=9)
    params = {"w": array(2, 1, 0, 0)}
    _, state = topology.init(KEY, params)
    for count, grad in enumerate(
        [array(0, 0, 8, 0), array(0, 0, 0, 2), array(1, 0, 0, 2)]
    ):
        state = topology.observe(jnp.int32(count), state, {"w": grad})
    # 8 / 8 against 2 / 4 + 2 / 2.
    np.testing.assert_array_equal(state.memory["w"], array(0.5, 0, 1, 1.5))
    bad = {"w": array(np.nan, np.inf, -np.inf, 0)}
    state = topology.observe(jnp.int32(3), state, bad)
    np.testing.assert_array_equal(state.memory["w"], array(0.25, 0, 0.5, 0.75))


def test_snfs_conserves_the_total_within_any_room():
    # The first layer has room for one more weight only.
    topology = so.snfs(0.4, distribution={"a": 0.1}, **ALWAYS | {"stop": 9})
    params = {"a": jnp.ones((2, 5)), "b": jnp.ones((4, 6))}
    masks, state = topology.init(KEY, params)
    first = {name: int(mask.sum()) for name, mask in masks.items()}
    assert first == {"a": 9, "b": 14}
    observe, update = jax.jit(topology.observe), jax.jit(topology.update)
    seen = set()
    for step in range(6):
        key = jax.random.key(step)
        grads = {
            name: jax.random.normal(jax.random.fold_in(key, i), mask.shape)
            * (100 if i == step % 2 else 1)
            for i, (name, mask) in enumerate(masks.items())
        }
        state = observe(jnp.int32(step), state, grads)
        params = so.apply_masks(grads, masks)
        masks, state = update(key, jnp.int32(step), masks, state, params, grads)
        counts = [int(mask.sum()) for mask in masks.values()]
        assert sum(counts) == 23
        seen.add(tuple(counts))
    assert len(seen) > 2


def test_snfs_needs_single_weights_and_a_momentum():
    with pytest.raises(
        ValueError, match=r"needs a memory .* and Unstructured\(\), got"
    ):
        dataclasses.replace(so.snfs(0.5, every=1, stop=2), structure=so.Channel())
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.0"):
        so.snfs(0.5, momentum=1.0, every=1, stop=2)


@pytest.mark.parametrize(
    ("total", "weights", "room", "expected"),
    [
        (6, [3, 1, 1], [2, 9, 9], [2, 2, 2]),
        (6, [3, 1, 2], [9, 9, 9], [3, 1, 2]),
        # Remainders 1/2 and 1/2: the first layer gets the odd one.
        (3, [1, 1], [9, 9], [2, 1]),
        (5, [0, 0, 0], [9, 9, 9], [2, 2, 1]),
        (5, [1, 0, 0], [2, 9, 9], [2, 2, 1]),
        (5, [np.nan, 1, 0], [9, 9, 9], [0, 5, 0]),
        (9, [1, 1], [3, 4], [3, 4]),
        (0, [1, 2], [3, 4], [0, 0]),
        # Beyond what a float32 counts.
        (2**24 + 3, [1, 0], [2**25, 2**25], [2**24 + 3, 0]),
        (2**25 + 6, [1, 1], [2**26, 2**26], [2**24 + 3, 2**24 + 3]),
        # Sums beyond the largest float32.
        (3000, [3e38, 3e38], [5000, 5000], [1500, 1500]),
    ],
)
def test_shares_by_hand(total, weights, room, expected):
    shares = share(jnp.int32(total), jnp.array(weights, jnp.float32), jnp.array(room))
    assert sum(shares.tolist()) == sum(expected)
    np.testing.assert_allclose(shares, expected, atol=4 if total > 2**24 else 0)


# RigL with gradients of several steps.


def averaged(steps, **options):
    options = {"every": 5, "start": 3, "stop": 40} | options
    return so.rigl(0.5, averaged_steps=steps, drop_fraction=0.5, **options)


def test_the_mean_is_of_the_window_before_a_change():
    # Changes at 3, 8, 13: windows 1-3, 6-8, 11-13.
    topology = averaged(3)
    grads = np.random.default_rng(0).normal(size=(14, 4, 4)).astype(np.float32)
    _, state = topology.init(KEY, {"w": grads[0]})
    observe = jax.jit(topology.observe)
    for count, grad in enumerate(grads):
        state = observe(jnp.int32(count), state, {"w": grad})
        if topology.due(count):
            mean = grads[count - 2 : count + 1].mean(0)
            np.testing.assert_allclose(state.memory["w"] / 3, mean, rtol=1e-5)


def test_growth_is_by_the_mean_and_by_nothing_outside_of_it():
    params = {"w": jax.random.normal(KEY, (6, 6))}
    tx = so.sparsify(optax.sgd(0.0), averaged(3))
    first = tx.init(params)
    params = so.apply_masks(params, first)
    update = jax.jit(tx.update)
    grads = np.random.default_rng(1).normal(size=(9, 6, 6)).astype(np.float32)

    def masks_of(grads):
        state, masks = first, []
        for grad in grads:
            _, state = update({"w": grad}, state, params)
            masks.append(np.asarray(so.get_masks(state)["w"]))
        return masks

    masks = masks_of(grads)
    old, new = masks[7], masks[8]
    active = np.where(old, np.abs(params["w"]), -1)
    dropped = int(0.25 * (1 + np.cos(np.pi * 8 / 40)) * old.sum())
    kept = np.zeros(36, bool)
    kept[np.argsort(-active.ravel(), kind="stable")[: old.sum() - dropped]] = True
    mean = np.where(kept.reshape(6, 6), -1, np.abs(grads[6:9].mean(0)))
    grown = np.zeros(36, bool)
    grown[np.argsort(-mean.ravel(), kind="stable")[:dropped]] = True
    np.testing.assert_array_equal(new, (kept | grown).reshape(6, 6))
    assert (grown != kept)[~old.ravel()].any()
    # Gradients of no window, however large, change nothing; those of one do.
    loud = grads.copy()
    loud[[0, 4, 5]] *= 1e6
    np.testing.assert_array_equal(masks_of(loud), masks)
    loud[6, ::2] *= 1e6
    assert (masks_of(loud)[8] != new).any()


@pytest.mark.parametrize("make", [functools.partial(averaged, 3), so.snfs])
def test_remembered_gradients_from_the_host_are_those_within_the_step(make):
    topology = make() if make is not so.snfs else so.snfs(0.5, every=4, stop=30)
    params = {"k": jax.random.normal(KEY, (6, 6)), "b": jnp.zeros(6)}
    runs = []
    for host_updates in (False, True):
        tx = so.sparsify(optax.sgd(0.1), topology, host_updates=host_updates)
        update = jax.jit(tx.update)
        change = jax.jit(functools.partial(so.update_topology, tx))
        state = tx.init(params)
        p, masks = so.apply_masks(params, state), []
        for step in range(10):
            keys = jax.random.split(jax.random.key(step))
            grads = {
                "k": jax.random.normal(keys[0], (6, 6)),
                "b": jax.random.normal(keys[1], (6,)),
            }
            due = host_updates and topology.due(step)
            if due and topology.replaces_step:
                state, p = change(grads, state, p)
            updates, state = update(grads, state, p)
            p = optax.apply_updates(p, updates)
            if due and not topology.replaces_step:
                state, p = change(grads, state, p)
            masks.append(so.get_masks(state)["k"])
        np.testing.assert_allclose(p["k"] != 0, masks[-1])
        runs.append((masks, state.topology_state.memory))
    np.testing.assert_array_equal(*(masks for masks, _ in runs))
    np.testing.assert_allclose(*(memory["k"] for _, memory in runs), rtol=1e-6)
    assert (runs[0][0][0] != runs[0][0][-1]).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"averaged_steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"averaged_steps": 1.5}, TypeError, "steps must be an integer, got 1.5"),
        (
            {"averaged_steps": 6},
            ValueError,
            "gradients of 6 steps cannot be averaged where .* changes every 5",
        ),
    ],
)
def test_windows_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        so.rigl(0.5, every=5, stop=10, **options)


# What else RigL offers.


def test_corrected_growth_grows_another_weight():
    # Fan-ins 3 and 1, mean 2: factors sqrt(3/2) = 1.22 and sqrt(1/2) = 0.71. Of the
    # gradients 1.2 and 1 the second is the larger one, corrected.
    mask = bits([1, 1], [1, 0], [1, 0], [0, 0])
    param = array([5, 4], [3, 0], [1, 0], [0, 0])
    grad = array([0, 0], [0, 1.2], [0, 0], [1, 0])
    options = {"masks": {"w": mask}, **ALWAYS | {"drop_fraction": 0.25}}
    plain, corrected = (
        changed(so.rigl(corrected_growth=is_corrected, **options), mask, param, grad)
        for is_corrected in (False, True)
    )
    np.testing.assert_array_equal(plain, [[1, 1], [1, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(corrected, [[1, 1], [1, 0], [0, 0], [1, 0]])


def test_a_least_fan_in_keeps_neurons_alive():
    # The second neuron has the smallest weights; it keeps the largest of them.
    mask = bits([1, 1], [1, 1], [0, 0], [0, 0])
    param = array([9, 1], [8, 2], [0, 0], [0, 0])
    grad = array([0, 0], [0, 0], [5, 0], [4, 0])
    for least, expected in [
        (0, [[1, 0], [1, 0], [1, 0], [1, 0]]),
        (1, [[1, 0], [0, 1], [1, 0], [1, 0]]),
        (2, mask),
    ]:
        topology = so.rigl(masks={"w": mask}, min_fan_in=least, **ALWAYS)
        np.testing.assert_array_equal(changed(topology, mask, param, grad), expected)


@pytest.mark.parametrize("structure", [so.Unstructured(), so.ConstantFanIn()])
def test_first_masks_give_every_neuron_its_least(structure):
    topology = so.static(0.8, min_fan_in=2, structure=structure)
    for seed in range(3):
        masks, _ = topology.init(jax.random.key(seed), {"w": jnp.ones((10, 8))})
        assert int(masks["w"].sum()) == 16
        np.testing.assert_array_equal(masks["w"].sum(0), 2)


def test_itop_is_set_and_rigl_with_other_settings():
    assert so.set_itop(0.9, stop=9000).schedule == UpdateSchedule(1500, 0, 9000, 0.5)
    assert so.rigl_itop(0.9, stop=9000).schedule == UpdateSchedule(4000, 0, 9000, 0.5)
    for itop, make in ((so.set_itop, so.set_), (so.rigl_itop, so.rigl)):
        made = itop(0.9, stop=90, every=7, start=3, drop_fraction=0.1, decay="linear")
        plain = make(0.9, stop=90, every=7, start=3, drop_fraction=0.1, decay="linear")
        assert made.track_explored and made.schedule == plain.schedule
        assert made.replaces_step == plain.replaces_step
        assert (made.drop, made.grow) == (plain.drop, plain.grow)
        assert made.name == f"{plain.name}_itop"


# How the fraction falls.


def test_the_inverse_power_is_the_third():
    schedule = UpdateSchedule(1, 0, 100, drop_fraction=0.8, decay="inverse_power")
    fractions = [schedule.fraction(t) for t in (0, 50, 75, 100)]
    np.testing.assert_allclose(fractions, [0.8, 0.1, 0.0125, 0], atol=1e-7)


def test_a_schedule_of_optax_gives_the_fraction_itself():
    decay = optax.piecewise_constant_schedule(1.5, {5: 0.25 / 1.5})
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    topology = so.rigl(masks={"w": mask}, **ALWAYS | {"decay": decay})
    param, grad = array(4, 3, 2, 1, 0, 0, 0, 0), array(0, 0, 0, 0, 1, 2, 3, 4)
    # More than all is all.
    new = changed(topology, mask, param, grad, count=0)
    np.testing.assert_array_equal(new, bits(0, 0, 0, 0, 1, 1, 1, 1))
    new = changed(topology, mask, param, grad, count=6)
    np.testing.assert_array_equal(new, bits(1, 1, 1, 0, 0, 0, 0, 1))

"""Arguments of methods: the same arguments, under their own names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

WHEN = {"every": 2, "stop": 9}
METHODS = {
    "gradual_magnitude": (so.gradual_magnitude, WHEN),
    "one_shot": (so.one_shot, {"at": 3}),
    "ac_dc": (so.ac_dc, {"compress": [1, 3], "decompress": [2]}),
    "granet": (so.granet, WHEN),
    "set_itop": (so.set_itop, {"stop": 9}),
    "rigl_itop": (so.rigl_itop, {"stop": 9}),
    "mest": (so.mest, WHEN),
    "snfs": (so.snfs, WHEN),
    "srigl": (so.srigl, WHEN),
    "ste": (so.ste, {}),
    "sr_ste": (so.sr_ste, {}),
    "top_kast": (so.top_kast, {"trained_sparsity": 0.25}),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_wrong_name_is_an_error_of_the_method(name):
    make, arguments = METHODS[name]
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected .* 'blok'"):
        make(0.5, blok=3, **arguments)


@pytest.mark.parametrize("name", ["mest", "snfs", "srigl"])
def test_a_missing_argument_is_an_error_of_the_method(name):
    with pytest.raises(
        TypeError, match=rf"^{name}\(\) missing 2 .*: 'every' and 'stop'"
    ):
        METHODS[name][0](0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: so.srigl(0.5, structure=so.NM(1, 2), **WHEN), "argument 'structure'"),
        (lambda: so.ste(0.5, masks={}), "argument 'masks'"),
        (
            lambda: so.top_kast(0.5, trained_sparsity=0.2, min_fan_in=1),
            "argument 'min_fan_in'",
        ),
    ],
)
def test_what_a_method_decides_itself_is_told(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_exploration_is_tracked_through_phases():
    topology = so.phases(
        (0, so.static(0.5, track_explored=True)),
        (3, so.set_(0.5, every=2, stop=9, track_explored=True)),
    )
    masks, state = topology.init(jax.random.key(0), {"a": jnp.ones((4, 4))})
    np.testing.assert_array_equal(state.explored["a"], masks["a"])


@pytest.mark.parametrize(
    ("topology", "sentence"),
    [
        (so.rigl(0.5, every=100, stop=1000), "10 times, at steps 0 to 900"),
        (so.one_shot(0.5, at=3), "once, at step 3"),
        (so.ste(0.5), "every step, from step 0 on"),
        (so.top_kast(0.5, trained_sparsity=0.2), "every 100 steps, from step 0 on"),
        (
            so.phases((0, so.static(0.0)), (3, so.set_(0.5, every=2, stop=9))),
            "4 times, in 2 phases",  # at 3, 4, 6 and 8
        ),
    ],
)
def test_the_plan_tells_how_often_masks_are_updated(topology, sentence):
    plan = so.plan({"a": jnp.ones((4, 4))}, topology)
    assert f"Masks are updated {sentence}." in str(plan)


def test_a_static_plan_tells_of_no_updates():
    plan = so.plan({"a": jnp.ones((4, 4))}, so.static(0.5))
    assert "updated" not in str(plan)


# Where phases meet.

FROZEN = so.static(masks=so.PREVIOUS_MASKS)


@pytest.mark.parametrize(
    ("topology", "last"),
    [
        (so.gradual_magnitude(0.9, every=2, stop=5), 4),
        (so.granet(0.9, every=2, stop=5), 4),
        (so.one_shot(0.9, at=4), 4),
        (so.ac_dc(0.9, compress=[1, 4], decompress=[3]), 4),
    ],
)
def test_a_phase_that_cuts_off_the_last_update_is_refused(topology, last):
    message = (
        rf"phase 1 \({topology.name}\) .* update at step {last}, .* at step {last}: "
    )
    with pytest.raises(ValueError, match=message):
        so.phases((0, topology), (last, FROZEN))
    params = {"a": jax.random.normal(jax.random.key(0), (10, 20))}
    tx = so.sparsify(optax.sgd(0.1), so.phases((0, topology), (last + 1, FROZEN)))
    state = tx.init(params)
    params = so.apply_masks(params, state)
    update = jax.jit(tx.update)
    for _ in range(last + 3):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert int(so.get_masks(state)["a"].sum()) == 20


def test_a_phase_without_an_update_is_refused():
    with pytest.raises(ValueError, match=r"phase 2 \(rigl\), from step 10 .* never"):
        so.phases((0, so.static(0.5)), (10, so.rigl(0.5, every=2, stop=9)))

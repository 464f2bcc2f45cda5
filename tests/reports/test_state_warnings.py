"""Warnings of the summary, for every storage of masks and weights."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils, nnx

import sparseopt_jax as so

KEY = jax.random.key(0)
PARAMS = {
    "a": {"kernel": jax.random.normal(KEY, (64, 32)), "bias": jnp.zeros(32)},
    "b": {"kernel": jax.random.normal(KEY, (32, 10)), "bias": jnp.zeros(10)},
}
REMEDY = "call so.apply_masks(params, opt_state)"


def rigl(**options):
    return so.rigl(0.5, every=2, stop=8, **options)


FORMS = {
    "plain": lambda inner: so.sparsify(inner, rigl()),
    "packed": lambda inner: so.sparsify(inner, rigl(), packed=True),
    "compact": lambda inner: so.sparsify(inner, rigl(), compact=True),
    "host": lambda inner: so.sparsify(inner, rigl(), host_updates=True),
    "set": lambda inner: so.sparsify(inner, so.set_(0.5, every=2, stop=8)),
    "in_a_chain": lambda inner: optax.chain(so.sparsify(inner, rigl())),
    "accumulated": lambda inner: optax.MultiSteps(
        so.sparsify(inner, rigl()), 2
    ).gradient_transformation(),
}
# The others look like one of these from outside, and wait for ``make test-slow``.
QUICK = ("plain", "packed", "compact", "accumulated")
every_form = pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[] if form in QUICK else pytest.mark.slow)
        for form in FORMS
    ],
)


@functools.cache
def compiled(tx):
    @jax.jit
    def step(index, params, state):
        key = jax.random.fold_in(KEY, index)
        grads = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def trained(tx, params, steps=6):
    state = tx.init(params)
    params, step = so.apply_masks(params, state), compiled(tx)
    for index in range(steps):
        params, state = step(index, params, state)
    return params, state


@every_form
def test_forgotten_masks_are_warned_of(form):
    state = FORMS[form](optax.sgd(0.1)).init(PARAMS)
    summary = so.summary(PARAMS, state)
    inactive = summary.size - summary.active
    assert summary.inactive_nonzero == inactive > 100
    [warning] = summary.warnings
    assert warning.startswith(
        f"{inactive:,} inactive weights are not zero, in a/kernel"
    )
    assert "so.apply_masks(params, opt_state) after tx.init" in warning
    assert f"warning: {warning}" in str(summary)


@every_form
def test_zeros_that_are_kept_are_not_warned_of(form):
    params, state = trained(FORMS[form](optax.adam(0.1)), PARAMS)
    summary = so.summary(params, state)
    assert summary.warnings == () and summary.inactive_nonzero == 0


PLAIN = so.sparsify(optax.sgd(0.1), rigl())


def scaled_afterwards():
    tx = optax.chain(so.sparsify(optax.sgd(0.1), rigl()), optax.scale(0.5))
    return trained(tx, PARAMS)


def decayed_afterwards():
    tx = optax.chain(
        so.sparsify(optax.sgd(0.1), rigl()), optax.add_decayed_weights(0.1)
    )
    return trained(tx, PARAMS)


def averaged():
    (first, _), (last, state) = trained(PLAIN, PARAMS, steps=1), trained(PLAIN, PARAMS)
    return jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, first, last), state


def of_another_run():
    params, _ = trained(so.sparsify(optax.sgd(0.1), rigl(), key=1), PARAMS)
    return params, trained(PLAIN, PARAMS)[1]


def older_than_its_masks():
    params, _ = trained(PLAIN, PARAMS, steps=1)
    return params, trained(PLAIN, PARAMS)[1]


def in_a_plain_chain():
    # `so.apply_updates` was needed: optax's does not know masks.
    tx = optax.chain(so.sparseopt(rigl()), optax.sgd(0.1, momentum=0.9))
    return trained(tx, PARAMS)


@pytest.mark.parametrize(
    "broken",
    [
        scaled_afterwards,
        pytest.param(decayed_afterwards, marks=pytest.mark.slow),
        averaged,
        of_another_run,
        pytest.param(older_than_its_masks, marks=pytest.mark.slow),
        in_a_plain_chain,
    ],
)
def test_broken_zeros_are_warned_of(broken):
    params, state = broken()
    summary = so.summary(params, state)
    assert summary.inactive_nonzero > 0
    assert any(REMEDY in warning for warning in summary.warnings)


def test_numbers_are_of_each_leaf():
    tx = so.sparsify(optax.sgd(0.1), rigl())
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    mask = np.asarray(so.get_masks(state)["a"]["kernel"])
    places = np.argwhere(~mask)[:3]
    kernel = np.array(params["a"]["kernel"])
    kernel[tuple(places.T)] = [1.0, np.nan, -1e-30]
    params["a"]["kernel"] = kernel
    [warning] = so.summary(params, state).warnings
    assert warning.startswith("3 inactive weights are not zero, in a/kernel (3 of ")
    assert "b/kernel" not in warning
    kernel[tuple(places[1:].T)] = 0
    [warning] = so.summary(params, state).warnings
    assert warning.startswith("1 inactive weight is not zero, in a/kernel (1 of ")


@pytest.mark.parametrize(
    "topology",
    [
        so.ste(0.5),
        so.sr_ste(0.5),
        so.top_kast(0.5, trained_sparsity=0.25),
    ],
    ids=lambda topology: topology.name,
)
@pytest.mark.parametrize("packed", [False, True])
def test_weights_that_stay_dense_are_not_warned_of(topology, packed):
    state = so.sparsify(optax.sgd(0.1), topology, packed=packed).init(PARAMS)
    assert so.summary(PARAMS, state).inactive_nonzero == 0


def test_each_owner_has_its_kind():
    def labels(params):
        return {k: jax.tree.map(lambda _, k=k: k, tree) for k, tree in params.items()}

    tx = optax.partition(
        {
            "a": so.sparsify(optax.sgd(0.1), so.ste(0.5)),
            "b": so.sparsify(optax.sgd(0.1), rigl()),
        },
        labels,
    )
    [warning] = so.summary(PARAMS, tx.init(PARAMS)).warnings
    assert "b/kernel" in warning and "a/kernel" not in warning


# Trees of other libraries.


def linen_boxed():
    init = nn.with_partitioning(nn.initializers.normal(), ("in", "out"))
    return nn.Dense(32, kernel_init=init).init(KEY, jnp.ones((1, 64)))["params"]


def nnx_state():
    return nnx.state(nnx.Linear(64, 32, rngs=nnx.Rngs(0)), nnx.Param)


def equinox_module():
    return eqx.filter(eqx.nn.MLP(64, 10, 32, 1, key=KEY), eqx.is_inexact_array)


@pytest.mark.parametrize("make", [linen_boxed, nnx_state, equinox_module])
@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compact": True}])
def test_trees_of_other_libraries(make, options):
    params = make()
    state = so.sparsify(optax.sgd(0.1), rigl(), **options).init(params)
    assert REMEDY in str(so.summary(params, state).warnings)
    masked = so.apply_masks(params, state)
    assert so.summary(masked, state).warnings == ()


def test_a_whole_equinox_module_and_its_functions():
    model = eqx.nn.MLP(64, 10, 32, 1, key=KEY)
    arrays = eqx.filter(model, eqx.is_inexact_array)
    state = so.sparsify(optax.sgd(0.1), rigl()).init(arrays)
    summary = so.summary(model, state)
    assert summary.inactive_nonzero == summary.size - summary.active
    assert summary.parameters == sum(x.size for x in jax.tree.leaves(arrays))


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compact": True}])
def test_an_nnx_optimizer(options):
    model = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
    tx = so.sparsify(optax.sgd(0.1), rigl(), **options)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for params in (nnx.state(model, nnx.Param), model):
        assert so.summary(params, optimizer).inactive_nonzero > 100
    so.nnx.mask_model(model, optimizer)
    for params in (nnx.state(model, nnx.Param), model):
        assert so.summary(params, optimizer).warnings == ()


# Dead neurons.


def with_dead(dead, neurons=40, inputs=64, method=None, **options):
    mask = np.zeros((inputs, neurons), bool)
    mask[::8, dead:] = True
    mask[1, dead::2] = True
    masks = {"a": {"kernel": mask}, "b": {"kernel": np.ones((neurons, 4), bool)}}
    topology = method or so.rigl(masks=masks, every=100, stop=1000)
    params = jax.tree.map(lambda m: jnp.where(m, 1.0, 0.0), masks)
    return so.summary(params, so.sparsify(optax.sgd(0.1), topology).init(params))


@pytest.mark.parametrize(("dead", "warns"), [(0, 0), (7, 0), (8, 1), (12, 1), (39, 1)])
def test_a_layer_is_told_from_a_fifth_of_dead_neurons_on(dead, warns):
    summary = with_dead(dead)
    assert len(summary.warnings) == warns
    assert summary.dying == ("a/kernel",) * warns
    for warning in summary.warnings:
        assert f"a/kernel ({dead} of 40): min_fan_in=2 in the topology" in warning


@pytest.mark.parametrize("packed", [False, True])
def test_channels_that_are_removed_are_told_apart(packed):
    params = {"kernel": jnp.ones((16, 8))}
    topology = so.static(0.5, structure=so.Channel())
    state = so.sparsify(optax.sgd(0.1), topology, packed=packed).init(params)
    [warning] = so.summary(so.apply_masks(params, state), state).warnings
    assert "kernel (4 of 8)" in warning
    assert "Channel() and srigl remove neurons on purpose" in warning
    assert not any("on purpose" in text for text in with_dead(12).warnings)


def test_where_min_fan_in_is_not_taken_another_remedy_is_named():
    kernel = jnp.where(jnp.arange(16) < 4, 1.0, 1e-3) + jnp.zeros((16, 16))
    params = {"kernel": kernel}
    state = so.sparsify(optax.sgd(0.1), so.ste(0.9)).init(params)
    [warning] = so.summary(params, state).warnings
    assert "min_fan_in" not in warning and "a lower sparsity" in warning


def test_of_many_leaves_the_first_are_named():
    params = {f"layer_{i:02}": jnp.ones((8, 8)) for i in range(20)}
    state = so.sparsify(optax.sgd(0.1), rigl()).init(params)
    [warning] = so.summary(params, state).warnings
    assert "layer_07" in warning and "layer_08" not in warning
    assert " and 12 more: call" in warning


# Several runs side by side.


def stacked(options):
    tx = so.sparsify(optax.adam(0.1), so.static(0.5), **options)
    keys = jax.random.split(KEY, 3)
    params = jax.vmap(lambda key: {"kernel": jax.random.normal(key, (8, 16))})(keys)
    return params, jax.vmap(tx.init)(params)


def replicated(options):
    tx = so.sparsify(optax.adam(0.1), so.static(0.5), **options)
    params = {"kernel": jnp.ones((8, 16))}
    return jax_utils.replicate((params, tx.init(params)))


@pytest.mark.parametrize(
    ("side_by_side", "options"),
    [
        (stacked, {"compact": True}),
        *(
            pytest.param(make, options, marks=pytest.mark.slow)
            for make, options in (
                *((stacked, {}), (stacked, {"packed": True})),
                *((stacked, {"host_updates": True}), (replicated, {"packed": True})),
                *((replicated, {}), (replicated, {"compact": True})),
                (replicated, {"host_updates": True}),
            )
        ),
    ],
)
def test_runs_side_by_side_are_told(side_by_side, options):
    params, state = side_by_side(options)
    for function in (so.summary, so.metrics):
        with pytest.raises(ValueError, match=r"opt_state has a leading axis of \d"):
            function(params, state)
    first = jax.tree.map(lambda x: x[0], (params, state))
    masked = so.apply_masks(*first)
    assert so.summary(masked, first[1]).layers[0].shape == (8, 16)
    numbers = jax.vmap(so.metrics)(params, state)
    assert numbers["density"].shape == state.count.shape
    np.testing.assert_allclose(numbers["density"], 0.5)


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compact": True}])
def test_masks_of_runs_side_by_side_are_those_of_each(options):
    params, state = stacked(options)
    expected = jax.vmap(so.apply_masks)(params, state)
    found = so.apply_masks(params, state)
    np.testing.assert_array_equal(found["kernel"], expected["kernel"])


# Trees that do not belong together, and traced values.


def test_masks_of_another_tree_are_an_error():
    state = so.sparsify(optax.sgd(0.1), rigl()).init(PARAMS)
    with pytest.raises(ValueError, match="a mask for 'a/kernel', which params lack"):
        so.summary({"params": PARAMS}, state)
    other = {**PARAMS, "a": {"kernel": jnp.ones((32, 32)), "bias": jnp.zeros(32)}}
    with pytest.raises(ValueError, match=r"mask at 'a/kernel' has shape \(64, 32\)"):
        so.summary(other, state)


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compact": True}])
def test_under_jit_metrics_is_named(options):
    state = so.sparsify(optax.sgd(0.1), rigl(), **options).init(PARAMS)
    for function in (
        lambda: jax.jit(so.summary)(PARAMS, state),
        lambda: jax.jit(lambda params: so.summary(params, state))(PARAMS),
        lambda: jax.grad(lambda params: so.summary(params, state).active)(PARAMS),
    ):
        with pytest.raises(TypeError, match=r"use so\.metrics under jit"):
            function()

"""Numbers for loggers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparseopt_jax as so

MASK = jnp.arange(4)[:, None] < jnp.array([4, 2, 0])
PARAMS = {"a": {"k": jnp.ones((4, 3)), "b": jnp.ones(3)}, "c": jnp.ones((2, 2))}
MASKS = {"a": {"k": MASK, "b": None}, "c": jnp.ones((2, 2), bool)}


def check(numbers, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(numbers[name], value, rtol=1e-6, err_msg=name)
        kind = jnp.int32 if isinstance(value, int) else jnp.float32
        assert numbers[name].dtype == kind and numbers[name].shape == (), name


def of_masks(masks, dims=None, **kwargs):
    """Return the metrics of given masks, with all weights 1."""
    params = jax.tree.map(lambda mask: jnp.ones(mask.shape), masks)
    # Leaves without active weights cannot be passed: they arise later from masks.
    full = jax.tree.map(jnp.ones_like, masks)
    state = so.sparsify(optax.sgd(0.1), so.static(masks=full)).init(params)
    return so.metrics(params, state._replace(masks=masks), dims=dims, **kwargs)


@pytest.mark.parametrize("packed", [False, True])
def test_by_hand_under_jit(packed):
    tx = so.sparsify(optax.sgd(0.1), so.static(masks=MASKS), packed=packed)
    state = tx.init(PARAMS)
    # Fan-ins 4 and 2 rotate (1, 1, 1, 1 | 1, 1): cosine (4 a + 2 b) / ...
    a, b = np.sqrt(2), 1.0
    rows = np.degrees(np.arccos((4 * a + 2 * b) / np.sqrt(6 * (4 * a**2 + 2 * b**2))))
    along, length = 4 * a + 2 * b + 4, np.sqrt(10 * (4 * a**2 + 2 * b**2 + 4))
    expected = {
        "density": 10 / 16,
        "inactive_nonzero": 6,
        "churn": 0.0,
        "collapsed": 0,
        "dead_fraction": 1 / 5,
        "skew_angle": np.degrees(np.arccos(along / length)),
        "density/a/k": 0.5,
        "churn/a/k": 0.0,
        "dead_neurons/a/k": 1,
        "dead_fraction/a/k": 1 / 3,
        "dead_inputs/a/k": 0,
        "fan_in_min/a/k": 0,
        "fan_in_max/a/k": 4,
        "fan_in_mean/a/k": 2.0,
        "fan_in_cv/a/k": np.sqrt(8 / 3) / 2,
        "factor_min/a/k": 0.0,
        "factor_max/a/k": np.sqrt(2),
        "skew_angle/a/k": rows,
        "density/c": 1.0,
        "churn/c": 0.0,
        "dead_neurons/c": 0,
        "dead_fraction/c": 0.0,
        "dead_inputs/c": 0,
        "fan_in_min/c": 2,
        "fan_in_max/c": 2,
        "fan_in_mean/c": 2.0,
        "fan_in_cv/c": 0.0,
        "factor_min/c": 1.0,
        "factor_max/c": 1.0,
        "skew_angle/c": 0.0,
    }
    for function in (so.metrics, jax.jit(so.metrics)):
        numbers = function(PARAMS, state, grads=PARAMS)
        assert numbers.keys() == expected.keys()
        check(numbers, expected)
    without = {name for name in expected if "skew" not in name}
    assert so.metrics(PARAMS, state).keys() == without
    masked = so.apply_masks(PARAMS, state)
    assert int(so.metrics(masked, state)["inactive_nonzero"]) == 0


def test_inputs_that_lead_nowhere():
    # A 1x2 convolution of 3 channels into 2: channel 0 is read at one place only,
    # channel 1 at none, channel 2 by one of the outputs.
    kernel = np.zeros((1, 2, 3, 2), bool)
    kernel[0, 1, 0, :] = True
    kernel[0, 0, 2, 1] = True
    numbers = of_masks({"k": jnp.array(kernel)})
    check(
        numbers,
        {
            "dead_inputs/k": 1,
            "dead_neurons/k": 0,
            "fan_in_min/k": 1,
            "fan_in_max/k": 2,
        },
    )


def test_layers_of_a_stack_are_counted_one_by_one():
    # Three layers of 2 inputs and 2 neurons: full, empty, and one weight.
    stack = np.zeros((3, 2, 2), bool)
    stack[0] = True
    stack[2, 0, 1] = True
    masks = {"stack": jnp.array(stack), "whole": jnp.zeros((2, 2), bool)}
    dims = {"stack": so.NeuronDims(1, 2)}
    grads = {"stack": jnp.ones((3, 2, 2)), "whole": jnp.ones((2, 2))}
    # The single weight has the factor sqrt(1 / 0.5), the four others 1.
    turned = np.degrees(np.arccos((4 + np.sqrt(2)) / np.sqrt(5 * (4 + 2))))
    expected = {
        "collapsed": 2,
        "dead_inputs/stack": 3,
        "dead_neurons/stack": 3,
        "dead_fraction/stack": 0.5,
        "dead_fraction": 5 / 8,
        "dead_inputs/whole": 2,
        "dead_neurons/whole": 2,
        "fan_in_max/whole": 0,
        "fan_in_cv/whole": 0.0,
        "churn/whole": 0.0,
        "skew_angle/stack": turned,
        "skew_angle/whole": 0.0,
        "skew_angle": turned,
    }
    check(of_masks(masks, dims, grads=grads), expected)
    # As one layer, the stack is not collapsed.
    assert int(of_masks(masks)["collapsed"]) == 1


def test_a_vector_of_given_masks_has_no_neurons():
    numbers = of_masks({"v": jnp.zeros(3, bool), "k": jnp.ones((2, 2), bool)})
    assert int(numbers["collapsed"]) == 1
    assert {"density/v", "churn/v"} <= numbers.keys()
    assert "dead_neurons/v" not in numbers


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_churn_is_what_the_last_change_turned_on(host, packed):
    # Layer b keeps all its weights, so it never changes.
    topology = so.rigl(
        0.75,
        every=2,
        stop=100,
        drop_fraction=0.5,
        decay="constant",
        distribution={"b": 0.0},
        track_explored=True,
    )
    tx = so.sparsify(optax.sgd(0.1), topology, host_updates=host, packed=packed)
    keys = jax.random.split(jax.random.key(0), 6)
    params = {"a": jax.random.normal(keys[5], (8, 8)), "b": jnp.ones((2, 2))}
    state = tx.init(params)
    params = so.apply_masks(params, state)
    measure, update = jax.jit(so.metrics), jax.jit(tx.update)
    change = jax.jit(functools.partial(so.update_topology, tx))
    assert float(measure(params, state)["churn"]) == 0
    seen = so.get_masks(state)["a"]
    for step in range(5):
        before = so.get_masks(state)["a"]
        grads = {"a": jax.random.normal(keys[step], (8, 8)), "b": jnp.ones((2, 2))}
        if host and topology.due(step):
            state, params = change(grads, state, params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        now = so.get_masks(state)["a"]
        seen |= now
        numbers = measure(params, state)
        if topology.due(step):
            grown = int((now & ~before).sum())
        assert 0 < grown <= 8  # of 16 active weights half may be dropped
        check(
            numbers,
            {
                "churn/a": grown / 16,
                "churn/b": 0.0,
                "churn": grown / 20,
                "explored/a": float(seen.mean()),
                "explored/b": 1.0,
                "explored": float((seen.sum() + 4) / 68),
            },
        )


def test_explored_grows_with_a_topology_that_tracks_it():
    topology = so.set_(0.75, every=1, stop=100, track_explored=True, decay="constant")
    tx = so.sparsify(optax.sgd(0.1), topology)
    params = {"k": jax.random.normal(jax.random.key(0), (8, 8))}
    state = tx.init(params)
    params = so.apply_masks(params, state)
    measure, update = jax.jit(so.metrics), jax.jit(tx.update)
    explored = [float(measure(params, state)["explored"])]
    for _ in range(5):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        explored.append(float(measure(params, state)["explored"]))
    assert explored[0] == 0.25
    assert explored == sorted(explored) and explored[-1] > 0.4
    plain = so.sparsify(optax.sgd(0.1), so.set_(0.75, every=1, stop=100))
    assert "explored" not in so.metrics(params, plain.init(params))


def test_several_states_count_together():
    tracked = functools.partial(
        so.rigl, every=1, stop=9, drop_fraction=0.5, track_explored=True
    )
    tx = optax.partition(
        {
            "one": so.sparsify(optax.sgd(0.1), tracked(0.5)),
            "two": so.sparsify(optax.sgd(0.1), tracked(0.75)),
        },
        {"a": "one", "b": "two"},
    )
    params = {
        name: jax.random.normal(jax.random.key(i), (8, 4))
        for i, name in enumerate("ab")
    }
    state = tx.init(params)
    first = so.get_masks(state)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.cos, params), state, params)
    second = so.get_masks(state)
    grown = {name: int((second[name] & ~first[name]).sum()) for name in "ab"}
    assert all(grown.values())
    check(
        so.metrics(params, state),
        {
            "churn": sum(grown.values()) / 24,
            "churn/a": grown["a"] / 16,
            "churn/b": grown["b"] / 8,
            "explored": (24 + sum(grown.values())) / 64,
            "explored/a": (16 + grown["a"]) / 32,
        },
    )


def test_an_nnx_optimizer():
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    topology = so.rigl(0.75, every=1, stop=9, track_explored=True)
    tx = so.sparsify(optax.sgd(0.1), topology)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    so.nnx.mask_model(model, optimizer)
    params = nnx.state(model, nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    params = nnx.state(model, nnx.Param)
    numbers = so.metrics(params, optimizer, grads=params)
    assert float(numbers["explored/kernel"]) >= 0.25
    assert {"churn", "skew_angle", "churn/kernel", "skew_angle/kernel"} <= set(numbers)


def test_dims_as_given_to_the_topology():
    params = {"k": jnp.ones((2, 4, 3))}
    dims = so.NeuronDims(1, 2)
    tx = so.sparsify(optax.sgd(0.1), so.static(0.5, dims=dims))
    numbers = so.metrics(params, tx.init(params), dims=dims)
    assert float(numbers["fan_in_mean/k"]) == 2.0


def test_needs_masks():
    with pytest.raises(ValueError, match="no masks found"):
        so.metrics(PARAMS, optax.EmptyState())

"""Seeds and keys: all that ``jax.random.key`` takes, with the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.trees.prng_keys import load_key, store_key, typed_key

PARAMS = {"kernel": jnp.ones((6, 8)), "bias": jnp.ones(8)}
MASKS = {"kernel": jnp.arange(48).reshape(6, 8) % 2 == 0, "bias": optax.MaskedNode()}

# Functions that take a seed, and their results.
TAKERS = {
    "sparsify": lambda key: so.sparsify(optax.sgd(0.1), so.static(0.5), key=key),
    "packed": lambda key: so.sparsify(
        optax.sgd(0.1), so.static(0.5), key=key, packed=True
    ),
    "compact": lambda key: so.sparsify(
        optax.sgd(0.1), so.static(0.5), key=key, compact=True
    ),
    "ste": lambda key: so.sparsify(optax.sgd(0.1), so.ste(0.5), key=key),
    "sparseopt": lambda key: so.sparseopt(so.static(0.5), key=key),
    "sparse_sgd": lambda key: so.sparse_sgd(0.1, so.static(0.5), key=key),
    "sparse_adamw": lambda key: so.sparse_adamw(0.1, so.static(0.5), key=key),
    "sparse_lars": lambda key: so.sparse_lars(0.1, so.static(0.5), key=key),
    "sparse_lamb": lambda key: so.sparse_lamb(0.1, so.static(0.5), key=key),
    "smet": lambda key: so.smet(0.1, so.set_smet(0.5, stop=1000), key=key),
    "prune": lambda key: so.prune(PARAMS, "random", sparsity=0.5, key=key).masks,
    "prune by magnitude": lambda key: so.prune(PARAMS, sparsity=0.5, key=key).masks,
    "sparse_init": lambda key: so.sparse_init(PARAMS, MASKS, key),
}
SHAPES = jax.eval_shape(lambda: PARAMS)


def made(taker, key):
    result = TAKERS[taker](key)
    if isinstance(result, optax.GradientTransformation):
        return so.get_masks(result.init(SHAPES if taker == "ste" else PARAMS))
    return result


every_taker = pytest.mark.parametrize("taker", TAKERS)


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


FORMS = {
    "int64": lambda key: np.int64(3),
    "uint8": lambda key: np.uint8(3),
    "0-d array": lambda key: np.array(3),
    "jax": lambda key: jnp.int32(3),
    "key": lambda key: key,
    "data": lambda key: jax.random.key_data(key),
    "data in NumPy": lambda key: np.asarray(jax.random.key_data(key)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_seed_is_the_same_seed(form):
    key = jax.random.key(3)
    assert typed_key(FORMS[form](key)) == key
    assert_equal(made("sparsify", FORMS[form](key)), made("sparsify", 3))


@every_taker
def test_a_seed_and_its_key_are_the_same_everywhere(taker):
    assert_equal(made(taker, jax.random.key(3)), made(taker, 3))


@pytest.mark.parametrize(
    "seed", [3_000_000_000, 2**40 + 5, 2**63 - 1, -1, -(2**63), np.uint64(2**63 + 7)]
)
def test_large_and_negative_seeds_are_those_of_jax(seed):
    expected = made("sparsify", jax.random.key(seed))
    for taker in ("sparsify", "packed", "compact", "sparse_adamw"):
        assert_equal(made(taker, seed), expected)
    assert typed_key(seed) == jax.random.key(seed)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("default", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_implementation_keep_it(impl, default):
    key = jax.random.key(3, impl=impl)
    with jax.default_prng_impl(default):
        assert typed_key(key) == key
        assert load_key(store_key(key), like=key) == key
        data = jax.random.key_data(key)
        from_data = typed_key(data)
        assert (jax.random.key_data(from_data) == data).all()
        if data.shape == jax.random.key_data(jax.random.key(0)).shape:
            assert jax.random.key_impl(from_data) == default


@pytest.mark.parametrize(
    ("host_updates", "impl"),
    [
        *((False, "threefry2x32"), (True, "threefry2x32"), (False, "rbg")),
        pytest.param(True, "rbg", marks=pytest.mark.slow),
        pytest.param(False, "unsafe_rbg", marks=pytest.mark.slow),
        pytest.param(True, "unsafe_rbg", marks=pytest.mark.slow),
    ],
)
def test_masks_move_by_the_implementation_of_the_key(impl, host_updates):
    # The library's draws while it kept its keys typed.
    key = jax.random.key(3, impl=impl)
    topology = so.set_(0.5, every=2, stop=10)
    _, step_key = jax.random.split(key)
    tx = so.sparsify(optax.sgd(0.0), topology, key=key, host_updates=host_updates)
    state = tx.init(PARAMS)
    assert state.key.dtype == jnp.uint32
    np.testing.assert_array_equal(state.key, jax.random.key_data(step_key))
    params = so.apply_masks(PARAMS, state)
    expected, _ = jax.jit(topology.update)(
        *(jax.random.fold_in(step_key, 0), jnp.int32(0), state.masks),
        *(state.topology_state._replace(turned=()), params, PARAMS),
    )
    if host_updates:
        state = state._replace(count=jnp.int32(1))
        state, _ = so.update_topology(tx, PARAMS, state, params)
    else:
        _, state = jax.jit(tx.update)(PARAMS, state, params)
    assert_equal(so.get_masks(state), expected)


def test_a_state_that_holds_a_typed_key_goes_on():
    tx = so.sparsify(optax.sgd(0.1), so.set_(0.5, every=1, stop=10))
    state = tx.init(PARAMS)
    old = state._replace(key=jax.random.wrap_key_data(state.key))
    params = so.apply_masks(PARAMS, state)
    expected = tx.update(PARAMS, state, params)[1]
    assert_equal(tx.update(PARAMS, old, params)[1].masks, expected.masks)


def test_a_seed_may_be_traced():
    def masks(seed):
        return so.sparsify(optax.sgd(0.1), so.static(0.5), key=seed).init(PARAMS).masks

    expected = [masks(seed)["kernel"] for seed in range(3)]
    seeds = jnp.arange(3)
    assert_equal([*jax.vmap(masks)(seeds)["kernel"]], expected)
    assert_equal(
        [*jax.vmap(masks)(jax.vmap(jax.random.key)(seeds))["kernel"]], expected
    )


WRONG = {
    "bool": (True, TypeError, "got True"),
    "numpy bool": (np.bool_(True), TypeError, "got np.True_"),
    "bool array": (jnp.array(True), TypeError, r"got bool of shape \(\)"),
    "float": (1.0, TypeError, "got 1.0"),
    "float array": (jnp.ones(2), TypeError, r"got float32 of shape \(2,\)"),
    "string": ("a", TypeError, "got 'a'"),
    "none": (None, TypeError, "got None"),
    "list": ([0, 1], TypeError, r"got \[0, 1\]"),
    "keys": (
        jax.random.split(jax.random.key(0)),
        *(ValueError, r"a single key, got keys of shape \(2,\)"),
    ),
    "data of keys": (
        jax.random.key_data(jax.random.split(jax.random.key(0))),
        *(ValueError, r"got uint32 of shape \(2, 2\)"),
    ),
    "data of no key": (
        np.zeros(3, np.uint32),
        ValueError,
        r"got uint32 of shape \(3,\)",
    ),
    "int32 data": (np.zeros(2, np.int32), ValueError, r"got int32 of shape \(2,\)"),
    "too large": (2**63, ValueError, "fit in 64 bits, got 9223372036854775808"),
}


@every_taker
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_seed_is_told_at_once(taker, wrong):
    key, error, message = WRONG[wrong]
    with pytest.raises(error, match=f"^key must .*{message}.*pass a Python or NumPy"):
        TAKERS[taker](key)

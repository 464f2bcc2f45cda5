"""Ready-made optimizers inside the wrappers of optax that omit leaves or trace."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so

PARAMS = {
    "body": {"kernel": jax.random.normal(jax.random.key(0), (8, 8))},
    "frozen": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)},
    "norm": {"scale": jnp.ones(8), "bias": jnp.ones(8)},
    "absent": None,  # Equinox stores untrained leaves this way
}
BATCH_STATS = {"norm": {"mean": jnp.zeros(8), "var": jnp.arange(1.0, 9.0)}}
LINKS = {"body/kernel": "norm"}
DIMS = so.NeuronDims(0, 1)


def rigl():
    return so.rigl(0.5, every=2, stop=7, drop_fraction=0.5)


def set_smet():
    return so.set_smet(0.5, every=2, stop=7)


def sparsified(inner):
    return so.sparsify(optax.chain(inner, optax.sgd(0.1)), rigl())


OPTIMIZERS = {
    "sparse_sgd": lambda: so.sparse_sgd(
        0.1, rigl(), momentum=0.9, weight_decay=1e-2, sparseopt=True
    ),
    "sparse_adamw": lambda: so.sparse_adamw(1e-2, rigl(), sparseopt=True),
    "sparse_lars": lambda: so.sparse_lars(0.1, rigl(), weight_decay=1e-2),
    "sparse_lamb": lambda: so.sparse_lamb(0.1, rigl(), weight_decay=1e-2),
    "smet": lambda: so.smet(0.01, set_smet(), weight_decay=1e-2),
    "smet_dense": lambda: so.smet(0.01, set_smet(), compact=False),
    "ham": lambda: so.sparsify(so.ham(optax.sgd(0.1), 0.1, alpha=2.0), rigl()),
    "sign_in": lambda: so.sparsify(so.sign_in(optax.sgd(0.1), every=3), rigl()),
    "trust_ratio": lambda: sparsified(so.scale_by_sparse_trust_ratio()),
    "batch_variance": lambda: sparsified(so.scale_by_batch_variance(LINKS)),
    "local_adam": lambda: sparsified(so.scale_by_local_adam()),
    "snfs": lambda: so.sparse_sgd(0.1, so.snfs(0.5, every=2, stop=7), momentum=0.9),
}
TRAINED = {
    "body": {"kernel": True},
    "frozen": {"kernel": False, "bias": False},
    "norm": {"scale": True, "bias": False},
    "absent": None,
}
SUBTREES = {"body": True, "frozen": False, "norm": False, "absent": None}
LABELS = {"body": "trained", "frozen": "rest", "norm": "rest", "absent": None}
WRAPPERS = {
    "masked": lambda tx: optax.masked(tx, TRAINED),
    "masked_subtrees": lambda tx: optax.masked(tx, SUBTREES),
    "masked_by_rank": lambda tx: optax.masked(
        tx, lambda p: jax.tree.map(lambda x: jnp.ndim(x) > 1, p)
    ),
    "multi_transform": lambda tx: optax.multi_transform(
        {"trained": tx, "rest": optax.set_to_zero()}, LABELS
    ),
    "partition": lambda tx: optax.partition(
        {"trained": tx, "rest": optax.adam(0.1)},
        jax.tree.map(lambda is_trained: "trained" if is_trained else "rest", TRAINED),
    ),
    "selective_transform": lambda tx: optax.selective_transform(
        tx, freeze_mask=jax.tree.map(lambda is_trained: not is_trained, TRAINED)
    ),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step, **extra: step < 100
    ),
    "conditionally_mask": lambda tx: optax.conditionally_mask(
        tx, lambda step, **extra: step < 100
    ),
}
PAIRS = sorted(
    {("sparse_adamw", name) for name in WRAPPERS}
    | {(name, "masked") for name in OPTIMIZERS}
    | {
        ("sparse_sgd", "partition"),
        ("sparse_lars", "masked_subtrees"),
        ("sparse_lamb", "multi_transform"),
        ("smet", "selective_transform"),
    }
)


# Wrapped like others, these wait for ``make test-slow``.
LATER = {
    *(("sparse_adamw", f"masked_{which}") for which in ("subtrees", "by_rank")),
    ("sparse_adamw", "conditionally_mask"),
    *(
        (name, "masked")
        for name in ("ham", "sign_in", "trust_ratio", "local_adam", "smet_dense")
    ),
}


@pytest.mark.parametrize(
    ("optimizer", "wrapper"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] if pair in LATER else [])
        for pair in PAIRS
    ],
)
def test_zeros_are_exact_where_a_wrapper_leaves_leaves_out(optimizer, wrapper):
    tx = WRAPPERS[wrapper](OPTIMIZERS[optimizer]())
    state = tx.init(PARAMS)
    params = so.apply_masks(PARAMS, state)
    first = so.get_masks(state)["body"]["kernel"]
    update = jax.jit(tx.update)
    for step in range(5):
        grads = jax.tree.map(
            lambda x: jax.random.normal(jax.random.key(9), x.shape), params
        )
        updates, state = update(grads, state, params, batch_stats=BATCH_STATS)
        params = optax.apply_updates(params, updates)
        mask = np.asarray(so.get_masks(state)["body"]["kernel"])
        kernel = np.asarray(params["body"]["kernel"])
        assert not kernel[~mask].any() and kernel[mask].any(), step
    assert (mask != first).any()
    assert params["absent"] is None


# Arguments that decide about the program, traced if they are not in static_args.
INJECTED = {
    so.sparse_sgd: (
        {"learning_rate": 0.1, "topology": rigl(), "momentum": None},
        {"nesterov": 0, "sparseopt": 1, "packed": 1},
    ),
    so.sparse_adamw: (
        {"learning_rate": 0.1, "topology": rigl()},
        {"sparseopt": 1, "compact": 1},
    ),
    so.sparse_lars: (
        {"learning_rate": 0.1, "topology": rigl()},
        {"nesterov": 1, "sparseopt": 1, "host_updates": 0},
    ),
    so.sparse_lamb: (
        {"learning_rate": 0.1, "topology": rigl()},
        {"sparseopt": 1, "packed": 1},
    ),
    so.smet: (
        {"learning_rate": 0.1, "topology": set_smet()},
        {"density_exponent": 1.0, "warmup_steps": 3, "compact": 1, "packed": 0},
    ),
    so.sparsify: (
        {"inner": optax.sgd(0.1), "topology": rigl()},
        {"host_updates": 0, "packed": 1, "compact": 0},
    ),
    so.scale_by_local_adam: ({"counted": None}, {"warmup_steps": 3, "shared_axis": -1}),
    so.sign_in: ({"inner": optax.sgd(0.1)}, {"every": 3}),
    so.ham: ({"inner": optax.sgd(0.1), "learning_rate": 0.1}, {}),
    so.scale_by_sparse_trust_ratio: (
        {"where": lambda path, leaf: True, "dims": DIMS},
        {},
    ),
    so.scale_by_batch_variance: ({"links": LINKS, "dims": lambda path, leaf: DIMS}, {}),
}
OWNERS = (so.sparse_sgd, so.sparse_adamw, so.sparse_lars, so.sparse_lamb, so.smet)


def injected(alias, static, options):
    tx = optax.inject_hyperparams(alias, static_args=static)(**options)
    return tx if alias in (*OWNERS, so.sparsify) else so.sparsify(tx, rigl())


def one_update(tx):
    params = {name: PARAMS[name] for name in ("body", "norm")}
    state = tx.init(params)
    return jax.jit(tx.update)(params, state, params, batch_stats=BATCH_STATS)


@pytest.mark.parametrize("alias", INJECTED, ids=lambda alias: alias.__name__)
def test_an_injected_optimizer_is_compiled_with_the_documented_static_args(alias):
    given, deciding = INJECTED[alias]
    options = given | deciding
    names = set(options) - {"learning_rate", "momentum"}
    for name in names:
        assert f"``{name}``" in alias.__doc__.partition("inject_hyperparams")[2], name
    updates, _ = one_update(injected(alias, tuple(names), options))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("alias", "missing"),
    [(alias, name) for alias, (_, deciding) in INJECTED.items() for name in deciding],
    ids=lambda wrapper: getattr(wrapper, "__name__", wrapper),
)
def test_what_is_missing_in_static_args_is_named(alias, missing):
    given, deciding = INJECTED[alias]
    static = tuple((set(given) | set(deciding)) - {"learning_rate", missing})
    with pytest.raises(TypeError, match=rf"name '{missing}' in static_args"):
        one_update(injected(alias, static, given | deciding))

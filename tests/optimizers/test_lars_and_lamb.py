"""LARS and LAMB against loops over the active weights only."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.optimizers import (
    KERNELS,
    STEPS,
    Moment,
    gradients,
    one_step,
    random_tree,
    rigl,
    set_,
    sparse_states,
    start,
    static,
)


def normal(seed, shape=(6, 4), dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))


# One flat vector of active weights for each layer.

TOPOLOGIES = {"static": static(), "set": set_(), "rigl": rigl()}


class Flat:
    """A layer as a flat array of its active weights, in float64."""

    def __init__(self, values, mask=None):
        self.is_vector = mask is None
        self.shape = values.shape
        self.index = self._places(np.ones(self.shape, bool) if mask is None else mask)
        self.w = np.asarray(values, np.float64).ravel()[self.index]
        self.moments = [np.zeros_like(self.w) for _ in range(2)]

    @staticmethod
    def _places(mask):
        return np.flatnonzero(mask)

    def move(self, mask):
        """Keep value and moments of weights that stay active; set new ones to zero."""
        old = {place: i for i, place in enumerate(self.index)}
        self.index = self._places(mask)

        def moved(x):
            return np.array([x[old[p]] if p in old else 0.0 for p in self.index])

        self.w, self.moments = moved(self.w), [moved(x) for x in self.moments]

    def take(self, grad):
        return np.asarray(grad, np.float64).ravel()[self.index]

    def factors(self):
        """Return SparseOpt's factors, by neuron: the last axis."""
        if self.is_vector:
            return 1.0
        neurons = self.shape[-1]
        fan_in_dense = np.prod(self.shape) / neurons
        fan_in = np.bincount(self.index % neurons, minlength=neurons)
        s = 1 - fan_in / fan_in_dense
        return (np.sqrt(1 - s) / np.sqrt(1 - s.mean()))[self.index % neurons]

    def ratio(self, u, coefficient=1.0):
        if self.is_vector:
            return 1.0
        weights, updates = (np.sqrt((x[self.w != 0] ** 2).sum()) for x in (self.w, u))
        return coefficient * weights / updates if weights and updates else 1.0

    def lamb(self, grad, t, *, rate, b1, b2, eps, decay):
        g = self.take(grad)
        m, v = self.moments
        m[:] = b1 * m + (1 - b1) * g
        v[:] = b2 * v + (1 - b2) * g**2
        u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        u = self.factors() * u + (0 if self.is_vector else decay * self.w)
        self.w = self.w - rate * self.ratio(u) * u

    def lars(self, grad, t, *, rate, momentum, nesterov, decay, coefficient):
        u = self.factors() * self.take(grad)
        u = u + (0 if self.is_vector else decay * self.w)
        u = -rate(t - 1) * self.ratio(u, coefficient) * u
        trace = self.moments[0]
        trace[:] = momentum * trace + u
        self.w = self.w + (momentum * trace + u if nesterov else trace)

    def dense(self):
        out = np.zeros(np.prod(self.shape))
        out[self.index] = self.w
        return out.reshape(self.shape)


def layers_of(params, masks):
    """Return ``Flat`` layers by name: kernels with masks, and the rest."""
    return {
        (name, leaf): Flat(x, masks[name] if leaf == "kernel" else None)
        for name, leaves in params.items()
        for leaf, x in leaves.items()
    }


def check_against_a_loop(tx, topology, step_of):
    now = start(tx, random_tree(0))
    layers = layers_of(now.params, now.masks)
    step = jax.jit(one_step(tx))
    changes = 0
    for count in range(STEPS):
        grads = gradients(count)
        new = step(grads, *now)
        due = topology.due(count)
        changes += due
        for (name, leaf), layer in layers.items():
            if not (due and topology.replaces_step):
                step_of(layer)(grads[name][leaf], count + 1)
            if due and leaf == "kernel":
                layer.move(new.masks[name])
            np.testing.assert_allclose(
                new.params[name][leaf], layer.dense(), rtol=1e-4, atol=1e-6
            )
        now = new
    assert changes == (2 if topology.moves else 0)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_lamb_is_lamb_on_the_active_weights(name):
    topology = TOPOLOGIES[name]
    tx = so.sparse_lamb(
        0.05, topology, b1=0.8, b2=0.95, eps=1e-4, weight_decay=0.1, sparseopt=True
    )
    options = {"rate": 0.05, "b1": 0.8, "b2": 0.95, "eps": 1e-4, "decay": 0.1}
    check_against_a_loop(
        *(tx, topology), lambda layer: functools.partial(layer.lamb, **options)
    )


@pytest.mark.parametrize(("name", "nesterov"), [("set", False), ("rigl", True)])
def test_lars_is_lars_on_the_active_weights(name, nesterov):
    topology = TOPOLOGIES[name]
    schedule = optax.linear_schedule(5.0, 1.0, STEPS)
    tx = so.sparse_lars(
        *(schedule, topology),
        momentum=0.8,
        nesterov=nesterov,
        weight_decay=0.1,
        trust_coefficient=0.01,
        sparseopt=True,
    )
    options = {
        "rate": lambda t: float(schedule(t)),
        "momentum": 0.8,
        "nesterov": nesterov,
        "decay": 0.1,
        "coefficient": 0.01,
    }
    check_against_a_loop(
        *(tx, topology), lambda layer: functools.partial(layer.lars, **options)
    )


# The optimizers, dense.

IS_KERNEL = {
    "conv": {"kernel": True, "bias": False},
    "dense": {"kernel": True, "bias": False},
    "norm": {"scale": False},
}
SCHEDULE = optax.linear_schedule(0.1, 0.01, STEPS)


def kernels_of(tree):
    return {name: {"kernel": tree[name]["kernel"]} for name in KERNELS}


def trained(tx, part=lambda tree: tree, steps=STEPS, dtype=jnp.float32):
    """Return the parameters, or a part of them, after some steps."""
    params = part(random_tree(0, dtype))
    now = Moment(params, tx.init(params))
    if sparse_states(now.state):
        now = start(tx, params)
    step = jax.jit(one_step(tx))
    for count in range(steps):
        grads = jax.tree.map(lambda g: g.astype(dtype), part(gradients(count)))
        now = step(grads, *now)
    return now.params


def assert_close(actual, expected):
    """Compare; norms over several axes are rounded as the compiler sums them."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        *(actual, expected),
    )


def assert_same(actual, expected):
    chex.assert_trees_all_equal(actual, expected)


def test_dense_lars_is_optaxs():
    options = {"weight_decay": 0.1, "momentum": 0.8, "nesterov": True, "eps": 1e-3}
    masks = {"weight_decay_mask": IS_KERNEL, "trust_ratio_mask": IS_KERNEL}
    ours = so.sparse_lars(SCHEDULE, so.static(0.0), **options)
    assert_same(trained(ours), trained(optax.lars(SCHEDULE, **masks, **options)))


def test_dense_lamb_is_optaxs():
    ours = so.sparse_lamb(0.1, so.static(0.0), weight_decay=0.1, sparseopt=True)
    theirs = optax.lamb(0.1, weight_decay=0.1)
    assert_close(trained(ours, kernels_of), trained(theirs, kernels_of))
    # Its ratio takes no mask; these are its parts.
    by_hand = optax.chain(
        optax.scale_by_adam(eps=1e-6),
        optax.add_decayed_weights(0.1, IS_KERNEL),
        optax.masked(optax.scale_by_trust_ratio(), IS_KERNEL),
        optax.scale_by_learning_rate(0.1),
    )
    assert_close(trained(ours), trained(by_hand))


# The correction's place.


def sparse(*inner):
    return so.sparsify(optax.chain(*inner), static())


@pytest.mark.parametrize("sparseopt", [True, False])
def test_lamb_corrects_between_adam_and_the_ratio(sparseopt):
    between = [so.scale_by_sparseopt()] if sparseopt else []
    by_hand = sparse(
        optax.scale_by_adam(0.8, 0.95, 1e-4),
        *between,
        optax.add_decayed_weights(0.1, IS_KERNEL),
        so.scale_by_sparse_trust_ratio(),
        optax.scale_by_learning_rate(0.1),
    )
    options = {"b1": 0.8, "b2": 0.95, "eps": 1e-4, "weight_decay": 0.1}
    ready = so.sparse_lamb(0.1, static(), sparseopt=sparseopt, **options)
    assert_same(trained(ready), trained(by_hand))


@pytest.mark.parametrize("sparseopt", [True, False])
def test_lars_corrects_the_gradient(sparseopt):
    by_hand = sparse(
        *([so.scale_by_sparseopt()] if sparseopt else []),
        optax.add_decayed_weights(0.1, IS_KERNEL),
        so.scale_by_sparse_trust_ratio(trust_coefficient=0.01, eps=1e-3),
        optax.scale_by_learning_rate(0.1),
        optax.trace(0.8, nesterov=True),
    )
    options = {
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.1,
        "trust_coefficient": 0.01,
        "eps": 1e-3,
    }
    ready = so.sparse_lars(0.1, static(), sparseopt=sparseopt, **options)
    assert_same(trained(ready), trained(by_hand))


def test_the_correction_turns_the_step_and_keeps_its_size():
    steps = []
    for sparseopt in (True, False):
        tx = so.sparse_lamb(1.0, static(), sparseopt=sparseopt)
        now = start(tx, random_tree(0))
        updates, _ = jax.jit(tx.update)(gradients(0), now.state, now.params)
        steps.append(updates)
    for name in KERNELS:
        corrected, other = (np.asarray(tree[name]["kernel"]) for tree in steps)
        np.testing.assert_allclose(norm(corrected), norm(other), rtol=1e-5)
        full = (now.params[name]["kernel"] != 0).all()
        assert full == np.allclose(corrected, other, rtol=1e-2)


@pytest.mark.parametrize("first", [optax.identity(), optax.scale_by_adam()])
def test_what_a_layer_has_in_common_is_divided_out(first):
    # Like 1 / sqrt(1 - s_avg), the part of the correction that differs between layers.
    # A power of 2 is exact.
    common = {"conv": {"kernel": 8.0}, "dense": {"kernel": 0.25}}
    factors = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, factor: factor * u, updates, common)
    )
    chains = [
        sparse(
            first,
            so.scale_by_sparseopt(),
            between,
            so.scale_by_sparse_trust_ratio(),
            optax.scale(-0.1),
        )
        for between in (optax.identity(), factors)
    ]
    assert_same(*(trained(tx, kernels_of) for tx in chains))


# Changes of the topology.


def watched(tx, others):
    """Use ``tx`` on a single kernel; its state has the factors of all others."""
    every = [optax.with_extra_args_support(each) for each in (tx, *others)]

    def update(updates, state, params=None, **extra_args):
        del state
        out = [
            each.update(updates, optax.EmptyState(), params, **extra_args)[0]
            for each in every
        ]
        sizes = jnp.stack([optax.tree.norm(tree) for tree in out])
        factors = sizes / optax.tree.norm(updates)
        return out[0], {"factors": factors}

    return optax.GradientTransformationExtraArgs(
        lambda params: {"factors": jnp.ones(len(every))}, update
    )


@pytest.mark.parametrize("method", [so.rigl, so.set_])
def test_the_ratio_does_not_jump_when_weights_regrow(method):
    change = 60
    tx = so.sparsify(
        optax.chain(
            optax.scale_by_adam(b2=0.99),
            watched(so.scale_by_sparse_trust_ratio(), [optax.scale_by_trust_ratio()]),
            optax.scale(-1e-3),
        ),
        method(0.8, every=1_000, start=change, stop=10_000),
    )
    params = {"kernel": normal(0, (64, 32))}
    state = tx.init(params)
    params = so.apply_masks(params, state)

    @jax.jit
    def step(params, state, key):
        grads = {"kernel": jax.random.normal(key, (64, 32))}
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    found = []
    for count in range(change + 3):
        params, state = step(params, state, jax.random.key(count))
        found.append(np.asarray(optax.tree.get(state, "factors")))
    # No weight is zero until then. At the update itself RigL takes no step, and SET
    # takes it before.
    np.testing.assert_allclose(*np.transpose(found[: change + 1]), rtol=1e-5)
    ours, theirs = found[change + 1] / found[change - 1]
    assert theirs < 0.65
    # Three in ten weights are left out of the one norm, and were small in the other.
    assert 0.9 < ours < 1.3
    # Then they are not zero, and Adam's global count makes their updates large.
    again = found[change + 2] / found[change - 1]
    assert (again < 0.75).all()


# In combination.


def test_multi_steps_around():
    tx = so.sparse_lamb(0.1, rigl(), sparseopt=True)
    accumulated = trained(optax.MultiSteps(tx, 2))
    now, step = start(tx, random_tree(0)), jax.jit(one_step(tx))
    for count in range(0, STEPS, 2):
        pair = (gradients(count), gradients(count + 1))
        now = step(jax.tree.map(lambda a, b: (a + b) / 2, *pair), *now)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        accumulated,
        now.params,
    )


def test_bfloat16_weights_follow_the_float32_ones():
    tx = so.sparse_lamb(0.1, static(), sparseopt=True)
    exact, rounded = (trained(tx, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    for name in KERNELS:
        found, other = (tree[name]["kernel"] for tree in (rounded, exact))
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found == 0, other == 0)
        np.testing.assert_allclose(norm(found), norm(other), rtol=0.05)


@pytest.mark.parametrize("make", [so.sparse_lars, so.sparse_lamb])
def test_a_layer_that_starts_at_zero_is_trained(make):
    params = {"a": normal(0), "b": jnp.zeros((6, 4))}
    tx = make(0.1, so.static(0.5, distribution="uniform", first="a"))
    state = tx.init(params)
    params = so.apply_masks(params, state)
    update = jax.jit(tx.update)
    for seed in range(3):
        grads = {"a": normal(seed + 1), "b": normal(seed + 2)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    mask = so.get_masks(state)["b"]
    assert jnp.isfinite(params["b"]).all()
    assert (params["b"][mask] != 0).all() and not params["b"][~mask].any()

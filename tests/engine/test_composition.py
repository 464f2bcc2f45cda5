"""sparsify inside and around the other transformations of Optax and JAX."""

import functools

import chex
import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.optimizers import (
    KERNELS,
    Moment,
    Row,
    gradients,
    one_step,
    random_tree,
    rigl,
    set_,
    sparse_states,
    start,
    train,
)

both_methods = pytest.mark.parametrize(
    "topology", [rigl(), set_()], ids=["rigl", "set"]
)


def small(tree):
    """Return one kernel and the dense leaves: enough if layers do not matter."""
    return {name: tree[name] for name in ("dense", "norm")}


PARAMS = small(random_tree(0))
GRADS = [small(gradients(count)) for count in range(8)]
ACTIVE = {"dense": 24}


def momentum():
    return optax.sgd(0.1, momentum=0.9)


assert_trees_close = functools.partial(
    chex.assert_trees_all_close, rtol=1e-5, atol=1e-6
)


def assert_intact(now, active=ACTIVE):
    """Check exact zeros, finite numbers and the number of active weights."""
    assert {name: mask.sum() for name, mask in now.masks.items()} == active
    for name, mask in now.masks.items():
        np.testing.assert_array_equal(now.kernel(name)[~mask], 0.0)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(now.params))


def same_masks(now, other):
    return all((now.masks[name] == other.masks[name]).all() for name in now.masks)


def all_nan(grads):
    return jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads)


# Accumulated gradients.


def test_multi_steps_grows_by_the_accumulated_gradient():
    owner = so.sparsify(momentum(), so.rigl(0.5, every=1, stop=9, drop_fraction=0.5))
    tx = optax.MultiSteps(owner, 2).gradient_transformation()
    mean = jax.tree.map(lambda a, b: (a + b) / 2, GRADS[0], GRADS[1])

    micro_step, step = jax.jit(one_step(tx)), jax.jit(one_step(owner))
    first = start(tx, PARAMS)
    halfway = micro_step(GRADS[0], *first)
    done = micro_step(GRADS[1], *halfway)
    at_once = step(mean, *start(owner, PARAMS))
    by_the_last = step(GRADS[1], *start(owner, PARAMS))

    chex.assert_trees_all_equal(halfway.params, first.params)
    assert same_masks(halfway, first)
    chex.assert_trees_all_equal(done.params, at_once.params)
    assert same_masks(done, at_once)
    assert not same_masks(done, by_the_last)


# Bad gradients.


@both_methods
def test_apply_if_finite_around_leaves_the_whole_step_out(topology):
    tx = optax.apply_if_finite(so.sparsify(momentum(), topology), 3)
    step = jax.jit(one_step(tx))
    now = start(tx, PARAMS)
    for count in range(4):
        skipped = step(all_nan(GRADS[count]), *now)
        chex.assert_trees_all_equal(skipped.params, now.params)
        chex.assert_trees_all_equal(skipped.sparse.masks, now.sparse.masks)
        assert skipped.sparse.count == now.sparse.count == count
        # The next finite gradient takes the step, and the update of the masks with it.
        new = step(GRADS[count], *skipped)
        assert same_masks(new, now) == (not topology.due(count))
        assert_intact(new)
        now = new


@both_methods
def test_apply_if_finite_inside_leaves_the_gradient_step_out(topology):
    tx = so.sparsify(optax.apply_if_finite(momentum(), 3), topology)
    step = jax.jit(one_step(tx))
    now = start(tx, PARAMS)
    for count in range(4):
        bad = count in (1, 2)
        new = step(all_nan(GRADS[count]) if bad else GRADS[count], *now)
        assert same_masks(new, now) == (not topology.due(count))
        assert_intact(new)
        kept = new.masks["dense"] & now.masks["dense"]
        unchanged = new.kernel("dense")[kept] == now.kernel("dense")[kept]
        assert unchanged.all() == bad
        now = new


def test_bad_gradients_of_inactive_weights_do_not_matter():
    tx = so.sparsify(momentum(), set_())
    step = jax.jit(one_step(tx))
    good = bad = start(tx, PARAMS)
    for grads in GRADS[:2]:
        holed = jax.tree.map(lambda g: g, grads)
        holed["dense"]["kernel"] = jnp.where(
            good.masks["dense"], grads["dense"]["kernel"], jnp.nan
        )
        good, bad = step(grads, *good), step(holed, *bad)
        chex.assert_trees_all_equal(bad.params, good.params)
        chex.assert_trees_all_equal(bad.sparse.inner_state, good.sparse.inner_state)
    assert_intact(bad)


# Parts of the parameters.


def test_masked_around_leaves_the_rest_alone():
    def only(*names):
        return {name: name in names for name in random_tree(0)}

    alone = optax.masked(momentum(), only("dense"))
    tx = optax.chain(
        optax.masked(so.sparsify(momentum(), rigl()), only("conv", "norm")), alone
    )
    step, alone_step = jax.jit(one_step(tx)), jax.jit(one_step(alone))
    now = first = start(tx, random_tree(0))
    plain = Moment(now.params, alone.init(now.params))
    for count in range(3):
        now = step(gradients(count), *now)
        plain = alone_step(gradients(count), *plain)
        assert_intact(now, {"conv": 72})
    assert_trees_close(now.params["dense"], plain.params["dense"])
    assert not same_masks(now, first)


def test_partition_around_two_topologies():
    tx = optax.partition(
        {
            "conv": so.sparsify(momentum(), rigl(), key=1),
            "dense": so.sparsify(optax.adam(0.01), so.set_(0.75, every=2, stop=9)),
            "norm": optax.sgd(0.1),
        },
        {name: name for name in random_tree(0)},
    )
    step = jax.jit(one_step(tx))
    now = first = start(tx, random_tree(0))
    for count in range(3):
        now = step(gradients(count), *now)
        assert_intact(now, {"conv": 72, "dense": 12})
    assert len(sparse_states(now.state)) == 2
    for name in KERNELS:
        assert (now.masks[name] != first.masks[name]).any()


def test_named_chain_around():
    tx = optax.named_chain(
        ("clip", optax.clip(1.0)), ("sparse", so.sparsify(momentum(), rigl()))
    )
    step = jax.jit(one_step(tx))
    now = first = start(tx, PARAMS)
    for grads in GRADS[:3]:
        now = step(grads, *now)
        assert_intact(now)
    assert not same_masks(now, first)


# Learning rates.


@pytest.mark.parametrize("alias", [so.sparse_sgd, so.sparse_adamw])
def test_inject_hyperparams_around_sets_the_learning_rate(alias):
    make = optax.inject_hyperparams(alias, static_args="topology")
    injected = make(learning_rate=0.5, topology=so.static(0.5))
    plain = alias(0.1, so.static(0.5))
    now, expected = start(injected, PARAMS), start(plain, PARAMS)
    now.state.hyperparams["learning_rate"] = jnp.float32(0.1)
    now = one_step(injected)(GRADS[0], *now)
    expected = one_step(plain)(GRADS[0], *expected)
    assert_trees_close(now.params, expected.params)


@both_methods
def test_schedules_do_not_lag(topology):
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    tx = so.sparsify(optax.inject_hyperparams(optax.sgd)(schedule), topology)
    step = jax.jit(one_step(tx))
    now = start(tx, PARAMS)
    for count in range(7):
        new = step(GRADS[count], *now)
        replaced = topology.replaces_step and topology.due(count)
        rate = 0.0 if replaced else schedule(count)
        np.testing.assert_allclose(
            new.params["norm"]["scale"],
            now.params["norm"]["scale"] - rate * GRADS[count]["norm"]["scale"],
            rtol=1e-5,
            atol=1e-6,
        )
        now = new
    state = now.sparse.inner_state
    assert state.count == now.sparse.count == 7
    assert state.hyperparams["learning_rate"] == schedule(6)


# Topologies changed from the host.


def as_is(make):
    return make()


def in_chain(make):
    return optax.chain(optax.clip(1.0), make())


def in_partition(make):
    return optax.partition(
        {"sparse": make(), "dense": optax.sgd(0.1)},
        {"dense": {"kernel": "sparse", "bias": "sparse"}, "norm": "dense"},
    )


def in_inject_hyperparams(make):
    return optax.inject_hyperparams(
        lambda scale: optax.chain(optax.scale(scale), make())
    )(scale=0.5)


def in_multi_steps(make):
    return optax.MultiSteps(make(), 2).gradient_transformation()


LONG = {"every": 3, "start": 2, "stop": 24, "drop_fraction": 0.5}


def graph_and_host(method, wrap, compiled, steps):
    """Take steps with the masks updated within the step, and from the host."""
    topology = method(0.5, **LONG)

    def moments(*needs, **options):
        row = Row(
            "",
            lambda: wrap(lambda: so.sparsify(momentum(), topology, **options)),
            topology,
            frozenset(needs),
        )
        return train(row, compiled, steps=steps, part=small).moments

    graph = moments()
    host = moments("so.update_topology", host_updates=True)
    assert not same_masks(graph[-1], graph[0])
    return list(zip(graph, host, strict=True))


@pytest.mark.parametrize(
    ("method", "wrap"),
    [
        (so.rigl, as_is),
        (so.set_, as_is),
        pytest.param(so.set_, in_chain, marks=pytest.mark.slow),
        (so.rigl, in_partition),
        pytest.param(so.rigl, in_inject_hyperparams, marks=pytest.mark.slow),
    ],
    ids=lambda function: function.__name__,
)
def test_host_updates_equal_those_in_the_graph(method, wrap):
    # Operation by operation, so that the compiler rounds both in the same way.
    def as_it_is(function):
        return function

    for graph, host in graph_and_host(method, wrap, as_it_is, steps=7):
        chex.assert_trees_all_equal(host.masks, graph.masks)
        chex.assert_trees_all_equal(host.params, graph.params)
        chex.assert_trees_all_equal(host.sparse.inner_state, graph.sparse.inner_state)


@pytest.mark.parametrize("method", [so.rigl, so.set_])
def test_compiled_host_updates_equal_those_in_the_graph(method):
    for graph, host in graph_and_host(method, as_is, jax.jit, steps=22):
        chex.assert_trees_all_equal(host.masks, graph.masks)
        assert_trees_close(host.params, graph.params)


@both_methods
def test_host_updates_of_accumulated_gradients(topology):
    graph_tx, tx = (
        in_multi_steps(
            functools.partial(
                so.sparsify, momentum(), topology, host_updates=host_updates
            )
        )
        for host_updates in (False, True)
    )
    graph_step, step = jax.jit(one_step(graph_tx)), jax.jit(one_step(tx))
    graph, host = start(graph_tx, PARAMS), start(tx, PARAMS)
    for count in range(4):
        pair = GRADS[2 * count : 2 * count + 2]
        mean = jax.tree.map(lambda a, b: a + (b - a) / 2, *pair)

        def change(now, grads=mean):
            state, params = so.update_topology(tx, grads, now.state, now.params)
            return Moment(params, state)

        due = topology.due(count)
        host = step(pair[0], *host)
        host = change(host) if due and topology.replaces_step else host
        host = step(pair[1], *host)
        host = change(host) if due and not topology.replaces_step else host
        for grads in pair:
            graph = graph_step(grads, *graph)
        chex.assert_trees_all_equal(host.masks, graph.masks)
        assert_trees_close(host.params, graph.params)
    assert not same_masks(host, start(tx, PARAMS))


def test_host_updates_of_two_topologies_with_schedules_of_their_own():
    fast, slow = (
        so.set_(0.5, every=every, stop=9, drop_fraction=0.5) for every in (2, 3)
    )

    def kernels(tree):
        return {name: tree[name] for name in ("dense", "conv")}

    def parted(**options):
        parts = {
            "dense": so.sparsify(momentum(), fast, **options),
            "conv": so.sparsify(momentum(), slow, **options),
        }
        return optax.partition(parts, {name: name for name in parts})

    tx, graph_tx = parted(host_updates=True), parted()
    change = jax.jit(functools.partial(so.update_topology, tx))
    step, graph_step = jax.jit(one_step(tx)), jax.jit(one_step(graph_tx))
    host, graph = (start(owner, kernels(random_tree(0))) for owner in (tx, graph_tx))
    for count in range(9):
        grads = kernels(gradients(count))
        host, graph = step(grads, *host), graph_step(grads, *graph)
        if fast.due(count) or slow.due(count):
            state, params = change(grads, host.state, host.params)
            host = Moment(params, state)
        chex.assert_trees_all_equal(host.masks, graph.masks)
    assert_trees_close(host.params, graph.params)


# Transformations of JAX on a step.


TRACKED = rigl(track_explored=True)


def tracked():
    return so.sparsify(momentum(), TRACKED)


@pytest.fixture(scope="module")
def plain_run():
    return train(Row("", tracked, TRACKED), steps=4, part=small).moments


def test_steps_in_a_scan(plain_run):
    step = one_step(tracked())

    def body(now, grads):
        now = step(grads, *now)
        return now, now.params

    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADS[:4])
    last, history = jax.jit(lambda now: jax.lax.scan(body, now, many))(plain_run[0])
    chex.assert_trees_all_equal(last.masks, plain_run[-1].masks)
    for count, expected in enumerate(plain_run[1:]):
        params = jax.tree.map(lambda x, c=count: x[c], history)
        assert_trees_close(params, expected.params)


def test_buffers_can_be_donated(plain_run):
    step = jax.jit(one_step(tracked()), donate_argnums=(1, 2))
    now = start(tracked(), small(random_tree(0)))
    for grads in GRADS[:4]:
        old, now = now, step(grads, *now)
        assert all(x.is_deleted() for x in jax.tree.leaves(old))
    chex.assert_trees_all_equal(now.masks, plain_run[-1].masks)
    chex.assert_trees_all_equal(now.params, plain_run[-1].params)


def test_steps_under_pmap(plain_run):
    step = one_step(tracked())

    @functools.partial(jax.pmap, axis_name="devices")
    def replica_step(grads, params, state):
        return step(jax.lax.pmean(grads, "devices"), params, state)

    now = flax.jax_utils.replicate(start(tracked(), PARAMS))
    for grads in GRADS[:4]:
        now = replica_step(flax.jax_utils.replicate(grads), *now)
    now = flax.jax_utils.unreplicate(now)
    chex.assert_trees_all_equal(now.masks, plain_run[-1].masks)
    assert_trees_close(now.params, plain_run[-1].params)


def test_agents_under_vmap_have_masks_of_their_own():
    topology = rigl()

    def agent(key):
        return so.sparsify(momentum(), topology, key=key, host_updates=True)

    def step(now, grads):
        return one_step(agent(0))(grads, *now)

    def change(now, grads):
        state, params = so.update_topology(agent(0), grads, now.state, now.params)
        return Moment(params, state)

    def trained(step, change, now):
        for count, grads in enumerate(GRADS[:4]):
            now = change(now, grads) if topology.due(count) else now
            now = step(now, grads)
        return now

    def over_agents(function):
        return jax.jit(jax.vmap(function, in_axes=(0, None)))

    keys = jax.random.split(jax.random.key(1), 3)
    begin = jax.vmap(lambda key: start(agent(key), PARAMS))(keys)
    agents = trained(over_agents(step), over_agents(change), begin)
    alone = trained(jax.jit(step), jax.jit(change), start(agent(keys[1]), PARAMS))

    (masks,) = agents.masks.values()
    assert (masks[0] != masks[1]).any()
    assert (masks[1] != masks[2]).any()
    np.testing.assert_array_equal(masks[1], alone.masks["dense"])
    assert_trees_close(jax.tree.map(lambda x: x[1], agents.params), alone.params)
    assert not same_masks(agents, begin)

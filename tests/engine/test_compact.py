"""Compact ``sparsify``: the dense one's results from the active weights only."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from sparseopt_jax.masks.active_weights import ActiveIndices, ActiveWeights
from sparseopt_jax.topologies.schedules import StepList
from tests.helpers.optimizers import (
    BATCH_STATS,
    SCHEDULE,
    gradients,
    one_step,
    random_tree,
)
from tests.helpers.optimizers import start as begin

FULL_CONV = {"conv/*": 0.0, "dense/*": 0.5}
TOPOLOGIES = {
    "static": so.static(0.5),
    "set": so.set_(0.5, track_explored=True, **SCHEDULE),
    "rigl": so.rigl(0.5, track_explored=True, **SCHEDULE),
    "rigl_averaged": so.rigl(0.5, averaged_steps=2, **SCHEDULE),
    "mest": so.mest(0.5, **SCHEDULE),
    "beside_a_full_layer": so.rigl(0.5, distribution=FULL_CONV, **SCHEDULE),
    "fan_in": so.set_(0.5, structure=so.ConstantFanIn(), **SCHEDULE),
    "n_of_m": so.rigl(structure=so.NM(2, 4, axis=-1), **SCHEDULE),
    "blocks": so.set_(0.5, structure=so.Block(4), **SCHEDULE),
    "smet": so.set_smet(0.5, stop=9, every=3, block=4),
}
INNER = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.01),
    "adamw": lambda: optax.adamw(
        0.01, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    "lion": lambda: optax.lion(0.01),
    "rmsprop": lambda: optax.rmsprop(0.01, centered=True, momentum=0.9),
    "sparseopt": lambda: optax.chain(
        so.scale_by_sparseopt(), optax.sgd(0.1, momentum=0.9)
    ),
    "batch_variance": lambda: optax.chain(
        so.scale_by_batch_variance({"conv/kernel": "norm"}), optax.sgd(0.1)
    ),
    "local_adam": lambda: optax.chain(
        so.scale_by_local_adam(warmup_steps=4), optax.scale_by_learning_rate(0.01)
    ),
    "masked": lambda: optax.chain(
        optax.masked(optax.scale(0.5), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.sgd(0.1, momentum=0.9),
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.linear_schedule(0.01, 0.0, 100)
    ),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
    "lamb": lambda: optax.lamb(0.01, weight_decay=0.1),
    "trust_ratio": lambda: optax.chain(
        optax.scale_by_adam(), so.scale_by_sparse_trust_ratio(), optax.scale(-0.01)
    ),
    "ham": lambda: so.ham(optax.sgd(0.1, momentum=0.9), 0.1, alpha=2.0),
    "sign_in": lambda: so.sign_in(optax.sgd(0.1, momentum=0.9), every=3),
}
# Norms are sums over a layer, so their rounding depends on the order.
ROUNDED = {"clipped", "lamb", "trust_ratio", "ham", "sign_in"}


# Others cover what these do, so these wait for ``make test-slow``.
LATER = {"lion", "rmsprop", "masked", "inject_hyperparams", "lamb", "ham"}
LATER |= {"adamw", "batch_variance"}
LATER |= {"rigl_averaged", "mest", "beside_a_full_layer", "fan_in"}


def quickly(cases):
    """Return parameters, some of which wait for ``make test-slow``."""
    return [
        pytest.param(*case, marks=[pytest.mark.slow] if case[0] in LATER else [])
        for case in cases
    ]


def train(inner, topology, *, steps=8, **options):
    tx = so.sparsify(inner, topology, **options)
    step = jax.jit(one_step(tx))
    change = jax.jit(functools.partial(so.update_topology, tx))
    now = begin(tx, random_tree(0))
    for count in range(steps):
        grads = gradients(count)
        due = bool(options.get("host_updates") and topology.due(count))
        if due and topology.replaces_step:
            state, params = change(grads, now.state, now.params)
            now = now._replace(params=params, state=state)
        now = step(grads, now.params, now.state)
        if due and not topology.replaces_step:
            state, params = change(grads, now.state, now.params)
            now = now._replace(params=params, state=state)
    return now


def assert_same(actual, expected, *, rounded=False):
    masks, others = so.get_masks(actual.state), so.get_masks(expected.state)
    assert jax.tree.structure(masks) == jax.tree.structure(others)
    jax.tree.map(np.testing.assert_array_equal, masks, others)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-5 if rounded else 2e-6, atol=1e-7
        ),
        actual.params,
        expected.params,
    )
    jax.tree.map(
        lambda mask, x: np.testing.assert_array_equal(np.asarray(x)[~mask], 0),
        *({name: masks[name]["kernel"] for name in ("conv", "dense")},),
        *({name: actual.params[name]["kernel"] for name in ("conv", "dense")},),
    )


@pytest.mark.parametrize(
    ("name", "host_updates"),
    quickly([*((name, False) for name in TOPOLOGIES), ("set", True), ("rigl", True)]),
)
def test_every_topology_gives_what_it_gives_dense(name, host_updates):
    inner, topology = INNER["adam"](), TOPOLOGIES[name]
    expected = train(inner, topology, host_updates=host_updates)
    actual = train(inner, topology, host_updates=host_updates, compact=True)
    assert_same(actual, expected)
    if topology.moves:
        assert actual.changed_at == expected.changed_at == (6 if name == "smet" else 5)
    if name == "rigl":
        metrics = so.metrics(actual.params, actual.state)
        others = so.metrics(expected.params, expected.state)
        assert metrics.keys() == others.keys()
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6), metrics, others
        )


@pytest.mark.parametrize(
    ("name", "topology"),
    quickly(
        [
            # The topologies are tested around Adam.
            *((name, "set") for name in INNER if name not in ("adam", "sparseopt")),
            ("sparseopt", "rigl"),
        ]
    ),
)
def test_every_optimizer_gives_what_it_gives_dense(name, topology):
    inner, topology = INNER[name](), TOPOLOGIES[topology]
    expected = train(inner, topology)
    actual = train(inner, topology, compact=True)
    assert_same(actual, expected, rounded=name in ROUNDED)


@pytest.mark.parametrize(
    "name", ["momentum", pytest.param("lion", marks=pytest.mark.slow)]
)
def test_operation_by_operation_it_is_the_same_to_the_last_bit(name):
    found = []
    for compact in (False, True):
        tx = so.sparsify(INNER[name](), TOPOLOGIES["set"], compact=compact)
        now = begin(tx, random_tree(0))
        for count in range(4):  # an update at 2; nothing is compiled, nothing fused
            now = one_step(tx)(gradients(count), now.params, now.state)
        found.append(now.params)
    jax.tree.map(np.testing.assert_array_equal, *found)


class TestState:
    @pytest.fixture
    def params(self):
        return {"kernel": jnp.ones((16, 32)), "bias": jnp.ones(32)}

    def test_keeps_active_weights_alone(self, params):
        tx = so.sparsify(optax.adam(0.1), TOPOLOGIES["set"], compact=True)
        state = tx.init(params)
        assert isinstance(state.masks, ActiveIndices)
        (index,) = jax.tree.leaves(state.masks.tree)
        assert index.shape == (256,) and index.dtype == jnp.int32
        moments = state.inner_state[0]
        assert moments.mu["kernel"].shape == moments.nu["kernel"].shape == (1, 256)
        assert moments.mu["bias"].shape == (32,)

    def test_takes_memory_in_proportion(self):
        params = {"kernel": jnp.ones((256, 512))}
        dense = so.optimizer_bytes(optax.adam(0.1).init(params))
        for density in (0.5, 0.25, 0.1):
            for block, limit in ((1, 1.6), (128, 1.05)):
                structure = so.Block(block) if block > 1 else so.Unstructured()
                topology = so.static(1 - density, structure=structure)
                tx = so.sparsify(optax.adam(0.1), topology, compact=True)
                state = jax.eval_shape(tx.init, params)
                # Fan-ins, one number for each of 512 neurons, do not matter here.
                taken = so.optimizer_bytes((state.masks, state.inner_state))
                active = topology.leaves(params)[0].active / params["kernel"].size
                assert taken <= limit * active * dense

    def test_a_full_layer_has_no_index(self, params):
        topology = so.static(0.0)
        tx = so.sparsify(optax.adam(0.1), topology, compact=True)
        state = tx.init(params)
        assert not jax.tree.leaves(state.masks.tree)
        assert so.get_masks(state)["kernel"].all()
        assert state.inner_state[0].mu["kernel"].shape == (16, 32)

    def test_is_reported(self, params):
        tx = so.sparsify(optax.adam(0.1), TOPOLOGIES["set"], compact=True)
        page = str(so.summary(params, tx.init(params)))
        assert "of active weights alone" in page
        assert "256 of 512 weights active" in page

    def test_can_be_donated_and_carried(self, params):
        tx = so.sparsify(optax.adam(0.1), TOPOLOGIES["rigl"], compact=True)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def many(params, state):
            def step(now, _):
                params, state = now
                updates, state = tx.update(params, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, state), length=4)[0]

        state = tx.init(params)
        params = so.apply_masks(jax.tree.map(jnp.copy, params), state)
        params, state = many(params, state)
        assert int(state.count) == 4
        assert int((params["kernel"] != 0).sum()) == 256


class TestWrappers:
    @pytest.mark.parametrize(
        "wrap",
        [
            pytest.param(
                lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
                id="MultiSteps",
            ),
            pytest.param(
                lambda tx: optax.apply_if_finite(tx, 2),
                id="apply_if_finite",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                lambda tx: optax.chain(optax.clip(1.0), tx),
                id="chain",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                lambda tx: optax.masked(
                    tx, jax.tree.map(lambda p: p.ndim > 1, random_tree(0))
                ),
                id="masked",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                lambda tx: optax.partition(
                    {"kernel": tx, "other": optax.sgd(0.1)},
                    lambda p: jax.tree.map(
                        lambda x: "kernel" if x.ndim > 1 else "other", p
                    ),
                ),
                id="partition",
            ),
        ],
    )
    def test_it_is_the_same_inside(self, wrap):
        found = []
        for compact in (False, True):
            inner = optax.adam(0.01)
            tx = wrap(so.sparsify(inner, TOPOLOGIES["rigl"], compact=compact))
            now = begin(tx, random_tree(0))
            step = jax.jit(one_step(tx))
            for count in range(7):
                now = step(gradients(count), now.params, now.state)
            found.append(now)
        assert_same(*reversed(found))

    def test_what_is_inside_sees_active_weights(self):
        seen = []

        def update(updates, state, params=None, *, masks, **extra_args):
            del extra_args
            seen.append((updates, params, masks))
            return updates, state

        spy = optax.GradientTransformationExtraArgs(
            lambda _: optax.EmptyState(), update
        )
        tx = so.sparsify(spy, so.static(0.5), compact=True)
        params = random_tree(0)
        state = tx.init(params)
        seen.clear()  # construction has called it
        tx.update(gradients(0), state, params, batch_stats=BATCH_STATS)
        updates, inner_params, masks = seen[-1]
        weights = masks["dense"]["kernel"]
        assert isinstance(weights, ActiveWeights) and weights.shape == (6, 8)
        assert updates["dense"]["kernel"].shape == inner_params["dense"]["kernel"].shape
        assert updates["dense"]["kernel"].shape == weights.layout.shape
        assert isinstance(masks["dense"]["bias"], optax.MaskedNode)


class TestCompactGradients:
    def test_accumulated_they_give_the_step_of_the_sum(self):
        tx = so.sparsify(optax.adam(0.01), TOPOLOGIES["set"], compact=True)
        step = jax.jit(one_step(tx))
        found = []
        for compact in (False, True):
            now = begin(tx, random_tree(0))
            for count in range(7):
                parts = [gradients(count), gradients(50 + count)]
                if compact:
                    parts = [so.compact_gradients(grads, now.state) for grads in parts]
                    assert parts[0]["dense"]["kernel"].size < 6 * 8
                total = jax.tree.map(jnp.add, *parts)
                now = step(total, now.params, now.state)
            found.append(now)
        assert found[0].changed_at == 5
        assert_same(*found)

    def test_host_driven_growth_may_see_dense_ones(self):
        topology = TOPOLOGIES["rigl"]
        tx = so.sparsify(optax.adam(0.01), topology, compact=True, host_updates=True)
        now = begin(tx, random_tree(0))
        state, params = so.update_topology(tx, gradients(0), now.state, now.params)
        grads = so.compact_gradients(gradients(0), state)
        tx.update(grads, state, params)

    def test_need_a_compact_state(self):
        tx = so.sparsify(optax.adam(0.01), so.static(0.5))
        with pytest.raises(ValueError, match=r"compact=True"):
            so.compact_gradients(gradients(0), tx.init(random_tree(0)))

    def test_growth_by_gradient_needs_all_of_it(self):
        tx = so.sparsify(optax.adam(0.01), TOPOLOGIES["rigl"], compact=True)
        params = random_tree(0)
        state = tx.init(params)
        grads = so.compact_gradients(gradients(0), state)
        with pytest.raises(ValueError, match=r"rigl scores .* 'conv/kernel'"):
            tx.update(grads, state, params)

    def test_so_does_growth_at_listed_steps(self):
        listed = dataclasses.replace(TOPOLOGIES["rigl"], schedule=StepList((2, 5)))
        assert listed.dense_gradients == 1 / 3
        tx = so.sparsify(optax.adam(0.01), listed, compact=True)
        params = random_tree(0)
        state = tx.init(params)
        grads = so.compact_gradients(gradients(0), state)
        with pytest.raises(ValueError, match=r"rigl scores .* 'conv/kernel'"):
            tx.update(grads, state, params)

    def test_another_shape_is_named(self):
        tx = so.sparsify(optax.adam(0.01), so.static(0.5), compact=True)
        params = random_tree(0)
        grads = gradients(0)
        grads["dense"]["kernel"] = jnp.ones((3, 3))
        with pytest.raises(ValueError, match=r"'dense/kernel' has shape \(3, 3\)"):
            tx.update(grads, tx.init(params), params)


class TestRefusals:
    @pytest.mark.parametrize(
        ("inner", "name"),
        [
            (lambda: optax.adafactor(0.1), "clip_by_block_rms"),
            (lambda: optax.contrib.muon(0.1), "muon"),
            (lambda: optax.sm3(0.1), "scale_by_sm3"),
            (lambda: optax.chain(optax.centralize(), optax.sgd(0.1)), "centralize"),
            (lambda: optax.lbfgs(), "scale_by_zoom_linesearch"),
            (
                lambda: optax.chain(optax.add_noise(1e-9, 0.5, 0), optax.sgd(0.1)),
                "add_noise draws random numbers",
            ),
        ],
    )
    def test_what_mixes_weights_by_name(self, inner, name):
        with pytest.raises(ValueError, match=name):
            so.sparsify(inner(), so.static(0.5), compact=True)

    @pytest.mark.parametrize(
        "topology",
        [
            so.snfs(0.5, **SCHEDULE),
            so.srigl(0.5, **SCHEDULE),
            so.gradual_magnitude(0.5, every=3, start=2, stop=5),
            so.phases((0, so.static(0.5))),
        ],
    )
    def test_numbers_that_change(self, topology):
        with pytest.raises(ValueError, match=f"{topology.name} changes how many"):
            so.sparsify(optax.adam(0.1), topology, compact=True)

    def test_weights_that_stay_dense(self):
        with pytest.raises(TypeError, match="ste keeps the weights behind its masks"):
            so.sparsify(optax.adam(0.1), so.ste(0.5), compact=True)

    def test_masks_with_uneven_cells(self):
        mask = jnp.zeros((4, 6, 2), bool).at[0, 0].set(True)
        topology = so.static(masks={"kernel": mask}, dims=so.NeuronDims(1, 2))
        tx = so.sparsify(optax.adam(0.1), topology, compact=True)
        with pytest.raises(ValueError, match=r"'kernel' has between 0 and 2"):
            tx.init({"kernel": jnp.ones((4, 6, 2))})

    def test_masks_that_are_traced(self):
        params = {"kernel": jnp.ones((4, 6))}

        def init(mask):
            topology = so.static(masks={"kernel": mask})
            return so.sparsify(optax.adam(0.1), topology, compact=True).init(params)

        with pytest.raises(ValueError, match=r"'kernel' is traced"):
            jax.jit(init)(jnp.ones((4, 6), bool))

    def test_leaves_split_across_active_weights(self):
        mesh = jax.make_mesh((1,), ("model",))
        shardings = {"kernel": NamedSharding(mesh, P(None, "model"))}
        params = jax.device_put({"kernel": jnp.ones((4, 6))}, shardings)
        tx = so.sparsify(optax.adam(0.1), so.static(0.5), compact=True)
        with pytest.raises(ValueError, match=r"'kernel' .* sharded along axis 1"):
            tx.init(params)
        with pytest.raises(ValueError, match=r"'kernel' .* sharded along axis 1"):
            so.state_sharding(tx, params, shardings)

    def test_masks_from_outside(self):
        tx = so.sparsify(optax.adam(0.1), so.static(0.5), compact=True)
        params = random_tree(0)
        state = tx.init(params)
        with pytest.raises(ValueError, match="sparsify owns them"):
            tx.update(params, state, params, masks=())
        with pytest.raises(ValueError, match="params are needed"):
            tx.update(params, state)


def test_the_state_is_sharded_like_the_neurons():
    mesh = jax.make_mesh((1,), ("model",))
    params = {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}
    shardings = {
        "kernel": NamedSharding(mesh, P(None, "model")),
        "bias": NamedSharding(mesh, P("model")),
    }
    topology = so.static(0.5, structure=so.ConstantFanIn())
    tx = so.sparsify(optax.adam(0.1), topology, compact=True)
    found = so.state_sharding(tx, params, shardings)
    assert found.masks.tree["kernel"].spec == P(None, "model")
    assert found.inner_state[0].mu["kernel"].spec == P(None, "model")
    assert found.inner_state[0].mu["bias"].spec == P("model")
    state = jax.jit(tx.init, out_shardings=found)(params)
    assert so.get_masks(state)["kernel"].sum() == 24


@pytest.mark.parametrize("compact", [False, True])
def test_memory_of_several_steps_is_sharded_like_each_of_them(compact):
    mesh = jax.make_mesh((1,), ("model",))
    params = {"kernel": jnp.ones((8, 6))}
    shardings = {"kernel": NamedSharding(mesh, P(None, "model"))}
    topology = so.static(0.5, structure=so.ConstantFanIn())
    tx = so.sparsify(optax.scale_by_lbfgs(memory_size=2), topology, compact=compact)
    found = so.state_sharding(tx, params, shardings).inner_state
    assert found.diff_params_memory["kernel"].spec == P(None, None, "model")
    assert found.weights_memory.spec == P()


@pytest.mark.parametrize("option", ["compact", "packed"])
def test_a_run_goes_on_from_a_checkpoint(option, tmp_path):
    tx = so.sparsify(optax.adam(0.01), TOPOLOGIES["rigl"], **{option: True})
    step = jax.jit(one_step(tx))
    now = begin(tx, random_tree(0))
    for count in range(4):
        now = step(gradients(count), now.params, now.state)
    with so.checkpoint.Checkpoints(tmp_path, topology=TOPOLOGIES["rigl"]) as saved:
        saved.save(4, now._asdict())
    with so.checkpoint.Checkpoints(tmp_path, topology=TOPOLOGIES["rigl"]) as saved:
        restored, _ = saved.restore(begin(tx, random_tree(1))._asdict())
    again = type(now)(**restored)
    for count in range(4, 8):
        now = step(gradients(count), now.params, now.state)
        again = step(gradients(count), again.params, again.state)
    jax.tree.map(np.testing.assert_array_equal, again.params, now.params)
    jax.tree.map(
        np.testing.assert_array_equal, again.state.inner_state, now.state.inner_state
    )

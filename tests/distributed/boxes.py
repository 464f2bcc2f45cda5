"""Parameters boxed by Flax, sharded by the names on their boxes.

Needs eight devices: ``tests/distributed/test_devices.py`` provides them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import sparseopt_jax as so
from sparseopt_jax.masks.state import stays_dense

SCHEDULE = {"every": 2, "stop": 9}
TOPOLOGIES = {
    "static": lambda: so.static(0.5),
    "set": lambda: so.set_(0.5, **SCHEDULE),
    "rigl": lambda: so.rigl(0.5, **SCHEDULE),
    "rigl_itop": lambda: so.rigl_itop(0.5, averaged_steps=2, **SCHEDULE),
    "srigl": lambda: so.srigl(0.5, **SCHEDULE),
    "snfs": lambda: so.snfs(0.5, **SCHEDULE),
    "granet": lambda: so.granet(0.5, every=2, stop=6),
    "phases": lambda: so.phases(
        (0, so.static(0.5)),
        (3, so.rigl(masks=so.PREVIOUS_MASKS, every=2, start=4, stop=9)),
    ),
    "ste": lambda: so.ste(0.5, every=2),
    "top_kast": lambda: so.top_kast(0.6, trained_sparsity=0.3, every=2),
    "per_neuron": lambda: so.rigl(0.5, structure=so.ConstantFanIn(), **SCHEDULE),
    "two_of_four": lambda: so.set_(structure=so.NM(2, 4), **SCHEDULE),
}
FORMS = {
    "plain": {},
    "packed": {"packed": True},
    "compact": {"compact": True},
    "host": {"host_updates": True},
    "host_packed": {"host_updates": True, "packed": True},
    "host_compact": {"host_updates": True, "compact": True},
}
STEPS = 8


def network(names, partitioning=nn.with_partitioning):
    return nn.Sequential(
        [
            nn.Dense(
                16, kernel_init=partitioning(nn.initializers.lecun_normal(), names)
            ),
            nn.LayerNorm(scale_init=partitioning(nn.initializers.ones, names[-1:])),
            nn.Dense(
                8, kernel_init=partitioning(nn.initializers.lecun_normal(), names)
            ),
        ]
    )


def init(model, tx, key):
    params = model.init(key, jnp.ones((1, 8)))["params"]
    return params, tx.init(params)


def gradients(params, step):
    keys = jax.random.split(jax.random.key(step), len(jax.tree.leaves(params)))
    leaves, structure = jax.tree.flatten(params)
    # Few bits, so that a step's arithmetic is exact in any order.
    return structure.unflatten(
        [
            jnp.round(8 * jax.random.normal(k, x.shape)) / 8
            for k, x in zip(keys, leaves, strict=True)
        ]
    )


def host_steps(tx, topology, due):
    """Return a step, with updates of the masks from the host if the form needs them."""
    update = jax.jit(tx.update)
    change = jax.jit(lambda g, s, p: so.update_topology(tx, g, s, p))

    def run(step, params, state, grads):
        replaces = due and topology.replaces_step
        if replaces and topology.due(step):
            state, params = change(grads, state, params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if due and not replaces and topology.due(step):
            state, params = change(grads, state, params)
        return params, state

    return run


def trained(tx, topology, params, state, due, like=lambda grads: grads, steps=STEPS):
    dense = stays_dense(state)
    params = params if dense else so.apply_masks(params, state)
    run = host_steps(tx, topology, due and topology.moves)
    for step in range(steps):
        grads = gradients(params, step)
        params, state = run(step, params, state, like(grads))
    return params, state


def assert_same(actual, expected):
    actual, expected = nn.meta.unbox((actual, expected))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(_data(a), _data(b)), actual, expected
    )


def _data(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
CASES = [
    ("static", "plain", EXPLICIT),
    ("set", "packed", AUTO),
    ("rigl", "plain", EXPLICIT),
    ("rigl", "host_packed", AUTO),
    ("rigl_itop", "packed", AUTO),
    ("srigl", "plain", AUTO),
    ("snfs", "packed", EXPLICIT),
    ("snfs", "host", AUTO),
    ("granet", "plain", AUTO),
    ("phases", "plain", AUTO),
    ("ste", "packed", EXPLICIT),
    ("top_kast", "plain", AUTO),
    ("per_neuron", "compact", EXPLICIT),
    ("per_neuron", "host_compact", EXPLICIT),
    ("two_of_four", "compact", AUTO),
]


@pytest.mark.parametrize(("name", "form", "kind"), CASES)
def test_trains_as_without_boxes_on_one_device(name, form, kind):
    options = FORMS[form]
    # Active weights stay on one device along the axes that they cross.
    names = (None, "model") if options.get("compact") else ("data", "model")
    topology, model = TOPOLOGIES[name](), network(names)
    tx = so.sparsify(optax.sgd(0.125, momentum=0.5), topology, **options)
    due = options.get("host_updates", False)
    start = lambda key: init(model, tx, key)  # noqa: E731
    key = jax.random.key(0)
    expected = trained(tx, topology, *nn.meta.unbox(jax.jit(start)(key)), due)

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    shardings = nn.get_sharding(jax.eval_shape(start, key), mesh)
    params, state = jax.jit(start, out_shardings=shardings)(key)
    with jax.set_mesh(mesh):
        actual = trained(tx, topology, params, state, due)
    assert jax.tree.structure(actual[0]) == jax.tree.structure(params)
    assert jax.tree.structure(actual[1]) == jax.tree.structure(state)
    assert_same(actual, expected)

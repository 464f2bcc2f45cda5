"""Topologies are values: they compare and hash by their arguments."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.topologies import scores

WHEN = {"every": 2, "stop": 9}
KEY = jax.random.key(0)


def only_a(path, leaf):
    return path == "a"


# Each is built twice: the two share no objects.
TOPOLOGIES = {
    "static": lambda: so.static(0.5),
    "mapping": lambda: so.rigl(0.5, distribution={"a": 0.5, "*": 0.25}, **WHEN),
    "structures": lambda: so.set_(0.5, structure={"a": so.Block((2, 2))}, **WHEN),
    "dims": lambda: so.set_(0.5, dims={"a": so.NeuronDims(0, 1)}, **WHEN),
    "where": lambda: so.static(0.5, where=only_a),
    "masks": lambda: so.static(masks={"a": jnp.eye(4, dtype=bool), "b": None}),
    "numpy masks": lambda: so.rigl(masks={"a": np.eye(4, dtype=bool)}, **WHEN),
    "averaged": lambda: so.rigl(0.5, averaged_steps=2, **WHEN),
    "mest": lambda: so.mest(0.5, gradient_weight=2.0, **WHEN),
    "snfs": lambda: so.snfs(0.5, **WHEN),
    "srigl": lambda: so.srigl(0.5, **WHEN),
    "set_smet": lambda: so.set_smet(0.5, stop=900),
    "gradual": lambda: so.gradual_magnitude(0.5, **WHEN),
    "one_shot": lambda: so.one_shot(0.5, at=3, score="saliency"),
    "ac_dc": lambda: so.ac_dc(0.5, compress=[1, 3], decompress=[2]),
    "granet": lambda: so.granet(0.5, **WHEN),
    "ste": lambda: so.ste(0.5),
    "top_kast": lambda: so.top_kast(
        0.5, trained_sparsity=0.25, distribution={"*": 0.5}
    ),
    "phases": lambda: so.phases(
        (0, so.static(0.5, distribution={"a": 0.5})),
        (3, so.static(masks=so.PREVIOUS_MASKS)),
    ),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topologies_of_the_same_settings_are_equal(name):
    topology, again = TOPOLOGIES[name](), TOPOLOGIES[name]()
    assert (topology == again) is True and (topology != again) is False
    assert hash(topology) == hash(again) and len({topology, again}) == 1


def test_topologies_of_other_settings_are_not():
    made = [make() for make in TOPOLOGIES.values()]
    for number, topology in enumerate(made):
        for other in made[number + 1 :]:
            assert (topology == other) is False
    assert (made[0] == "static") is False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (jnp.eye(4, dtype=bool), jnp.ones((4, 4), bool)),
        (jnp.eye(4, dtype=bool), jnp.eye(3, dtype=bool)),
        (jnp.eye(4, dtype=bool), np.ones((4, 4), bool)),
        (jnp.eye(4, dtype=bool), None),
    ],
)
def test_masks_are_compared_by_their_entries(one, other):
    def given(mask):
        return so.static(masks={"a": mask, "b": jnp.ones((2, 2), bool)})

    assert (given(one) == given(other)) is False
    assert (given(one) == given(np.asarray(one))) is True
    assert hash(given(one)) == hash(given(np.asarray(one)))


def test_the_order_of_patterns_counts():
    one, other = ({"a": 0.5, "*": 0.2}, {"*": 0.2, "a": 0.5})
    assert so.static(0.5, distribution=one) != so.static(0.5, distribution=other)


def test_a_mapping_that_is_changed_later_changes_no_topology():
    shares = {"a": 0.5}
    topology = so.static(0.5, distribution=shares)
    before = hash(topology)
    shares["a"] = 0.25
    assert hash(topology) == before and topology.distribution == {"a": 0.5}


def test_masks_that_are_traced_are_compared_by_identity():
    @jax.jit
    def compared(mask):
        topology = so.static(masks={"a": mask})
        assert topology == topology and topology != so.static(masks={"a": mask + False})
        return hash(topology) == hash(so.static(masks={"a": mask}))

    assert compared(jnp.eye(4, dtype=bool))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_topology_is_a_static_argument(name):
    traces = []

    def sparsity(topology, x):
        traces.append(topology)
        return x * (topology.dims is None)

    compiled = jax.jit(sparsity, static_argnums=0)
    for _ in range(2):
        compiled(TOPOLOGIES[name](), jnp.ones(2))
    assert len(traces) == 1


def test_copies_are_equal():
    topology = so.rigl(0.5, distribution={"a": 0.5}, **WHEN)
    assert copy.deepcopy(topology) == topology
    assert pickle.loads(pickle.dumps(topology)) == topology


# Scores declare what they need.


def test_scores_are_known_by_what_they_say():
    topology = so.set_(0.5, **WHEN)
    wrapped = dataclasses.replace(topology, grow=lambda k, p, g: scores.random(k, p, g))
    assert topology != wrapped and wrapped != topology
    assert topology.dense_gradients == 0.0 and wrapped.dense_gradients == 1 / 3
    assert scores.magnitude_and_gradient(2) == scores.magnitude_and_gradient(2.0)
    assert scores.magnitude != scores.random


def test_a_score_of_the_users_declares_too():
    @dataclasses.dataclass(frozen=True)
    class Drawn:
        needs_gradient = False
        is_drawn = True

        def __call__(self, key, param, grad):
            return scores.random(key, param, grad)

    topology = so.set_(0.5, structure=so.Block((2, 2)), **WHEN)
    replaced = dataclasses.replace(topology, grow=Drawn())
    assert replaced.dense_gradients == 0.0
    params = {"a": jax.random.normal(KEY, (8, 8))}
    masks, state = topology.init(KEY, params)
    found = [
        made.update(KEY, jnp.int32(0), masks, state, params, params)[0]["a"]
        for made in (topology, replaced)
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("grow", [scores.random, scores.magnitude])
def test_growth_without_gradients_fits_compact_gradients(grow):
    topology = dataclasses.replace(so.set_(0.5, **WHEN), grow=grow)
    tx = so.sparsify(optax.sgd(0.1), topology, compact=True)
    params = {"a": jax.random.normal(KEY, (8, 8))}
    state = tx.init(params)
    tx.update(so.compact_gradients(params, state), state, params)

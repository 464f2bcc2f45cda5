"""Stages by hand, and how they and the scores determine a rewiring."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from sparseopt_jax.arrays.units import Units
from sparseopt_jax.topologies import (
    Draft,
    Drop,
    Grow,
    LayerStage,
    Prune,
    PruneGlobally,
    Rewiring,
    side_by_side,
    updates,
)
from sparseopt_jax.topologies.methods.snfs import Redistribute
from sparseopt_jax.topologies.methods.srigl import Ablate
from sparseopt_jax.topologies.updates import rewire

WHEN = {"every": 2, "stop": 9}


def drafted(active, drop, grow, *, fraction=0.0, target=None, rises=True):
    """Return the draft of a layer of single weights."""
    active = jnp.array(active, bool)
    units = Units(active.shape, active.shape, cut=(), inner=(), cell=(0,), layer=(0,))
    present = units.count(active)
    return Draft(
        units=units,
        active=active,
        held=jnp.zeros_like(active),
        drop=jnp.array(drop, jnp.float32),
        grow=jnp.array(grow, jnp.float32),
        fraction=jnp.float32(fraction),
        target=target,
        adapts=True,
        rises=rises,
        planned=None,
        measured={},
        kept=active,
        most=present,
        size=present,
    )


def new_masks(stages, *drafts):
    return [draft.kept.astype(int).tolist() for draft in rewire(stages, list(drafts))]


def test_drop_and_grow():
    # Half of four weights are dropped, 1 and 2; 9 and 8 are the largest of the others.
    layer = drafted(
        [1, 1, 1, 1, 0, 0], [4, 1, 3, 2, 0, 0], [7, 8, 7, 1, 9, 5], fraction=0.5
    )
    assert new_masks([Drop()], layer) == [[1, 0, 1, 0, 0, 0]]
    assert new_masks([Drop(), Grow()], layer) == [[1, 1, 1, 0, 1, 0]]
    assert new_masks([Drop(), Grow(again=False)], layer) == [[1, 0, 1, 0, 1, 1]]


def test_growth_takes_back_what_it_dropped_where_nothing_else_is_left():
    layer = drafted([1, 1, 1, 0], [3, 2, 1, 0], [0, 1, 2, 0], fraction=0.7)
    assert new_masks([Drop(), Grow(again=False)], layer) == [[1, 1, 0, 1]]


@pytest.mark.parametrize(
    ("target", "rises", "expected"),
    [
        (2, True, [1, 0, 1, 0, 0]),
        (4, True, [1, 1, 1, 0, 1]),
        (4, False, [1, 1, 1, 0, 0]),
        (None, True, [1, 1, 1, 0, 0]),
    ],
)
def test_prune_goes_to_the_target(target, rises, expected):
    layer = drafted(
        [1, 1, 1, 0, 0], [4, 1, 3, 9, 9], [0, 0, 0, 1, 2], target=target, rises=rises
    )
    assert new_masks([Prune(), Drop(), Grow()], layer) == [expected]


def test_layers_compete_for_the_sum_of_their_targets():
    # Three of six stay: 9 and 8, and the best of the second layer.
    layers = [
        drafted([1, 1, 1], [9, 8, 7], [0, 0, 0], target=2),
        drafted([1, 1, 1], [1, 3, 2], [0, 0, 0], target=1),
    ]
    kept = new_masks([PruneGlobally(), Drop(), Grow()], *layers)
    assert kept == [[1, 1, 0], [0, 1, 0]]
    assert new_masks([Prune(), Drop(), Grow()], *layers) == [[1, 1, 0], [0, 1, 0]]
    one = [layer._replace(target=t) for layer, t in zip(layers, (1, 3), strict=True)]
    assert new_masks([PruneGlobally()], *one) == [[1, 1, 1], [0, 1, 0]]


# What a topology declares.


@pytest.mark.parametrize(
    ("topology", "keeps", "crosses"),
    [
        (so.rigl(0.5, **WHEN), True, False),
        (so.set_smet(0.5, stop=900), True, False),
        (so.srigl(0.5, **WHEN), False, False),
        (so.snfs(0.5, **WHEN), False, True),
        (so.granet(0.5, **WHEN), False, True),
        (so.gradual_magnitude(0.5, **WHEN), False, False),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_stages_decide_what_a_topology_declares(topology, keeps, crosses):
    assert topology.keeps_counts is keeps
    assert topology.crosses_layers is crosses


def test_stages_are_values():
    assert so.srigl(0.5, **WHEN).stages == (Prune(), Drop(), Ablate(0.3), Grow())
    assert so.snfs(0.5, **WHEN).stages == (Prune(), Drop(), Redistribute(), Grow())
    assert hash(so.srigl(0.5, **WHEN)) == hash(so.srigl(0.5, **WHEN))
    assert so.srigl(0.5, gamma_sal=0.2, **WHEN) != so.srigl(0.5, **WHEN)


@pytest.mark.parametrize("stage", [Drop, "drop", None])
def test_what_is_no_stage_is_refused(stage):
    with pytest.raises(TypeError, match=r"such as so\.topologies\.Drop\(\), got"):
        Rewiring(sparsity=0.5, stages=(Prune(), stage))


def test_a_stage_may_refuse_a_leaf():
    @dataclasses.dataclass(frozen=True)
    class Wide(LayerStage):
        def check_leaf(self, plan):
            raise ValueError(f"{plan.path!r} is too narrow")

        def __call__(self, draft):
            return draft

    topology = dataclasses.replace(so.rigl(0.5, **WHEN), stages=(Wide(),))
    with pytest.raises(ValueError, match="'kernel' is too narrow"):
        topology.leaves({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})


def test_keys_are_derived_only_for_scores_that_need_them(monkeypatch):
    asked = []
    leaf_key, leaf_keys = updates.leaf_key, side_by_side.leaf_keys
    monkeypatch.setattr(
        updates,
        "leaf_key",
        lambda key, path: asked.append(path) or leaf_key(key, path),
    )
    monkeypatch.setattr(
        side_by_side,
        "leaf_keys",
        lambda key, paths: asked.extend(paths) or leaf_keys(key, paths),
    )
    params = {"kernel": jnp.ones((4, 4))}
    for topology, expected in (
        (so.rigl(0.5, **WHEN), []),
        (so.set_(0.5, **WHEN), ["kernel"]),
        (dataclasses.replace(so.rigl(0.5, **WHEN), drop=lambda k, p, g: p), ["kernel"]),
    ):
        masks, state = topology.init(jax.random.key(0), params)
        asked.clear()
        key, count = jax.random.key(1), jnp.int32(0)
        topology.update(key, count, masks, state, params, params)
        assert asked == expected


def test_a_score_may_see_another_gradient():
    class Signed(so.scores.DeclaredScore):
        def seen(self, grad, mask, axes):
            assert axes is not None
            return jnp.where(mask, grad, -grad)

        def __call__(self, key, param, grad):
            return grad

    topology = so.rigl(0.5, drop_fraction=1.0, **WHEN)
    replaced = dataclasses.replace(topology, grow=Signed())
    params = {"kernel": jnp.ones((2, 2))}
    grads = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    masks = {"kernel": jnp.array([[True, True], [False, False]])}
    _, state = topology.init(jax.random.key(0), params)
    new, _ = replaced.update(
        jax.random.key(0), jnp.int32(0), masks, state, params, grads
    )
    np.testing.assert_array_equal(new["kernel"], masks["kernel"])

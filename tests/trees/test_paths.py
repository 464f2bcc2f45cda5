"""Canonical paths."""

import dataclasses
from collections import OrderedDict
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import sparseopt_jax as so
from sparseopt_jax.trees import paths


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    weight: jax.Array
    value: jax.Array


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array


def names(tree):
    return [path for path, _ in paths.flatten_with_paths(tree)]


def test_the_same_place_has_one_name_in_every_container():
    x = jnp.ones(2)
    assert names({"Block_0": {"kernel": x}}) == ["Block_0/kernel"]
    boxed = {"Block_0": {"kernel": nn.Partitioned(x, names=("a",))}}
    assert names(boxed) == ["Block_0/kernel"]
    state = nnx.State({"Block_0": {"kernel": nnx.Param(x)}})
    assert names(state) == ["Block_0/kernel"]
    assert names(nnx.as_pure(state)) == ["Block_0/kernel"]
    assert names((x, [x, Pair(x, x)])) == ["0", "1/0", "1/1/left", "1/1/right"]
    assert names(x) == [""]


class Custom(nn.meta.AxisMetadata, flax.struct.PyTreeNode):
    """User-defined metadata, under another attribute's name."""

    array: jax.Array

    def unbox(self):
        return self.array

    def replace_boxed(self, val):
        return self.replace(array=val)

    def add_axis(self, index, params):
        return self

    def remove_axis(self, index, params):
        return self


class Critic(eqx.Module):
    value: eqx.nn.Linear
    layer_value: jax.Array


class Output(NamedTuple):
    policy: jax.Array
    value: jax.Array


def test_a_field_called_value_keeps_its_name():
    x = jnp.ones(2)
    assert names({"attention": {"value": {"kernel": x}}}) == ["attention/value/kernel"]
    assert names({"value": x}) == ["value"]
    layer = Linear(weight=x, value=x)
    assert names({"layer": layer}) == ["layer/weight", "layer/value"]
    assert names({"layer": layer, "value": Output(x, x)}) == [
        *("layer/weight", "layer/value", "value/policy", "value/value")
    ]
    critic = Critic(eqx.nn.Linear(2, 1, key=jax.random.key(0)), x)
    assert names(critic) == ["value/weight", "value/bias", "layer_value"]


def test_a_box_is_no_part_of_a_path():
    x = jnp.ones(2)
    boxes = [
        nn.Partitioned(x, names=("a",)),
        nn.LogicallyPartitioned(x, names=("a",)),
        nnx.Param(x),
        nnx.BatchStat(x),
        Custom(x),
        nn.Partitioned(nn.LogicallyPartitioned(x, names=("a",)), names=("b",)),
    ]
    for box in boxes:
        assert names({"value": box}) == ["value"], box
        assert names(box) == [""]
        assert names({"layer": Linear(weight=box, value=box)}) == [
            *("layer/weight", "layer/value")
        ]
        optimizer = optax.adam(1e-3).init({"value": box})
        assert names(optimizer) == ["0/count", "0/mu/value", "0/nu/value"]
    assert names({"a": nn.Partitioned({"b": x, "c": (x,)}, names=())}) == [
        *("a/b", "a/c/0")
    ]
    masked = {"a": nn.Partitioned(optax.MaskedNode(), names=())}
    assert names(masked) == ["a"]


def test_nnx_names_a_leaf_alike_at_any_time():
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, optax.trace(0.9), wrt=nnx.Param)
    expected = ["layers/0/bias", "layers/0/kernel"]
    state = nnx.state(model)
    assert names(state) == names(nnx.as_pure(state)) == names(model) == expected
    assert names(optimizer.opt_state) == [f"trace/{path}" for path in expected]


def test_maps_read_other_trees_at_their_leaves():
    x = jnp.ones(2)
    tree = {"b": nn.Partitioned(x, names=("a",)), "c": optax.MaskedNode()}
    other = {"b": (1, 2), "c": {"d": 3}}
    got = paths.map_with_paths(lambda path, _, y: (path, y), tree, other)
    assert got == {"b": ("b", (1, 2)), "c": ("c", {"d": 3})}
    seen = []
    paths.map_with_key_paths(lambda key_path, _: seen.append(key_path), tree)
    assert [paths.path_parts(key_path) for key_path in seen] == [("b",)]


@pytest.mark.parametrize(
    ("tree", "path", "leaves"),
    [
        ({"a/b": {"w": 1}, "a": {"b/w": 1}}, "a/b/w", ("['a']['b/w']", "['a/b']['w']")),
        (OrderedDict([(1, 1), ("1", 1)]), "1", ("[1]", "['1']")),
        ({"a": [1], "a/0": 1}, "a/0", ("['a'][0]", "['a/0']")),
        ({"a": Pair(1, 1), "a/left": 1}, "a/left", ("['a'].left", "['a/left']")),
        (
            {"a": nn.Partitioned({"b": 1}, names=()), "a/b": 1},
            *("a/b", ("['a']['b']", "['a/b']")),
        ),
    ],
)
def test_two_leaves_never_share_a_path(tree, path, leaves):
    def check(call):
        with pytest.raises(ValueError, match=f"the path {path!r} belongs to") as error:
            call()
        assert all(leaf in str(error.value) for leaf in leaves)

    tree = jax.tree.map(lambda _: jnp.ones((4, 4)), tree)
    check(lambda: names(tree))
    check(lambda: paths.map_with_paths(lambda path, leaf: leaf, tree))
    check(lambda: so.plan(tree, so.static(0.5)))
    check(lambda: so.sparsify(optax.sgd(0.1), so.static(0.5)).init(tree))
    check(lambda: so.prune(tree, sparsity=0.5))
    check(lambda: so.str_().init(tree))
    check(lambda: so.apply_masks(tree, {"other": jnp.ones((4, 4), bool)}))
    check(lambda: so.static(masks=tree).leaves({"other": jnp.ones((4, 4))}))


def test_haiku_paths_have_the_parts_that_they_show():
    tree = {"mlp/~/linear_0": {"w": jnp.ones(2)}}
    [(key_path, _)] = paths.leaves_with_path(tree)
    assert paths.path_parts(key_path) == ("mlp", "~", "linear_0", "w")


def test_holes_are_leaves():
    assert names({"a": optax.MaskedNode(), "b": jnp.ones(1)}) == ["a", "b"]


def test_patterns():
    assert paths.first_match("a/kernel", {"b*": 1, "*/kernel": 2, "a*": 3}) == 2
    assert paths.first_match("a/kernel", {"b*": 1}) is None
    paths.check_patterns(["a*"], ["a/kernel"], "dims")
    with pytest.raises(ValueError, match=r"dims: the pattern 'b\*' matches no leaf"):
        paths.check_patterns(["a*", "b*"], ["a/kernel"], "dims")

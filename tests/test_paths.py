"""Canonical paths."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from sparseopt_jax import paths


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


def test_only_the_last_value_is_a_box():
    x = jnp.ones(2)
    assert names({"attention": {"value": {"kernel": x}}}) == ["attention/value/kernel"]
    assert names({"value": x}) == ["value"]
    assert names({"layer": Linear(weight=x, value=x)}) == ["layer/weight", "layer"]


def test_holes_are_leaves():
    assert names({"a": optax.MaskedNode(), "b": jnp.ones(1)}) == ["a", "b"]


def test_patterns():
    assert paths.first_match("a/kernel", {"b*": 1, "*/kernel": 2, "a*": 3}) == 2
    assert paths.first_match("a/kernel", {"b*": 1}) is None
    paths.check_patterns(["a*"], ["a/kernel"], "dims")
    with pytest.raises(ValueError, match=r"dims: the pattern 'b\*' matches no leaf"):
        paths.check_patterns(["a*", "b*"], ["a/kernel"], "dims")

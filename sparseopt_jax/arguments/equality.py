"""Comparing configurations by what they hold: mappings, arrays, functions."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def same(value: Any, other: Any) -> bool:
    """Whether two settings are the same.

    Mappings are of one type and have their entries in one order, since the first
    pattern that matches decides. Arrays are compared by their values, functions by
    their identity.

    Args:
      value: a setting.
      other: another.

    Returns:
      A plain bool, whatever the two are.

    Examples:
      >>> same({"a": 0.5}, {"a": 0.5}), same({"a": 1, "b": 2}, {"b": 2, "a": 1})
      (True, False)
    """
    if value is other:
        return True
    if isinstance(value, Mapping) and type(value) is type(other):
        return list(value) == list(other) and all(
            same(value[key], other[key]) for key in value
        )
    if _is_array(value) or _is_array(other):
        return _same_arrays(value, other)
    try:
        return bool(value == other)
    except Exception:
        return False  # what cannot say that it is the same is not


def same_tree(tree: Any, other: Any) -> bool:
    """Whether two pytrees have the same structure and the same leaves.

    Args:
      tree: a pytree, say of masks.
      other: another.

    Returns:
      A plain bool.

    Examples:
      >>> same_tree({"a": np.ones(2, bool)}, {"a": np.ones(2, bool)})
      True
    """
    if tree is other:
        return True
    leaves, structure = jax.tree.flatten(tree)
    others, other_structure = jax.tree.flatten(other)
    return structure == other_structure and all(map(same, leaves, others))


def hash_of(value: Any) -> int:
    """A hash that settings have in common where ``same`` is True.

    Args:
      value: a setting.

    Returns:
      The value's hash where it has one; a hash of the entries of a mapping, and of
      the shape and type of an array.

    Examples:
      >>> hash_of({"a": 0.5}) == hash_of({"a": 0.5})
      True
    """
    if isinstance(value, Mapping):
        return hash(tuple((str(key), hash_of(entry)) for key, entry in value.items()))
    if _is_array(value):
        return hash((tuple(value.shape), str(value.dtype)))
    try:
        return hash(value)
    except TypeError:
        return hash(type(value))


def hash_of_tree(tree: Any) -> int:
    """A hash that pytrees have in common where ``same_tree`` is True."""
    return hash(tuple(map(hash_of, jax.tree.leaves(tree))))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def _same_arrays(value: Any, other: Any) -> bool:
    if not (_is_array(value) and _is_array(other)):
        return False
    if value.shape != other.shape or value.dtype != other.dtype:
        return False
    if not (_is_readable(value) and _is_readable(other)):
        return False  # only one and the same is known to be
    return bool(np.array_equal(np.asarray(value), np.asarray(other)))


def _is_readable(array: Any) -> bool:
    """Whether the values are here now: not while tracing, nor at other processes."""
    if isinstance(array, Tracer):
        return False
    return getattr(array, "is_fully_addressable", True)

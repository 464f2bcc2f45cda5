"""Comparison of configurations by content: mappings, arrays, functions."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def same(value: Any, other: Any) -> bool:
    """Tell whether two settings are the same.

    Mappings must have the same type and the same order of entries, because the first
    matching pattern decides. Arrays are compared by value, functions by identity.

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
        return False  # values that cannot be compared are different


def same_tree(tree: Any, other: Any) -> bool:
    """Tell whether two pytrees have the same structure and the same leaves.

    Args:
      tree: a pytree, such as masks.
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
    """Return a hash that settings share if ``same`` is True.

    Args:
      value: a setting.

    Returns:
      The value's hash if it has one; a hash of the entries of a mapping, and of the
      shape and dtype of an array.

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
    """Return a hash that pytrees share if ``same_tree`` is True."""
    return hash(tuple(map(hash_of, jax.tree.leaves(tree))))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def _same_arrays(value: Any, other: Any) -> bool:
    if not (_is_array(value) and _is_array(other)):
        return False
    if value.shape != other.shape or value.dtype != other.dtype:
        return False
    if not (_is_readable(value) and _is_readable(other)):
        return False  # only an array that is the same object is known to be equal
    return bool(np.array_equal(np.asarray(value), np.asarray(other)))


def _is_readable(array: Any) -> bool:
    """Tell whether values can be read now: neither traced nor on other processes."""
    if isinstance(array, Tracer):
        return False
    return getattr(array, "is_fully_addressable", True)

"""Checks of arguments: which one it is, what was passed, what to pass instead."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from sparseopt_jax.boxes import unboxed


def described(value: Any) -> str:
    """Describes an argument in a message: its kind, and what it is where it is short.

    Args:
      value: anything.

    Returns:
      A few words.

    Examples:
      >>> described("0.9"), described({"a": 1}), described(np.ones((2, 3)))
      ("'0.9'", 'a dict', 'an array of shape (2, 3)')
    """
    if isinstance(value, jax.Array | np.ndarray) and np.ndim(value):
        return f"an array of shape {np.shape(value)}"
    if isinstance(value, jax.ShapeDtypeStruct | np.ndarray | jax.Array | np.generic):
        return repr(value)
    short = repr(value)
    plain = value is None or isinstance(value, str | int | float | type)
    if len(short) <= 60 and (plain or callable(value)):
        return short
    if hasattr(value, "opt_state"):
        return f"{type(value).__name__}, which holds an optimizer's state"
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def check_concrete(tree: Any, function: str, remedy: str) -> None:
    """Raises where values are traced that have to be known.

    Args:
      tree: any pytree.
      function: the name of what needs values.
      remedy: what to do instead.

    Raises:
      TypeError: if a leaf is traced.
    """
    if any(isinstance(unboxed(leaf), Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"{function} reads values, which a transformation such as jax.jit only "
            f"traces: call it outside, or {remedy}"
        )


def check_single(states: Iterable[Any], argument: str = "opt_state") -> None:
    """Raises for states of several runs or devices side by side.

    Args:
      states: states with masks.
      argument: what they were passed as.

    Raises:
      ValueError: with the leading axes, and how to take one of the replicas.
    """
    for state in states:
        axes = np.shape(unboxed(state.count))
        if axes:
            index = ", ".join("0" for _ in axes)
            raise ValueError(
                f"{argument} has a leading axis of {', '.join(map(str, axes))}, from "
                "jax.vmap or a replicate for pmap: pass one of its replicas, "
                f"jax.tree.map(lambda x: x[{index}], {argument}), with its parameters; "
                "so.metrics also works inside jax.vmap and jax.pmap"
            )


def check_fit(masks: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Raises unless parameters are those that masks were made for.

    Args:
      masks: masks by path.
      leaves: parameters by path.

    Raises:
      ValueError: with the path of the first mask that has no parameter, or one of
        another shape.
    """
    for path, mask in masks.items():
        if path not in leaves:
            raise ValueError(
                f"opt_state has a mask for {path!r}, which params lack: pass the tree "
                "that tx.init was given; the paths of params are "
                f"{', '.join(leaves) or '(none)'}"
            )
        if np.shape(mask) != np.shape(leaves[path]):
            raise ValueError(
                f"the mask at {path!r} has shape {np.shape(mask)}, its parameter "
                f"{np.shape(leaves[path])}: pass the params and the state of one run"
            )

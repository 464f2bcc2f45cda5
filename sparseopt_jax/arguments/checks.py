"""Checks of arguments: errors state the argument, its value and the remedy."""

import inspect
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from sparseopt_jax.trees.boxes import unboxed


def described(value: Any) -> str:
    """Describe an argument for a message: its kind, or its value if that is short.

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
    if callable(getattr(value, "init", None)) and hasattr(value, "update"):
        is_topology = hasattr(value, "leaves")
        return "a topology" if is_topology else "an optax transformation"
    if hasattr(value, "opt_state"):
        return f"{type(value).__name__}, which holds an optimizer's state"
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def check_concrete(tree: Any, function: str, remedy: str) -> None:
    """Raise if values are traced that must be known.

    Args:
      tree: any pytree.
      function: the name of the function that needs values.
      remedy: what to do instead.

    Raises:
      TypeError: if a leaf is traced.
    """
    if any(isinstance(unboxed(leaf), Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"{function} reads values, which a transformation such as jax.jit only "
            f"traces: call it outside of the transformation, or {remedy}"
        )


def check_single(states: Iterable[Any], argument: str = "opt_state") -> None:
    """Raise for stacked states of several runs or devices.

    Args:
      states: states with masks.
      argument: the argument's name.

    Raises:
      ValueError: with the leading axes, and how to select one of the replicas.
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
    """Raise unless masks were made for these parameters.

    Args:
      masks: masks by path.
      leaves: parameters by path.

    Raises:
      ValueError: with the path of the first mask that has no parameter, or one of a
        different shape.
    """
    for path, mask in masks.items():
        if path not in leaves:
            raise ValueError(
                f"opt_state has a mask for {path!r}, which params lack: pass the tree "
                "that was passed to tx.init; the paths of params are "
                f"{', '.join(leaves) or '(none)'}"
            )
        if np.shape(mask) != np.shape(leaves[path]):
            raise ValueError(
                f"the mask at {path!r} has shape {np.shape(mask)}, its parameter "
                f"{np.shape(leaves[path])}: pass the params and the state of one run"
            )


def number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    below: float | None = None,
) -> float:
    """Return an argument that is a concrete number.

    Args:
      name: of the argument.
      value: the argument: a Python or NumPy number, or an array without axes.
      least: the smallest number allowed.
      most: the largest number allowed.
      below: an exclusive bound in place of ``most``.

    Returns:
      The number.

    Raises:
      TypeError: if it is not a number: a string, None, a bool, an array with axes, or
        a traced value.
      ValueError: if it is NaN, infinite or out of range.

    Examples:
      >>> number("drop_fraction", 0.3, 0, 1)
      0.3
      >>> number("drop_fraction", "0.3", 0, 1)
      Traceback (most recent call last):
      ...
      TypeError: drop_fraction must be a number, got '0.3': pass 0.3
    """
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} must be a number, got a traced value, {value}: pass a Python "
            "number, outside of jax.jit (or name the argument in static_args or "
            "static_argnames)"
        )
    if not _is_number(value):
        raise TypeError(
            f"{name} must be a number, got {described(value)}{_meant(value)}"
        )
    result = float(value)
    in_range = least <= result < below if below is not None else least <= result <= most
    if not in_range or math.isinf(result):
        raise ValueError(
            f"{name} must be {_range(least, most, below, result)}, got {value}"
        )
    return result


def integer(name: str, value: Any, least: int | None = None, unit: str = "") -> int:
    """Return an argument that is a concrete integer.

    Args:
      name: of the argument.
      value: the argument: a Python or NumPy integer, or an array without axes.
      least: the smallest number allowed.
      unit: the unit it counts, for the message.

    Returns:
      The integer.

    Raises:
      TypeError: if it is not an integer, or is a bool.
      ValueError: if it is less than ``least``.

    Examples:
      >>> integer("every", np.int32(100), 1)
      100
      >>> integer("every", 100.0, 1)
      Traceback (most recent call last):
      ...
      TypeError: every must be an integer, got 100.0: pass 100
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer{unit and f' number of {unit}'}, got "
            f"{described(value)}{_meant(value)}"
        ) from None
    if least is not None and result < least:
        raise ValueError(f"{name} must be at least {least}, got {result}")
    return result


def integers(name: str, values: Any) -> tuple[int, ...]:
    """Return an argument that is a sequence of integers.

    Args:
      name: of the argument.
      values: the argument.

    Returns:
      The integers.

    Raises:
      TypeError: if it is not a sequence, or an element is not an integer.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(
            f"{name} must be a sequence of integers, got {described(values)}"
        )
    return tuple(integer(f"{name}[{i}]", value) for i, value in enumerate(values))


def check_rate(name: str, value: Any, call: str) -> None:
    """Raise unless an argument is a number or a schedule, traced or not.

    Args:
      name: of the argument.
      value: the argument.
      call: the signature, for the message.

    Raises:
      TypeError: for anything else, such as a topology in its place.
    """
    if callable(value) or isinstance(value, Tracer):
        return
    if not _is_number(value):
        raise TypeError(
            f"{name} must be a number or a schedule, got {described(value)}"
            f"{_meant(value)}; call {call}"
        )


def check_choice(name: str, function: Any) -> None:
    """Raise unless an argument is a function of a path and a leaf, or None.

    Args:
      name: of the argument.
      function: the argument.

    Raises:
      TypeError: if it is not a function, or takes other arguments.
    """
    if function is None:
        return
    form = f"{name}(path, leaf) -> bool"
    if not callable(function):
        raise TypeError(
            f"{name} must be a function of (path, leaf), {form}, got "
            f"{described(function)}"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind("path", "leaf")
    except TypeError:
        raise TypeError(
            f"{name} must be a function of two arguments, {form}, got one of "
            f"{signature}"
        ) from None


def chosen(name: str, function: Any, path: str, leaf: Any) -> bool:
    """Return the decision of a function of a path and a leaf.

    Args:
      name: of the argument that the function is.
      function: the function.
      path: the leaf's path.
      leaf: the leaf.

    Returns:
      Its answer.

    Raises:
      TypeError: if it is not a bool.
    """
    answer = function(path, leaf)
    is_array = isinstance(answer, jax.Array | np.ndarray) and np.ndim(answer) == 0
    is_bool = is_array and answer.dtype == np.bool_ and not isinstance(answer, Tracer)
    if not is_bool and not isinstance(answer, bool | np.bool_):
        raise TypeError(
            f"{name}(path, leaf) must return a bool, got {described(answer)} at "
            f"{path!r}: wrap it in bool(...)"
        )
    return bool(answer)


def _is_number(value: Any) -> bool:
    """Tell whether it is a number or an array without axes, but not a bool."""
    if isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_:
        return False
    is_scalar = isinstance(value, jax.Array | np.ndarray) and np.ndim(value) == 0
    return is_scalar or isinstance(value, numbers.Real)


def _meant(value: Any) -> str:
    """Return a remedy if the intended number is obvious."""
    try:
        meant = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        return ""
    if not math.isfinite(meant) or meant == value != int(meant):
        return ""
    return f": pass {int(meant) if meant == int(meant) else meant}"


def _range(least: float, most: float, below: float | None, value: float) -> str:
    if below is not None:
        return f"in [{least:g}, {below:g})"
    if math.isinf(least) or math.isinf(most):
        bounds = ["finite"] if math.isinf(value) else []
        bounds += [] if math.isinf(least) else [f"at least {least:g}"]
        return " and ".join(bounds)
    return f"in [{least:g}, {most:g}]"

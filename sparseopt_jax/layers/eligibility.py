"""Which leaves a topology makes sparse, and why the others stay dense."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparseopt_jax.arguments.checks import check_choice, chosen
from sparseopt_jax.layers.leaf_kinds import (
    BIAS,
    SCALE,
    STATE_SPACE,
    VECTOR,
    kind_by_name,
    leaf_kinds,
)
from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.trees import paths

Where = Callable[[str, Any], bool]
"""``where(path, leaf)``: False excludes a kernel."""

Include = str | Sequence[str] | Callable[[str, Any], bool]
"""Globs over paths, or a function of path and leaf: leaves to make sparse although they
are not kernels."""


def check_where(where: Any, include: Any = None) -> None:
    """Raise unless ``where`` and ``include`` have a form that selects leaves.

    Raises:
      TypeError: with the argument and its value.
    """
    check_choice("where", where)
    if callable(include):
        check_choice("include", include)
    if include is None or callable(include) or isinstance(include, str):
        return
    if not isinstance(include, Sequence) or not all(
        isinstance(pattern, str) for pattern in include
    ):
        raise TypeError(
            "include must be a glob over paths, a sequence of them, or a function of "
            f"(path, leaf), got {include!r}"
        )


def array_leaves(
    tree: Any, argument: str = "params", *, numbers: bool = False
) -> dict[str, Any]:
    """Return the leaves by path, if all of them have a shape and a dtype.

    Args:
      tree: any pytree.
      argument: its name, for the message.
      numbers: whether Python numbers may stand for arrays.

    Raises:
      TypeError: with the path of a leaf that is not an array.
    """
    leaves = paths.leaves_by_path(tree)
    for path, leaf in leaves.items():
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        if not is_array and not (numbers and isinstance(leaf, int | float | complex)):
            what = getattr(leaf, "__name__", None) or repr(leaf)
            raise TypeError(
                f"{argument} must hold only arrays; {path!r} holds "
                f"{type(leaf).__name__} {what}: pass an Equinox module as "
                "eqx.filter(model, eqx.is_inexact_array), and remove untrained leaves "
                "from other trees"
            )
    return leaves


def kinds_by_path(tree: Any) -> dict[str, str]:
    """Return the kind of each leaf that is not a kernel, as ``leaf_kinds`` does.

    Args:
      tree: all parameters, so that each leaf has its neighbours.

    Returns:
      A word or two by path; empty for kernels.
    """
    return leaf_kinds(paths.leaves_by_path(tree), paths.modules_by_path(tree))


def why_dense(
    path: str,
    leaf: Any,
    axes: Axes | None,
    where: Where | None,
    *,
    kind: str,
    is_included: bool,
) -> str:
    """Return why a leaf stays dense; empty if it is made sparse.

    Kernels are made sparse: floating-point leaves with at least one reduction and one
    output axis that name and neighbours do not identify as another kind
    (``leaf_kinds``).

    Args:
      path: the leaf's canonical path.
      leaf: anything with a ``shape`` and a ``dtype``.
      axes: its axes; None for a leaf that is not a matrix.
      where: the user's choice, which can only exclude more.
      kind: its entry in ``kinds_by_path``.
      is_included: whether the user makes it sparse, whatever its kind.

    Returns:
      The reason, or an empty string.
    """
    if never := why_never(leaf, axes):
        return never
    if kind and not is_included:
        return kind
    if 0 in leaf.shape:
        return "empty"
    if where is not None and not chosen("where", where, path, leaf):
        return "excluded by where"
    return ""


def why_never(leaf: Any, axes: Axes | None) -> str:
    """Return why a leaf can never be sparse; empty if it can."""
    dtype = jnp.dtype(leaf.dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        return f"{dtype} is not a real floating-point dtype"
    return "fewer than two dimensions" if axes is None else ""


def included(
    include: Include | None, leaves: Mapping[str, Any], never: Mapping[str, str]
) -> frozenset[str]:
    """Return the paths of the leaves that ``include`` selects.

    Args:
      include: a glob over paths, several globs, a function of path and leaf, or None.
      leaves: all leaves by path.
      never: why each can never be sparse; empty if it can.

    Raises:
      ValueError: if it, or one of its globs, selects no leaf that can be sparse.
    """
    if include is None or not leaves:
        return frozenset()
    if callable(include):
        found = [p for p, x in leaves.items() if chosen("include", include, p, x)]
        named = {"the function": found}
        if not named["the function"]:
            listed = ", ".join(leaves)
            raise ValueError(f"include selects no leaf; the paths are {listed}")
    else:
        globs = (include,) if isinstance(include, str) else include
        paths.check_patterns(globs, leaves, "include")
        named = {
            f"the pattern {glob!r}": [p for p in leaves if paths.matches(p, glob)]
            for glob in globs
        }
    for what, found in named.items():
        if all(never[path] for path in found):
            listed = "; ".join(f"{path}: {never[path]}" for path in found)
            raise ValueError(
                f"include: {what} selects only leaves that can never be sparse "
                f"({listed})"
            )
    return frozenset(path for found in named.values() for path in found)


def is_decayed(path: str, leaf: Any, kind: str | None = None) -> bool:
    """Tell whether a leaf is usually decayed: not a vector, bias or scale of a norm."""
    # Wrappers such as `optax.masked` leave a hole in place of a leaf.
    if paths.is_hole(leaf):
        return False
    kind = kind_by_name(path) if kind is None else kind
    return len(leaf.shape) >= 2 and kind not in (BIAS, SCALE, STATE_SPACE, VECTOR)


def is_matrix(leaf: Any) -> bool:
    """Tell whether a leaf is real floating-point and has two or more dimensions."""
    return len(np.shape(leaf)) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)


def decay_mask(params: Any) -> Any:
    """Return ``is_decayed`` by leaf, the mask for ``optax.add_decayed_weights``."""
    kinds = kinds_by_path(params)

    def at_leaf(path, leaf):
        return is_decayed(path, leaf, kinds.get(path))

    return paths.map_with_paths(at_leaf, params)

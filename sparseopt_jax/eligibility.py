"""Which leaves a topology makes sparse, and why the others stay dense."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparseopt_jax import paths
from sparseopt_jax.arguments import chosen
from sparseopt_jax.neurons import Axes

Where = Callable[[str, Any], bool]


def why_dense(path: str, leaf: Any, axes: Axes | None, where: Where | None) -> str:
    """Why a leaf stays dense; empty for one that is made sparse.

    Kernels are made sparse: floating-point leaves with at least one reduction and one
    output axis that are no bias, no normalisation's scale and no embedding by name.

    Args:
      path: the leaf's canonical path.
      leaf: anything with a ``shape`` and a ``dtype``.
      axes: its axes, None for a leaf that is no matrix.
      where: the user's own choice, which can only leave out more.

    Returns:
      The reason, or an empty string.
    """
    dtype = jnp.dtype(leaf.dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        return f"{dtype} is not a real floating-point type"
    if axes is None:
        return "fewer than two dimensions"
    kind = paths.kind_by_name(path)
    if kind:
        return kind
    if 0 in leaf.shape:
        return "empty"
    if where is not None and not chosen("where", where, path, leaf):
        return "excluded by where"
    return ""


def is_decayed(path: str, leaf: Any) -> bool:
    """Whether weight decay is customary: no vector, bias or normalisation's scale."""
    # Where a wrapper such as `optax.masked` has left a leaf out, there is a hole.
    if paths.is_hole(leaf):
        return False
    return len(leaf.shape) >= 2 and paths.kind_by_name(path) not in ("bias", "scale")


def is_matrix(leaf: Any) -> bool:
    """Whether a leaf is real floating-point and has two dimensions, or more."""
    return len(np.shape(leaf)) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)


def decay_mask(params: Any) -> Any:
    """What ``optax.add_decayed_weights`` takes as its mask: ``is_decayed`` by leaf."""
    return paths.map_with_paths(is_decayed, params)

"""Plans of leaves with given masks, and checks that these masks are legal."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers.distributions import Layer
from sparseopt_jax.layers.leaf_plan import (
    LeafPlan,
    Leaves,
    Rules,
    check_single_weights,
)
from sparseopt_jax.layers.neurons import one_neuron, resolve_axes
from sparseopt_jax.layers.structures import Structure, Unstructured, resolve_structure
from sparseopt_jax.trees import paths


def plans_of_masks(rules: Rules, params: Any, leaves: Leaves) -> list[LeafPlan]:
    """Plan each leaf according to the given masks.

    Args:
      rules: the rules that decide, with masks.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.
      leaves: its leaves.

    Returns:
      One entry per leaf, in tree order, without numbers for each cell.

    Raises:
      ValueError: if the masks do not fit the parameters or the structures.
    """
    masks = masks_by_path(rules.masks)
    expected = [path for path, _ in paths.flatten_with_paths(params)]
    for hole in [path for path, mask in masks.items() if mask is None]:
        # A mask may stand for a subtree, as in wrappers, or for no leaf at all.
        if hole not in expected:
            masks.pop(hole)
            below = [path for path in expected if path.startswith(f"{hole}/")]
            masks.update(dict.fromkeys(below))
    if sorted(masks) != sorted(expected):
        raise ValueError(
            "masks must have the structure of the parameters, with "
            "optax.MaskedNode() at dense leaves: they hold "
            f"{', '.join(masks)}; the parameters are {', '.join(expected)}"
        )
    plans = [
        LeafPlan(path, x, "dense in masks", leaves.axes[path], kind=leaves.kinds[path])
        if masks[path] is None
        else _plan_of_mask(rules, path, x, masks[path])
        for path, x in leaves.arrays.items()
    ]
    if leaves.arrays and not any(plan.layer for plan in plans):
        raise ValueError("masks hold no bool array: nothing would be sparse")
    return plans


def _plan_of_mask(rules: Rules, path: str, x: Any, mask: Any) -> LeafPlan:
    if tuple(mask.shape) != tuple(x.shape):
        raise ValueError(
            f"the mask at {path!r} has shape {tuple(mask.shape)}, its "
            f"parameter {tuple(x.shape)}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"the mask at {path!r} belongs to a parameter of dtype {x.dtype}; "
            "only real floating-point parameters can be sparse"
        )
    axes = resolve_axes(rules.dims, path, x) or one_neuron(x)
    structure = resolve_structure(rules.structure, path)
    units = structure.units(path, tuple(x.shape), axes)
    if rules.min_fan_in:
        check_single_weights(structure, path)
    known = _known(mask)
    if known is not None:
        _check_legal(path, known, structure, units, moves=rules.moves)
        _check_active(path, known)
    active = None if known is None else int(np.count_nonzero(known))
    return LeafPlan(
        path=path,
        leaf=x,
        why_dense="",
        axes=axes,
        layer=Layer.of(path, x, axes),
        structure=structure,
        units=units,
        active=active,
    )


def masks_by_path(masks: Any) -> dict[str, Any]:
    """Return given masks by path, None for a leaf or subtree that stays dense."""

    def is_dense(x):
        return x is None or paths.is_hole(x)

    leaves = paths.flatten_with_paths(masks, is_dense)
    return {path: None if is_dense(leaf) else leaf for path, leaf in leaves}


def _known(mask: Any) -> np.ndarray | None:
    """Return the mask if it can be read now: neither traced nor on other processes."""
    if isinstance(mask, Tracer):
        return None
    if not getattr(mask, "is_fully_addressable", True):
        return None
    return np.asarray(mask)


def _check_active(path: str, mask: np.ndarray) -> None:
    if not mask.any():
        raise ValueError(
            f"the mask at {path!r} has no active weight, which would keep it at zero "
            "forever: pass optax.MaskedNode() or None to keep the leaf dense; "
            "so.masks_of(params) returns the masks of a sparse checkpoint's kernels"
        )


def _check_legal(
    path: str, mask: np.ndarray, structure: Structure, units: Units, *, moves: bool
) -> None:
    if isinstance(structure, Unstructured):
        return
    split = mask.reshape(units.split)
    whole = split.all(units.inner, keepdims=True)
    if (whole != split.any(units.inner, keepdims=True)).any():
        raise ValueError(
            f"the mask at {path!r} is not legal for {structure}: a unit of "
            f"{units.size} weights is only partly active"
        )
    if units.is_layer_wide or moves:
        return
    counts = whole.sum(units.cell)
    if structure.density is not None:
        legal = counts == structure.per_cell(units, 0)
    else:
        legal = (counts == counts.max()) | (counts == 0)  # ablated neurons
    if not legal.all():
        raise ValueError(
            f"the mask at {path!r} is not legal for {structure}: it has between "
            f"{counts.min()} and {counts.max()} active weights of {units.per_cell}"
        )

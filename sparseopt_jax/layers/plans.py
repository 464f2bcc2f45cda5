"""What a topology decides about each leaf, from shapes alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers import distributions
from sparseopt_jax.layers.distributions import Distribution, First, Layer
from sparseopt_jax.layers.eligibility import (
    Include,
    Where,
    array_leaves,
    included,
    kinds_by_path,
    why_dense,
    why_never,
)
from sparseopt_jax.layers.first_layer import biases_by_module, ends_of, first_layer
from sparseopt_jax.layers.leaf_kinds import EMBEDDING, is_lookup
from sparseopt_jax.layers.neurons import (
    Axes,
    Dims,
    check_patterns_fit,
    one_neuron,
    resolve_axes,
)
from sparseopt_jax.layers.structures import (
    ConstantFanIn,
    Structure,
    Structures,
    Unstructured,
    resolve_structure,
)
from sparseopt_jax.trees import paths


class LeafPlan(NamedTuple):
    """What a topology decides about one leaf.

    Attributes:
      path: the leaf's canonical path.
      leaf: the leaf, or what stands for its shape.
      why_dense: the reason that it stays dense; empty if it is sparse.
      axes: its axes; None if it has no neurons.
      layer: the layer that distributions see; None if it stays dense.
      structure: what may be active in it; None if it stays dense.
      units: how its weights are switched; None if it stays dense.
      per_cell: active units in each cell, in the end where a schedule moves the
        density; None if it stays dense, or if given masks decide.
      active: its active weights, in the end; None if it stays dense, or if a traced or
        remote mask keeps the number to itself.
      kind: what it is, if that is no kernel, by name and neighbours.
      note: what else is to be said of it.
    """

    path: str
    leaf: Any
    why_dense: str
    axes: Axes | None
    layer: Layer | None = None
    structure: Structure | None = None
    units: Units | None = None
    per_cell: int | None = None
    active: int | None = None
    kind: str = ""
    note: str = ""


class Rules(NamedTuple):
    """The part of a topology that decides about leaves: as in ``Rewiring``.

    ``begins`` is for masks that a moving density begins with: no structure fixes their
    numbers. ``moves`` is for a density that moves: given masks are where it begins, and
    the distribution says where it ends.
    """

    sparsity: float | None
    distribution: str | Mapping[str, float] | Distribution
    structure: Structures
    where: Where | None
    masks: Any
    dims: Dims
    min_fan_in: int
    begins: bool = False
    include: Include | None = None
    first: First = True
    moves: bool = False


def plan_leaves(rules: Rules, params: Any) -> list[LeafPlan]:
    """What becomes of each leaf of ``params``.

    Args:
      rules: what decides.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      One entry per leaf, in tree order.

    Raises:
      ValueError: if no leaf can be sparse, a pattern matches nothing, a layer would
        keep no weight, a structure does not fit a shape, or the given masks do not fit.
    """
    flat = array_leaves(params)
    kinds = kinds_by_path(params)
    if isinstance(rules.structure, Mapping) and flat:
        paths.check_patterns(rules.structure, flat, "structure")
    check_patterns_fit(rules.dims, flat)
    axes = {
        path: resolve_axes(rules.dims, path, x, is_sparse=False)
        for path, x in flat.items()
    }
    if rules.masks is not None:
        plans = _plans_of_masks(rules, params, flat, axes, kinds)
        if not rules.moves:
            return plans
        layers = {plan.path: plan.layer for plan in plans if plan.layer is not None}
        return _with_counts(rules, plans, _first(rules, flat, axes, kinds, layers))

    never = {path: why_never(x, axes[path]) for path, x in flat.items()}
    chosen = included(rules.include, flat, never)
    reasons = {
        path: why_dense(
            path,
            x,
            axes[path],
            rules.where,
            kind=kinds[path],
            is_included=path in chosen,
        )
        for path, x in flat.items()
    }
    for path in flat:
        if axes[path] is not None and not reasons[path]:
            axes[path] = resolve_axes(rules.dims, path, flat[path])
    layers = {
        path: Layer.of(path, x, leaf_axes)
        for path, x in flat.items()
        if (leaf_axes := axes[path]) is not None and not reasons[path]
    }
    if flat and not layers:
        listed = "; ".join(f"{path}: {why}" for path, why in reasons.items())
        raise ValueError(f"no parameter can be made sparse ({listed})")
    first = _first(rules, flat, axes, kinds, layers) - chosen
    counts = _counts(rules, layers, first)
    return [
        _plan(rules, path, x, axes[path], layers[path], counts[path])._replace(
            kind=kinds[path],
            note="dense: first layer"
            if path in first and counts[path] == layers[path].size
            else "",
        )
        if path in layers
        else LeafPlan(path, x, reasons[path], axes[path], kind=kinds[path])
        for path, x in flat.items()
    ]


def _plan(
    rules: Rules, path: str, leaf: Any, axes: Any, layer: Layer, count: int
) -> LeafPlan:
    structure = resolve_structure(rules.structure, path)
    units = structure.units(path, tuple(leaf.shape), axes)
    per_cell = (structure.nearest if rules.begins else structure.per_cell)(units, count)
    active = per_cell * units.cells * units.size
    if rules.min_fan_in:
        _check_min_fan_in(rules.min_fan_in, structure, layer, axes, leaf, active)
    return LeafPlan(
        path=path,
        leaf=leaf,
        why_dense="",
        axes=axes,
        layer=layer,
        structure=structure,
        units=units,
        per_cell=per_cell,
        active=active * layer.copies,
    )


def _first(
    rules: Rules,
    leaves: dict[str, Any],
    axes: dict[str, Axes | None],
    kinds: dict[str, str],
    layers: dict[str, Layer],
) -> frozenset[str]:
    """The paths that ``uniform`` keeps dense."""
    if rules.distribution != "uniform" or rules.first in (None, False):
        return frozenset()
    if rules.first is not True:
        globs = (rules.first,) if isinstance(rules.first, str) else rules.first
        paths.check_patterns(globs, leaves, "first")  # pyright: ignore
        return frozenset(
            path
            for path in layers
            if any(paths.matches(path, glob) for glob in globs)  # pyright: ignore
        )
    if len(layers) < 2:
        return frozenset()
    biases = biases_by_module(leaves)
    # Kernels that the user keeps dense have their places in the network, too.
    kernels = tuple(
        ends_of(path, x, leaf_axes, rules.dims, biases.get(path.rpartition("/")[0]))
        for path, x in leaves.items()
        if (leaf_axes := axes[path]) is not None and not kinds[path] and x.size
    )
    embeds = any(
        is_lookup(path, leaves[path]) for path in leaves if kinds[path] == EMBEDDING
    )
    return frozenset({first_layer(kernels, embeds)}) & layers.keys()


def _counts(
    rules: Rules, layers: dict[str, Layer], first: frozenset[str]
) -> dict[str, int]:
    """What each single layer gets: from its structure, or from the distribution."""
    fixed = {
        path: density
        for path in layers
        if (density := resolve_structure(rules.structure, path).density) is not None
        and not rules.begins
    }
    counts = {path: round(layers[path].size * fixed[path]) for path in fixed}
    free = [layer for path, layer in layers.items() if path not in fixed]
    if free:
        if rules.sparsity is None:
            raise ValueError(
                "sparsity must be given: the structure of "
                f"{', '.join(layer.path for layer in free)} fixes none"
            )
        return counts | distributions.allocate(
            rules.distribution, free, rules.sparsity, first=first
        )
    for path, density in fixed.items():
        if rules.sparsity is not None and abs(1 - density - rules.sparsity) > 1e-6:
            raise ValueError(
                f"sparsity {rules.sparsity} cannot hold for {path!r}: its structure "
                f"{resolve_structure(rules.structure, path)} has sparsity "
                f"{1 - density}; leave sparsity out"
            )
    return counts


def _check_min_fan_in(
    least: int, structure: Structure, layer: Layer, axes: Axes, leaf: Any, active: int
) -> None:
    inputs = layer.size // layer.outputs
    _check_single_weights(structure, layer.path)
    if least > inputs or least * layer.outputs > active:
        raise ValueError(
            f"min_fan_in = {least} needs {least * layer.outputs} active weights in "
            f"{layer.path!r}, which has {active} of {layer.size}, {inputs} for each of "
            f"{layer.outputs} neurons; lower it, or give this layer more weights"
        )


def _check_single_weights(structure: Structure, path: str) -> None:
    if not isinstance(structure, Unstructured | ConstantFanIn):
        raise ValueError(
            f"min_fan_in holds for single weights, not for {structure}, the structure "
            f"of {path!r}"
        )


def _with_counts(
    rules: Rules, plans: list[LeafPlan], first: frozenset[str]
) -> list[LeafPlan]:
    """Plans of given masks with the numbers that a moving density brings them to."""
    layers = {plan.path: plan.layer for plan in plans if plan.layer is not None}
    counts = _counts(rules, layers, first)

    def counted(plan):
        if plan.layer is None:
            return plan
        moved = _plan(
            *(rules, plan.path, plan.leaf, plan.axes, plan.layer, counts[plan.path])
        )
        # Masks that are sparser stay so.
        active = None if plan.active is None else min(plan.active, moved.active or 0)
        return plan._replace(per_cell=moved.per_cell, active=active)

    return list(map(counted, plans))


def _plans_of_masks(
    rules: Rules,
    params: Any,
    flat: dict[str, Any],
    axes: dict[str, Axes | None],
    kinds: dict[str, str],
) -> list[LeafPlan]:
    masks = masks_by_path(rules.masks)
    expected = [path for path, _ in paths.flatten_with_paths(params)]
    for hole in [path for path, mask in masks.items() if mask is None]:
        # It may stand for a subtree, as wrappers make them, or for no leaf at all.
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
    plans = []
    for path, x in flat.items():
        mask = masks[path]
        if mask is None:
            plans.append(
                LeafPlan(path, x, "dense in masks", axes[path], kind=kinds[path])
            )
            continue
        if tuple(mask.shape) != tuple(x.shape):
            raise ValueError(
                f"the mask at {path!r} has shape {tuple(mask.shape)}, its "
                f"parameter {tuple(x.shape)}"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"the mask at {path!r} belongs to a parameter of type {x.dtype}; "
                "only real floating-point parameters can be sparse"
            )
        leaf_axes = resolve_axes(rules.dims, path, x) or one_neuron(x)
        structure = resolve_structure(rules.structure, path)
        units = structure.units(path, tuple(x.shape), leaf_axes)
        layer = Layer.of(path, x, leaf_axes)
        if rules.min_fan_in:
            _check_single_weights(structure, path)
        known = _known(mask)
        if known is not None:
            _check_legal(path, known, structure, units, moves=rules.moves)
            _check_active(path, known)
        active = None if known is None else int(np.count_nonzero(known))
        plans.append(
            LeafPlan(path, x, "", leaf_axes, layer, structure, units, active=active)
        )
    if flat and not any(plan.layer for plan in plans):
        raise ValueError("masks hold no bool array: nothing would be sparse")
    return plans


def masks_by_path(masks: Any) -> dict[str, Any]:
    """Given masks by their paths, None for a leaf or subtree that stays dense."""

    def is_dense(x):
        return x is None or paths.is_hole(x)

    leaves = paths.flatten_with_paths(masks, is_dense)
    return {path: None if is_dense(leaf) else leaf for path, leaf in leaves}


def _known(mask: Any) -> np.ndarray | None:
    """The mask, if it can be read now: not while tracing, not from afar."""
    if isinstance(mask, Tracer):
        return None
    if not getattr(mask, "is_fully_addressable", True):
        return None
    return np.asarray(mask)


def _check_active(path: str, mask: np.ndarray) -> None:
    if not mask.any():
        raise ValueError(
            f"the mask at {path!r} has no active weight, which would keep it at zero "
            "for good: give optax.MaskedNode() or None to leave the leaf dense; "
            "so.masks_of(params) gives the masks of a sparse checkpoint, of its "
            "kernels alone"
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
            f"{units.size} weights is active in part"
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

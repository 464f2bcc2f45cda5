"""A topology's decision about each leaf, from shapes only."""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.layers import distributions
from sparseopt_jax.layers.distributions import Layer
from sparseopt_jax.layers.eligibility import (
    array_leaves,
    included,
    kinds_by_path,
    why_dense,
    why_never,
)
from sparseopt_jax.layers.first_layer import biases_by_module, ends_of, first_layer
from sparseopt_jax.layers.leaf_kinds import EMBEDDING, is_lookup
from sparseopt_jax.layers.leaf_plan import (
    LeafPlan,
    Leaves,
    Rules,
    check_single_weights,
)
from sparseopt_jax.layers.mask_plans import plans_of_masks
from sparseopt_jax.layers.neurons import (
    check_patterns_fit,
    resolve_axes,
)
from sparseopt_jax.layers.structures import (
    Structure,
    resolve_structure,
)
from sparseopt_jax.trees import paths


def plan_leaves(rules: Rules, params: Any) -> list[LeafPlan]:
    """Plan each leaf of ``params``.

    Args:
      rules: the rules that decide.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      One entry per leaf, in tree order.

    Raises:
      ValueError: if no leaf can be sparse, a pattern matches nothing, a layer would
        keep no weight, a structure does not fit a shape, or the given masks do not fit.
    """
    flat, kinds = array_leaves(params), kinds_by_path(params)
    if isinstance(rules.structure, Mapping) and flat:
        paths.check_patterns(rules.structure, flat, "structure")
    check_patterns_fit(rules.dims, flat)
    axes = {
        path: resolve_axes(rules.dims, path, x, is_sparse=False)
        for path, x in flat.items()
    }
    leaves = Leaves(flat, axes, kinds)
    if rules.masks is not None:
        plans = plans_of_masks(rules, params, leaves)
        if not rules.moves:
            return plans
        layers = {plan.path: plan.layer for plan in plans if plan.layer is not None}
        return _with_counts(rules, plans, _first(rules, leaves, layers))
    reasons, chosen = _reasons(rules, leaves)
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
    first = _first(rules, leaves, layers) - chosen
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


def _reasons(rules: Rules, leaves: Leaves) -> tuple[dict[str, str], frozenset[str]]:
    """Return why each leaf stays dense, empty if it does not, and what is included."""
    arrays, axes = leaves.arrays, leaves.axes
    never = {path: why_never(x, axes[path]) for path, x in arrays.items()}
    chosen = included(rules.include, arrays, never)
    reasons = {
        path: why_dense(
            path,
            x,
            axes[path],
            rules.where,
            kind=leaves.kinds[path],
            is_included=path in chosen,
        )
        for path, x in arrays.items()
    }
    return reasons, chosen


def _plan(
    rules: Rules, path: str, leaf: Any, axes: Any, layer: Layer, count: int
) -> LeafPlan:
    structure = resolve_structure(rules.structure, path)
    units = structure.units(path, tuple(leaf.shape), axes)
    per_cell = (structure.nearest if rules.begins else structure.per_cell)(units, count)
    active = per_cell * units.cells * units.size
    if rules.min_fan_in:
        _check_min_fan_in(rules.min_fan_in, structure, layer, active)
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


def _first(rules: Rules, leaves: Leaves, layers: dict[str, Layer]) -> frozenset[str]:
    """Return the paths that ``uniform`` keeps dense."""
    if rules.distribution != "uniform" or rules.first in (None, False):
        return frozenset()
    if rules.first is not True:
        globs = (rules.first,) if isinstance(rules.first, str) else rules.first
        paths.check_patterns(globs, leaves.arrays, "first")  # pyright: ignore
        return frozenset(
            path
            for path in layers
            if any(paths.matches(path, glob) for glob in globs)  # pyright: ignore
        )
    if len(layers) < 2:
        return frozenset()
    arrays, kinds = leaves.arrays, leaves.kinds
    biases = biases_by_module(arrays)
    # Kernels that the user keeps dense are part of the network, too.
    kernels = tuple(
        ends_of(path, x, axes, rules.dims, biases.get(path.rpartition("/")[0]))
        for path, x in arrays.items()
        if (axes := leaves.axes[path]) is not None and not kinds[path] and x.size
    )
    embeds = any(
        is_lookup(path, x) for path, x in arrays.items() if kinds[path] == EMBEDDING
    )
    return frozenset({first_layer(kernels, embeds)}) & layers.keys()


def _counts(
    rules: Rules, layers: dict[str, Layer], first: frozenset[str]
) -> dict[str, int]:
    """Return each single layer's budget, from its structure or the distribution."""
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
    least: int, structure: Structure, layer: Layer, active: int
) -> None:
    inputs = layer.size // layer.outputs
    check_single_weights(structure, layer.path)
    if least > inputs or least * layer.outputs > active:
        raise ValueError(
            f"min_fan_in = {least} needs {least * layer.outputs} active weights in "
            f"{layer.path!r}, which has {active} of {layer.size}, {inputs} for each of "
            f"{layer.outputs} neurons; lower it, or give this layer more weights"
        )


def _with_counts(
    rules: Rules, plans: list[LeafPlan], first: frozenset[str]
) -> list[LeafPlan]:
    """Add the numbers at the end of a density schedule to plans of given masks."""
    layers = {plan.path: plan.layer for plan in plans if plan.layer is not None}
    counts = _counts(rules, layers, first)

    def counted(plan):
        if plan.layer is None:
            return plan
        count = counts[plan.path]
        moved = _plan(rules, plan.path, plan.leaf, plan.axes, plan.layer, count)
        # Sparser masks keep their numbers.
        active = None if plan.active is None else min(plan.active, moved.active or 0)
        return plan._replace(per_cell=moved.per_cell, active=active)

    return list(map(counted, plans))

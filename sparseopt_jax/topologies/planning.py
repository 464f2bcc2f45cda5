"""What a rewiring decides about each leaf."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import optax

from sparseopt_jax.layers.leaf_plan import LeafPlan, Rules
from sparseopt_jax.layers.plans import plan_leaves

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring


def planned(rewiring: "Rewiring", params: optax.Params) -> list[LeafPlan]:
    """Decide about each leaf: as ``Rewiring.plan``."""
    if rewiring.is_handed_on:
        raise ValueError(
            "masks=so.PREVIOUS_MASKS takes masks over from a phase before; use it in "
            "phases"
        )
    plans = plan_leaves(_rules(rewiring, rewiring.sparsity), params)
    _check_countable(rewiring, plans)
    for plan in plans:
        if plan.units is not None:
            for stage in rewiring.stages:
                stage.check_leaf(plan)
    return plans


def first_planned(rewiring: "Rewiring", params: optax.Params) -> list[LeafPlan]:
    """Decide about each leaf, for the masks that a moving density begins with."""
    last = rewiring.leaves(params)  # raises where the end does not fit
    if rewiring.density is None:
        return last
    initial = rewiring.density.initial_sparsity
    rules = _rules(rewiring, initial)._replace(begins=True)
    if isinstance(rewiring.distribution, Mapping):
        # The sparsities of a mapping are those of the end.
        begins = {
            pattern: min(initial, end) for pattern, end in rewiring.distribution.items()
        }
        rules = rules._replace(distribution=begins)
    return plan_leaves(rules, params)


def paths_of_full(plans: list[LeafPlan]) -> frozenset[str]:
    """Return the paths of the sparse leaves all of whose weights are active."""
    return frozenset(
        plan.path
        for plan in plans
        if plan.layer and plan.active == plan.layer.size * plan.layer.copies
    )


def _rules(rewiring: "Rewiring", sparsity: float | None) -> Rules:
    return Rules(
        sparsity=sparsity,
        distribution=rewiring.distribution,
        structure=rewiring.structure,
        where=rewiring.where,
        masks=rewiring.masks,
        dims=rewiring.dims,
        min_fan_in=rewiring.min_fan_in,
        include=rewiring.include,
        first=rewiring.first,
        moves=rewiring.density is not None,
    )


def _check_countable(rewiring: "Rewiring", plans: list[LeafPlan]) -> None:
    """Raise where an int32 could not count what is counted together."""
    total = 0
    for plan in plans:
        if plan.units is None:
            continue
        units = plan.units.per_layer
        total += math.prod(plan.units.shape)
        if units >= 2**31:
            raise ValueError(
                f"{plan.path!r} has {units} units of {plan.structure} in one layer, "
                "and an int32 counts 2**31 - 1: make them fewer by a mapping to "
                "Block((...)), split the kernel, name its stacked axes by dims, or "
                "exclude it by where"
            )
    if total >= 2**31 and rewiring.crosses_layers:
        raise ValueError(
            f"{rewiring.name} compares all layers, whose {total} weights an int32 does "
            "not count: exclude some by where, or take a method that keeps to each "
            "layer"
        )

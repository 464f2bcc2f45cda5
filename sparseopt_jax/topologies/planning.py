"""The decisions of a rewiring about each leaf."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import optax

from sparseopt_jax.layers.leaf_plan import LeafPlan, Rules
from sparseopt_jax.layers.plans import plan_leaves

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring


def planned(rewiring: "Rewiring", params: optax.Params) -> list[LeafPlan]:
    """Decide about each leaf; see ``Rewiring.leaves``."""
    if rewiring.is_handed_on:
        raise ValueError(
            "masks=so.PREVIOUS_MASKS takes over the masks of the previous phase: use "
            "it in so.phases"
        )
    plans = plan_leaves(_rules(rewiring, rewiring.sparsity), params)
    _check_countable(rewiring, plans)
    for plan in plans:
        if plan.units is not None:
            for stage in rewiring.stages:
                stage.check_leaf(plan)
    return plans


def first_planned(rewiring: "Rewiring", params: optax.Params) -> list[LeafPlan]:
    """Decide about each leaf, for the first masks of a density schedule."""
    last = rewiring.leaves(params)  # raises if the final numbers do not fit
    if rewiring.density is None:
        return last
    initial = rewiring.density.initial_sparsity
    rules = _rules(rewiring, initial)._replace(begins=True)
    if isinstance(rewiring.distribution, Mapping):
        # A mapping specifies the final sparsities. A layer that would have to move
        # against the network begins with its final one.
        final = rewiring.target_density
        bound = max if final is not None and 1 - initial < final else min
        begins = {
            pattern: bound(initial, end)
            for pattern, end in rewiring.distribution.items()
        }
        rules = rules._replace(distribution=begins)
    return plan_leaves(rules, params)


def paths_of_full(plans: list[LeafPlan]) -> frozenset[str]:
    """Return the paths of the sparse leaves whose weights are all active."""
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
    """Raise if an int32 cannot count all units that are counted together."""
    total = 0
    for plan in plans:
        if plan.units is None:
            continue
        units = plan.units.per_layer
        total += math.prod(plan.units.shape)
        if units >= 2**31:
            raise ValueError(
                f"{plan.path!r} has {units} units of {plan.structure} in one layer, "
                "more than the 2**31 - 1 that an int32 can count: map it to Block(...) "
                "in structure, split the kernel, specify its stack axes with dims, or "
                "exclude it with where"
            )
    if total >= 2**31 and rewiring.crosses_layers:
        raise ValueError(
            f"{rewiring.name} compares all layers, whose {total} weights exceed the "
            "2**31 - 1 that an int32 can count: exclude some with where, or use a "
            "method that treats each layer separately"
        )

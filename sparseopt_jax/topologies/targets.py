"""The target number of active units of every layer at a step."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import optax

from sparseopt_jax.arrays.rounding import scaled
from sparseopt_jax.layers.leaf_plan import LeafPlan

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring


def targets(rewiring: "Rewiring", count: Any, params: optax.Params) -> dict[str, Any]:
    """Return the target number of active units of every cell at a step, by path.

    Args:
      rewiring: the topology.
      count: int32 scalar, the step.
      params: the weights, or placeholders with their shapes.

    Returns:
      Ints, or int32 scalars with a density schedule; no entry for leaves whose numbers
      the topology does not decide.
    """
    if rewiring.is_handed_on:
        return {}
    plans = {plan.path: plan for plan in rewiring.leaves(params)}
    last = {path: plan.per_cell for path, plan in plans.items() if plan.per_cell}
    if rewiring.density is None:
        return dict(last)
    progress = jnp.asarray(rewiring.density.progress(count), jnp.float32)
    first: dict[str, Any] = {
        plan.path: plan.per_cell for plan in rewiring.first_leaves(params)
    }
    # A schedule may overshoot its ends; a layer keeps between one and all of its units.
    return {
        path: n
        + jnp.clip(
            scaled(first[path] - n, progress),
            1 - n,
            plans[path].units.per_cell - n,  # pyright: ignore
        )
        for path, n in last.items()
    }


def rises(rewiring: "Rewiring", count: Any, params: optax.Params) -> Any:
    """Return whether an update at a step may grow layers: a bool or bool scalar.

    With a density schedule, layers that are sparser than scheduled are filled up only
    if the density has risen since the previous update: pruned weights stay pruned.

    Args:
      rewiring: the topology.
      count: int32 scalar, the step.
      params: the weights, or placeholders with their shapes.
    """
    density, schedule = rewiring.density, rewiring.schedule
    if density is None or schedule is None:
        return True
    now, before = (
        jnp.asarray(density.progress(step), jnp.float32)
        for step in (count, schedule.previous(count))
    )
    first = _active_units(rewiring.first_leaves(params))
    last = _active_units(rewiring.leaves(params))
    return now > before if first > last else now < before


def _active_units(plans: list[LeafPlan]) -> int:
    return sum(
        plan.per_cell * plan.units.cells
        for plan in plans
        if plan.per_cell and plan.units
    )

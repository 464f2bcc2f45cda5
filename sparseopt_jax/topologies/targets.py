"""The target number of active units of every layer at a step."""

from typing import TYPE_CHECKING, Any

import jax
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


def rises(
    rewiring: "Rewiring", count: Any, params: optax.Params
) -> dict[str, jax.Array]:
    """Return which layers an update at a step may fill up, by path.

    With a density schedule, a layer that is sparser than scheduled is filled up only if
    its density has risen since the previous update: pruned weights stay pruned.

    Args:
      rewiring: the topology.
      count: int32 scalar, the step.
      params: the weights, or placeholders with their shapes.

    Returns:
      Bool scalars; no entries without a density schedule, which means all layers. A
      layer whose number stays, or that competes with others for weights, follows the
      density of the network.
    """
    density, schedule = rewiring.density, rewiring.schedule
    if density is None or schedule is None:
        return {}
    now, before = (
        jnp.asarray(density.progress(step), jnp.float32)
        for step in (count, schedule.previous(count))
    )
    first = _active_units(rewiring.first_leaves(params))
    last = _active_units(rewiring.leaves(params))
    network = sum(first.values()) - sum(last.values())
    falls = {
        path: (not rewiring.crosses_layers and first[path] - n) or network
        for path, n in last.items()
    }
    return {path: now > before if n > 0 else now < before for path, n in falls.items()}


def _active_units(plans: list[LeafPlan]) -> dict[str, int]:
    return {
        plan.path: plan.per_cell * plan.units.cells
        for plan in plans
        if plan.per_cell and plan.units
    }

"""One update of a rewiring's masks: collect what decides, run the stages, write back.

The stages see nothing but drafts. What differs between storages, meshes and ways to lay
leaves out is before and after them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import one_neuron, resolve_axes
from sparseopt_jax.layers.structures import resolve_structure
from sparseopt_jax.masks.state import map_masked, map_masked_with_path
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.base import TopologyState
from sparseopt_jax.topologies.stages import Draft, Stage, held_units
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.leaf_keys import leaf_key

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring


class Demand(NamedTuple):
    """What an update is to do to all leaves.

    Attributes:
      fraction: float32 scalar, the part of the active units that is replaced.
      targets: active units of each cell after the update, by path; a leaf without one
        keeps its number.
      adapts: as in ``Draft``.
      rises: as in ``Draft``.
    """

    fraction: jax.Array
    targets: dict[str, Any]
    adapts: jax.typing.ArrayLike
    rises: jax.typing.ArrayLike


def rewire(stages: Sequence[Stage], drafts: list[Draft]) -> list[Draft]:
    """Run the stages, one after another, over the drafts of all leaves."""
    for stage in stages:
        drafts = stage.over(drafts)
    return drafts


def collect(
    rewiring: "Rewiring",
    key: jax.Array,
    masks: Any,
    params: optax.Params,
    grads: optax.Updates,
    memory: Any,
    demand: Demand,
) -> dict[str, Draft]:
    """Score and count the units of every sparse leaf.

    Args:
      rewiring: the topology.
      key: typed PRNG key of the step.
      masks: the present masks.
      params: the weights.
      grads: the dense gradient.
      memory: what is remembered of earlier gradients.
      demand: what the update is to do.

    Returns:
      The first drafts, by path.
    """
    plans = _plans(rewiring, params)
    remembered = paths.leaves_by_path(memory)
    draws = scores.needs_key(rewiring.drop) or scores.needs_key(rewiring.grow)
    drafts: dict[str, Draft] = {}

    def at_leaf(path, mask, param, grad):
        plan = plans.get(path) or kept_plan(rewiring, path, param)
        keys = jax.random.split(leaf_key(key, path)) if draws else (key, key)
        seen = remembered.get(path, grad)
        seen = scores.seen(rewiring.grow, seen, mask, plan.axes)
        units: Any = plan.units
        measured: dict[str, jax.Array] = {}
        for stage in rewiring.stages:
            measured |= stage.measure(units, units.any(mask), remembered.get(path))
        drafts[path] = first_draft(
            rewiring,
            plan,
            mask,
            param,
            drop=scores.of_units(rewiring.drop, units, keys[0], param, grad),
            grow=scores.of_units(rewiring.grow, units, keys[1], param, seen),
            demand=demand,
            measured=measured,
        )
        return param

    map_masked_with_path(at_leaf, masks, params, grads)
    return drafts


def first_draft(
    rewiring: "Rewiring",
    plan: LeafPlan,
    mask: jax.Array,
    param: jax.Array,
    *,
    drop: jax.Array,
    grow: jax.Array,
    demand: Demand,
    measured: dict[str, jax.Array],
) -> Draft:
    """Return the draft of one leaf that the first stage sees.

    Args:
      rewiring: the topology.
      plan: the leaf's.
      mask: its present mask.
      param: its weights.
      drop: scores of its units to be kept.
      grow: scores of its units to be grown.
      demand: what the update is to do.
      measured: what the stages measured.
    """
    units: Any = plan.units
    active = units.any(mask)
    held, drop = held_units(
        mask,
        jnp.isfinite(param),
        units,
        drop,
        min_fan_in=rewiring.min_fan_in,
        neuron=plan.axes.reduction,  # pyright: ignore
    )
    present = units.count(active)
    return Draft(
        units=units,
        active=active,
        held=held,
        drop=drop,
        grow=grow,
        fraction=demand.fraction,
        target=demand.targets.get(plan.path),
        adapts=demand.adapts,
        rises=demand.rises,
        planned=None if plan.per_cell is None else plan.per_cell * units.cells,
        measured=measured,
        kept=active,
        most=present,
        size=present,
    )


def spread(drafts: dict[str, Draft], masks: Any) -> dict[str, jax.Array]:
    """Return the masks of the last drafts, each of its leaf's shape, by path."""
    old = paths.leaves_by_path(masks)
    return {
        path: draft.units.spread(draft.kept, old[path])
        for path, draft in drafts.items()
    }


def write_back(
    rewiring: "Rewiring",
    count: jax.Array,
    masks: Any,
    state: TopologyState,
    new: dict[str, jax.Array],
) -> tuple[Any, TopologyState]:
    """Return the new tree of masks, and what the topology keeps from now on.

    Args:
      rewiring: the topology.
      count: the step.
      masks: the masks before the update.
      state: what the topology has kept.
      new: the new mask of every sparse leaf, by path.
    """
    old = paths.leaves_by_path(masks)
    grown = {path: count_true(mask & ~old[path]) for path, mask in new.items()}
    masks_now = paths.map_with_paths(lambda path, old: new.get(path, old), masks)
    return masks_now, TopologyState(
        updated_at=jnp.asarray(count, jnp.int32),
        explored=map_masked(jnp.logical_or, masks_now, state.explored),
        turned=state.turned,
        fan_ins=map_masked_with_path(
            lambda path, mask, _: rewiring.fan_in(path, mask), masks_now, state.fan_ins
        ),
        grown=paths.map_with_paths(lambda path, old: grown.get(path, old), state.grown),
        memory=state.memory,
    )


def kept_plan(rewiring: "Rewiring", path: str, leaf: Any) -> LeafPlan:
    """Return the axes and units of a leaf whose masks another topology has made."""
    axes = resolve_axes(rewiring.dims, path, leaf) or one_neuron(leaf)
    structure = resolve_structure(rewiring.structure, path)
    units = structure.units(path, tuple(leaf.shape), axes)
    return LeafPlan(path, leaf, "", axes, units=units)


def _plans(rewiring: "Rewiring", params: optax.Params) -> dict[str, LeafPlan]:
    if rewiring.is_handed_on:
        return {}
    return {plan.path: plan for plan in rewiring.plan(params)}

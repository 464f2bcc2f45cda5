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
from sparseopt_jax.arrays.units import Units
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


class Leaf(NamedTuple):
    """What decides about the units of one sparse leaf.

    Attributes:
      plan: what is planned for it.
      mask: its present mask.
      param: its weights.
      grad: their dense gradient.
      seen: the gradient as growth sees it.
      memory: what is remembered of earlier gradients, or None.
    """

    plan: LeafPlan
    mask: jax.Array
    param: jax.Array
    grad: jax.Array
    seen: jax.Array
    memory: jax.Array | None

    @property
    def units(self) -> Units:
        """How its weights are switched."""
        assert self.plan.units is not None
        return self.plan.units

    def measure(self, stages: Sequence[Stage]) -> dict[str, jax.Array]:
        """Measure what the stages read besides scores."""
        measured: dict[str, jax.Array] = {}
        for stage in stages:
            active = self.units.any(self.mask)
            measured |= stage.measure(self.units, active, self.memory)
        return measured


def rewire(stages: Sequence[Stage], drafts: list[Draft]) -> list[Draft]:
    """Run the stages, one after another, over the drafts of all leaves."""
    for stage in stages:
        drafts = stage.over(drafts)
    return drafts


def collect(
    rewiring: "Rewiring",
    masks: Any,
    params: optax.Params,
    grads: optax.Updates,
    memory: Any,
) -> dict[str, Leaf]:
    """Return what decides about every sparse leaf, by path.

    Args:
      rewiring: the topology.
      masks: the present masks.
      params: the weights.
      grads: the dense gradient.
      memory: what is remembered of earlier gradients.
    """
    plans = _plans(rewiring, params)
    remembered = paths.leaves_by_path(memory)
    leaves: dict[str, Leaf] = {}

    def at_leaf(path, mask, param, grad):
        plan = plans.get(path) or kept_plan(rewiring, path, param)
        seen = remembered.get(path, grad)
        seen = scores.seen(rewiring.grow, seen, mask, plan.axes)
        leaves[path] = Leaf(plan, mask, param, grad, seen, remembered.get(path))
        return param

    map_masked_with_path(at_leaf, masks, params, grads)
    return leaves


def first_drafts(
    rewiring: "Rewiring", key: jax.Array, leaves: dict[str, Leaf], demand: Demand
) -> dict[str, Draft]:
    """Score and count the units of every leaf by itself.

    Args:
      rewiring: the topology.
      key: typed PRNG key of the step.
      leaves: what decides about each leaf, by path.
      demand: what the update is to do.

    Returns:
      The drafts that the first stage sees, by path.
    """
    draws = scores.needs_key(rewiring.drop) or scores.needs_key(rewiring.grow)
    drafts = {}
    for path, leaf in leaves.items():
        keys = jax.random.split(leaf_key(key, path)) if draws else (key, key)
        drafts[path] = first_draft(
            rewiring,
            leaf.plan,
            leaf.mask,
            leaf.param,
            drop=scores.of_units(
                rewiring.drop, leaf.units, keys[0], leaf.param, leaf.grad
            ),
            grow=scores.of_units(
                rewiring.grow, leaf.units, keys[1], leaf.param, leaf.seen
            ),
            demand=demand,
            measured=leaf.measure(rewiring.stages),
        )
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


def rewire_leaf_by_leaf(
    rewiring: "Rewiring", key: jax.Array, leaves: dict[str, Leaf], demand: Demand
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Run the stages over each leaf as it is, wherever it lies.

    Args:
      rewiring: the topology.
      key: typed PRNG key of the step.
      leaves: what decides about each leaf, by path.
      demand: what the update is to do.

    Returns:
      The new masks, and how many weights each has grown, by path.
    """
    drafts = first_drafts(rewiring, key, leaves, demand)
    rewired = rewire(rewiring.stages, list(drafts.values()))
    masks = {
        path: leaves[path].units.spread(draft.kept, leaves[path].mask)
        for path, draft in zip(drafts, rewired, strict=True)
    }
    # What is counted reads the masks, instead of choosing them a second time.
    masks = jax.lax.optimization_barrier(masks)
    grown = {
        path: count_true(mask & ~leaves[path].mask) for path, mask in masks.items()
    }
    return masks, grown


def write_back(
    rewiring: "Rewiring",
    count: jax.Array,
    masks: Any,
    state: TopologyState,
    new: dict[str, jax.Array],
    grown: dict[str, jax.Array],
) -> tuple[Any, TopologyState]:
    """Return the new tree of masks, and what the topology keeps from now on.

    Args:
      rewiring: the topology.
      count: the step.
      masks: the masks before the update.
      state: what the topology has kept.
      new: the new mask of every sparse leaf, by path.
      grown: how many of its weights were turned on, by path.
    """
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
    return {plan.path: plan for plan in rewiring.leaves(params)}

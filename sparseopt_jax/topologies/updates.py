"""One update of a rewiring's masks: collect its inputs, run the stages, write back.

The stages see only drafts. Differences between storages, meshes and arrangements of
leaves are handled before and after the stages.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import one_neuron, resolve_axes
from sparseopt_jax.layers.structures import resolve_structure
from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.compact_storage import planned_shapes
from sparseopt_jax.masks.state import map_masked, map_masked_with_path
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.base import TopologyState
from sparseopt_jax.topologies.leaf import BlockLeaf, Demand, Leaf
from sparseopt_jax.topologies.stages import Draft, Stage
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.leaf_keys import leaf_key

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring


class Rewired(NamedTuple):
    """The result of an update for every sparse leaf, by path.

    Attributes:
      masks: the new masks.
      grown: how many weights were grown.
      fan_ins: as in ``TopologyState``, for leaves where the update counted them anyway.
    """

    masks: dict[str, jax.Array]
    grown: dict[str, jax.Array]
    fan_ins: dict[str, jax.Array]


def rewire(stages: Sequence[Stage], drafts: list[Draft]) -> list[Draft]:
    """Run the stages in order over the drafts of all leaves."""
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
    """Return what an update reads of every sparse leaf, by path.

    Args:
      rewiring: the topology.
      masks: the current masks.
      params: the weights.
      grads: the dense gradient.
      memory: what is remembered of earlier gradients.
    """
    if isinstance(masks, ActiveIndices):
        return _collect_by_blocks(rewiring, masks, params, grads)
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


def _collect_by_blocks(
    rewiring: "Rewiring",
    indices: ActiveIndices,
    params: optax.Params,
    grads: optax.Updates,
) -> dict[str, Leaf]:
    """Return the same for compact parameters, which hold only active weights."""
    shapes = planned_shapes(indices, params)
    plans, layouts = _plans(rewiring, shapes), dict(indices.layouts)
    leaves: dict[str, Leaf] = {}

    def at_leaf(path, index, shape, param, grad):
        plan = plans.get(path) or kept_plan(rewiring, path, shape)
        layout = layouts[path]
        if param.shape == layout.shape:
            leaf = BlockLeaf(plan, index, param, grad, grad, None, layout)
        else:
            leaf = Leaf(plan, layout.mask(index), param, grad, grad, None)
        leaves[path] = leaf
        return shape

    map_masked_with_path(at_leaf, indices.tree, shapes, params, grads)
    return leaves


def first_drafts(
    rewiring: "Rewiring", key: jax.Array, leaves: dict[str, Leaf], demand: Demand
) -> dict[str, Draft]:
    """Score and count the units of each leaf separately.

    Args:
      rewiring: the topology.
      key: typed PRNG key of the step.
      leaves: what the update reads of each leaf, by path.
      demand: what the update must do.

    Returns:
      The drafts before the first stage, by path.
    """
    draws = scores.needs_key(rewiring.drop) or scores.needs_key(rewiring.grow)
    drafts = {}
    for path, leaf in leaves.items():
        keys = jax.random.split(leaf_key(key, path)) if draws else (key, key)
        drafts[path] = leaf.draft(rewiring, keys, demand)
    return drafts


def rewire_leaf_by_leaf(
    rewiring: "Rewiring", key: jax.Array, leaves: dict[str, Leaf], demand: Demand
) -> Rewired:
    """Run the stages over each leaf in its own shape, however it is sharded.

    Args:
      rewiring: the topology.
      key: typed PRNG key of the step.
      leaves: what the update reads of each leaf, by path.
      demand: what the update must do.

    Returns:
      The new masks.
    """
    drafts = first_drafts(rewiring, key, leaves, demand)
    rewired = rewire(rewiring.stages, list(drafts.values()))
    masks = {
        path: leaves[path].new_mask(draft.kept)
        for path, draft in zip(drafts, rewired, strict=True)
    }
    # Counts read these masks; without the barrier XLA may compute the masks twice.
    masks = jax.lax.optimization_barrier(masks)
    grown = {path: leaves[path].grown(mask) for path, mask in masks.items()}
    return Rewired(masks, grown, fan_ins={})


def write_back(
    rewiring: "Rewiring",
    count: jax.Array,
    masks: Any,
    state: TopologyState,
    leaves: dict[str, Leaf],
    rewired: Rewired,
) -> tuple[Any, TopologyState]:
    """Return the new tree of masks and the topology's new state.

    Args:
      rewiring: the topology.
      count: the step.
      masks: the masks before the update, or their indices.
      state: the topology's state before the update.
      leaves: what the update read of every sparse leaf, by path.
      rewired: the result of the update.
    """
    new = rewired.masks

    def fan_in(path, old):
        if path not in new or paths.is_hole(old):
            return old
        counted = rewired.fan_ins.get(path)
        return leaves[path].fan_in(rewiring, new[path]) if counted is None else counted

    if isinstance(masks, ActiveIndices):
        layouts = dict(masks.layouts)
        masks_now: Any = masks.with_tree(
            paths.map_with_paths(
                lambda path, index: (
                    leaves[path].moved(layouts[path], index, new[path])
                    if path in new
                    else index
                ),
                masks.tree,
            )
        )
    else:
        masks_now = paths.map_with_paths(lambda path, old: new.get(path, old), masks)
    return masks_now, TopologyState(
        updated_at=jnp.asarray(count, jnp.int32),
        explored=map_masked(jnp.logical_or, masks_now, state.explored),
        turned=state.turned,
        fan_ins=paths.map_with_paths(fan_in, state.fan_ins),
        grown=paths.map_with_paths(
            lambda path, old: rewired.grown.get(path, old), state.grown
        ),
        memory=state.memory,
    )


def kept_plan(rewiring: "Rewiring", path: str, leaf: Any) -> LeafPlan:
    """Return the axes and units of a leaf whose masks another topology made."""
    axes = resolve_axes(rewiring.dims, path, leaf) or one_neuron(leaf)
    structure = resolve_structure(rewiring.structure, path)
    units = structure.units(path, tuple(leaf.shape), axes)
    return LeafPlan(path, leaf, "", axes, units=units)


def _plans(rewiring: "Rewiring", params: optax.Params) -> dict[str, LeafPlan]:
    if rewiring.is_handed_on:
        return {}
    return {plan.path: plan for plan in rewiring.leaves(params)}

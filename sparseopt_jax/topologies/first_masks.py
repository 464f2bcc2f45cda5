"""The first masks of a run: random, given, or of the largest weights."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparseopt_jax.arrays.sharding_types import named_sharding, on_mesh, sharded
from sparseopt_jax.arrays.units import random_units_mask
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.mask_plans import masks_by_path
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.leaf import Demand, first_draft
from sparseopt_jax.topologies.stages import Draft, Drop
from sparseopt_jax.topologies.updates import rewire
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.leaf_keys import leaf_key

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring


def first_masks(rewiring: "Rewiring", key: jax.Array, params: optax.Params) -> Any:
    """Make the first masks; see ``Rewiring.init``.

    Args:
      rewiring: the topology.
      key: typed PRNG key.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      Bool arrays in the structure of ``params``, ``optax.MaskedNode()`` at dense
      leaves.
    """
    plans = {plan.path: plan for plan in rewiring.first_leaves(params)}
    given = {} if rewiring.masks is None else masks_by_path(rewiring.masks)
    chosen = _chosen(rewiring, key, params, plans, given)

    def at_leaf(path, leaf):
        plan = plans.get(path)
        if plan is None or plan.layer is None:
            return optax.MaskedNode()
        sharding = named_sharding(leaf)
        if path in chosen or path in given:
            mask = chosen[path] if path in chosen else given[path]
            return sharded(jnp.asarray(mask), sharding)
        return random_units_mask(
            on_mesh(leaf_key(key, path), sharding),
            plan.per_cell,
            plan.units,
            least=rewiring.min_fan_in,
            neuron=plan.axes.reduction,  # pyright: ignore
            sharding=sharding,
        )

    masks = paths.map_with_paths(at_leaf, params)
    # To find the parameter-like parts of a state, optax initializes it with a single
    # placeholder, which must take the place of the masks.
    return masks if plans else params


def _chosen(
    rewiring: "Rewiring",
    key: jax.Array,
    params: optax.Params,
    plans: dict[str, LeafPlan],
    given: dict[str, Any],
) -> dict[str, jax.Array]:
    """Return a density schedule's first masks, chosen by weights or from given masks.

    Empty if the first masks are dense, random, or the given ones unchanged.
    """
    plans = {path: plan for path, plan in plans.items() if plan.layer is not None}
    begins_full = all(
        plan.per_cell == plan.units.per_cell  # pyright: ignore
        for plan in plans.values()
    )
    leaves = paths.leaves_by_path(params)
    density = rewiring.density
    if density is None or begins_full:
        return {}
    has_weights = density.by_weights and all(
        isinstance(leaves[path], jax.Array | np.ndarray) for path in plans
    )
    if not (given or has_weights):
        return {}
    drafts, masks = [], {}
    for path, plan in plans.items():
        leaf = leaves[path]
        if path in given:
            masks[path] = sharded(jnp.asarray(given[path]), named_sharding(leaf))
        else:
            masks[path] = (leaf == leaf) | True  # sharded like the leaf
        weights = jnp.asarray(leaf if has_weights else masks[path], jnp.float32)
        score = _score(rewiring) if has_weights else scores.random
        drafts.append(_draft(rewiring, plan, masks[path], weights, score, key))
    pruning = (*(stage for stage in rewiring.stages if stage.prunes), Drop())
    return {
        path: plans[path].units.spread(draft.kept, masks[path])  # pyright: ignore
        for path, draft in zip(masks, rewire(pruning, drafts), strict=True)
    }


def _score(rewiring: "Rewiring") -> scores.Score:
    """Return the score of the weights to keep before there is a gradient."""
    needs_gradient = scores.needs_gradient(rewiring.drop)
    return scores.magnitude if needs_gradient else rewiring.drop


def _draft(
    rewiring: "Rewiring",
    plan: LeafPlan,
    mask: jax.Array,
    weights: jax.Array,
    score: scores.Score,
    key: jax.Array,
) -> Draft:
    """Return the draft of a leaf that will be pruned to its plan."""
    units: Any = plan.units
    drop = scores.of_units(score, units, leaf_key(key, plan.path), weights, weights)
    return first_draft(
        rewiring,
        plan,
        mask,
        weights,
        drop=drop,
        grow=drop,
        demand=Demand(
            fraction=jnp.float32(0.0),
            targets={plan.path: plan.per_cell},
            adapts=True,
            rises={plan.path: jnp.bool_(False)},
        ),
        measured={},
    )

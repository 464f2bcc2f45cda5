"""Global pruning: one threshold for all layers."""

import dataclasses

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.selection import top_k_masks
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.topologies.stages import Draft, NetworkStage, Prune, Stage


@dataclasses.dataclass(frozen=True)
class PruneGlobally(NetworkStage):
    """Prune the network to the sum of all targets; units of all layers compete.

    Every layer keeps its best unit, so that none is cut off. If the network has fewer
    units than the targets sum to, the best inactive units of all layers decide how many
    each layer grows.
    """

    keeps_counts = False
    prunes = True

    def check_leaf(self, plan: LeafPlan) -> None:
        """Raise ValueError if a structure fixes numbers within the layer."""
        if plan.units is not None and not plan.units.is_layer_wide:
            raise ValueError(
                f"global pruning cannot keep {plan.structure}, the structure of "
                f"{plan.path!r}, which fixes numbers of active weights within a layer: "
                "give this leaf another structure with a mapping, or exclude it with "
                "where"
            )

    def over(self, drafts: list[Draft]) -> list[Draft]:
        """Return pruned drafts, with the number of units that each layer grows to."""
        if all(draft.target is None for draft in drafts):
            return drafts
        scores, candidates, grows, weights = [], [], [], []
        # Counted in weights, because layers may have units of different sizes.
        budget = present = forced = jnp.int32(0)
        for draft in drafts:
            units, active = draft.units, draft.active
            best = units.select(draft.drop, 1, where=active, within="layer")
            stays = draft.held | (best & active)
            scores.append(jnp.where(stays, jnp.inf, draft.drop / units.size))
            grows.append(draft.grow / units.size)
            candidates.append(active)
            weights.append(units.size)
            target = draft.size if draft.target is None else draft.target
            target = jnp.asarray(target + jnp.zeros_like(draft.size))
            forced += _weights(draft, units.count(stays, "layer"))
            present += _weights(draft, draft.size)
            budget += _weights(draft, target)
        rises = jnp.any(jnp.asarray(drafts[0].rises))  # the same for all layers
        budget = jnp.where(rises, budget, jnp.minimum(budget, present))
        k = jnp.maximum(jnp.minimum(budget, present), forced)
        kept = top_k_masks(scores, k, where=candidates, sizes=weights)
        counts = [
            draft.units.count(units) for draft, units in zip(drafts, kept, strict=True)
        ]

        def grown(grows, candidates):
            inactive = [
                draft.units.only(~units)
                for draft, units in zip(drafts, candidates, strict=True)
            ]
            chosen = top_k_masks(grows, budget - present, where=inactive, sizes=weights)
            return [
                draft.units.count(units)
                for draft, units in zip(drafts, chosen, strict=True)
            ]

        def none(grows, candidates):
            del grows, candidates
            return [jnp.zeros_like(count) for count in counts]

        more = jax.lax.cond(budget > present, grown, none, grows, candidates)
        return [
            draft._replace(kept=units, most=count, size=count + extra)
            for draft, units, count, extra in zip(
                drafts, kept, counts, more, strict=True
            )
        ]


def prune_within(scope: str) -> Stage:
    """Return the stage that prunes each layer separately, or all layers together.

    Args:
      scope: ``"layer"`` or ``"global"``.

    Raises:
      ValueError: for any other scope.
    """
    if not isinstance(scope, str) or scope not in ("layer", "global"):
        raise ValueError(f"scope must be 'layer' or 'global', got {scope!r}")
    return Prune() if scope == "layer" else PruneGlobally()


def _weights(draft: Draft, units: jax.Array) -> jax.Array:
    """Convert numbers of units per layer to the number of weights in all layers."""
    counts = draft.units.layer_vector(units)
    return draft.units.size * jnp.sum(counts, dtype=jnp.int32)

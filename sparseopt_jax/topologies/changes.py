"""One change of the masks: prune to a number, drop, ablate, redistribute, grow.

All of it is counted in units, and selected by ``top_k_mask``: no array is sorted.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.selection import top_k_mask, top_k_masks
from sparseopt_jax.arrays.units import Units
from sparseopt_jax.topologies.redistribution import share


class Leaf(NamedTuple):
    """One sparse leaf and what decides about it.

    Attributes:
      mask: its present mask.
      units: how its weights are switched.
      active: active units.
      held: active units that must not be dropped.
      drop: score of each unit to be kept; infinite where it is held.
      grow: score of each unit to be grown.
      memory: what is remembered of the weights' gradients, or None.
      budget: the active units that a layer was planned with, or None.
    """

    mask: jax.Array
    units: Units
    active: jax.Array
    held: jax.Array
    drop: jax.Array
    grow: jax.Array
    memory: jax.Array | None
    budget: int | None

    @classmethod
    def of(
        cls,
        mask: jax.Array,
        units: Units,
        *,
        finite: jax.Array,
        drop: jax.Array,
        grow: jax.Array,
        min_fan_in: int,
        neuron: tuple[int, ...],
        memory: jax.Array | None,
        budget: int | None,
    ) -> "Leaf":
        """From arrays like the leaf, and scores of its units.

        Args:
          mask: the present mask.
          units: how the weights are switched.
          finite: weights that are finite: no update takes others to zero, so they
            stay active.
          drop: score of each unit to be kept.
          grow: score of each unit to be grown.
          min_fan_in: the least number of weights that a neuron keeps.
          neuron: the axes of one neuron's weights.
          memory: what is remembered of the gradients, or None.
          budget: the active units that a layer was planned with, or None.

        Returns:
          The same in units.
        """
        active = units.any(mask)
        held = active & ~units.all(finite)
        if min_fan_in:
            # Single weights here, so units are weights. An inactive one is chosen only
            # where a neuron has fewer: it does not count.
            held |= active & top_k_mask(drop, min_fan_in, where=mask, axis=neuron)
        # Sums may be infinite as well: below what is held.
        drop = jnp.minimum(drop, jnp.finfo(jnp.float32).max)
        drop = jnp.where(held, jnp.inf, drop)
        return cls(mask, units, active, held, drop, grow, memory, budget)


def change(
    leaves: dict[str, Leaf],
    fraction: jax.Array,
    targets: dict[str, Any] | None,
    *,
    adapts: Any,
    rises: Any,
    scope: str,
    ablation: float | None,
    redistributes: bool,
    regrows: bool,
) -> dict[str, jax.Array]:
    """The new masks.

    Args:
      leaves: the sparse leaves by path.
      fraction: float32 scalar, the part of the active units that is replaced.
      targets: active units of each cell after the change, by path; where there is none,
        and without any, they stay as many as they are.
      adapts: whether the targets hold, a bool or bool scalar: False is without any.
      rises: whether what has fewer active units than its target is filled up to it, a
        bool or bool scalar; else the target is what it has.
      scope: ``"global"`` prunes all leaves together to the sum of their targets.
      ablation: as in ``Rewiring``.
      redistributes: as in ``Rewiring``.
      regrows: as in ``Rewiring``.

    Returns:
      Bool arrays like the leaves, by path.
    """
    targets = targets or {}
    if scope == "global" and targets:
        leaves, targets = _shared_globally(leaves, targets, rises)

    kept, sizes = {}, {}
    for path, leaf in leaves.items():
        present = leaf.units.count(leaf.active)
        target = targets.get(path)
        if target is None:
            sizes[path] = present
        else:
            target = jnp.where(rises, target, jnp.minimum(target, present))
            sizes[path] = jnp.where(adapts, target, present)
        kept[path] = _kept(leaf, sizes[path], fraction, adapts=target is not None)
        if ablation is not None:
            kept[path], sizes[path] = _ablated(leaf, kept[path], sizes[path], ablation)
    if redistributes:
        sizes = _redistributed(leaves, kept, sizes)
    new = {}
    for path, leaf in leaves.items():
        missing = sizes[path] - leaf.units.count(kept[path])
        scores = leaf.grow if regrows else jnp.where(leaf.active, -jnp.inf, leaf.grow)
        grown = leaf.units.select(scores, jnp.maximum(missing, 0), where=~kept[path])
        new[path] = leaf.units.spread(kept[path] | grown, leaf.mask)
    return new


def _kept(
    leaf: Leaf, target: jax.Array, fraction: jax.Array, *, adapts: bool
) -> jax.Array:
    """The units that a drop leaves: of every layer, the highest scores."""
    units, active = leaf.units, leaf.active
    if adapts:
        most = jnp.minimum(units.count(active), target)
        if not units.is_layer_wide:
            most = jnp.maximum(most, units.count(leaf.held))
            active = units.select(leaf.drop, most, where=active)
        total = jnp.sum(most, units.layer, keepdims=True)
    else:
        total = units.count(active, "layer")
    dropped = jnp.floor(fraction * total.astype(jnp.float32)).astype(jnp.int32)
    left = jnp.maximum(total - dropped, units.count(leaf.held, "layer"))
    return units.select(leaf.drop, left, where=active, within="layer")


def _shared_globally(
    leaves: dict[str, Leaf], targets: dict[str, Any], rises: Any
) -> tuple[dict[str, Leaf], dict[str, Any]]:
    """The leaves pruned to the sum of the targets, and what each has to grow to.

    The units of all layers compete; each layer keeps its highest, so that none is cut
    off.
    """
    scores, grows, candidates, counts, weights = [], [], [], [], []
    # In weights: layers may have units of different sizes.
    budget = present = forced = jnp.int32(0)
    for path, leaf in leaves.items():
        units = leaf.units
        best = units.select(leaf.drop, 1, where=leaf.active, within="layer")
        own = leaf.held | (best & leaf.active)
        scores.append(jnp.where(own, jnp.inf, leaf.drop / units.size))
        grows.append(leaf.grow / units.size)
        candidates.append(leaf.active)
        has = units.count(leaf.active)
        counts.append(has)
        weights.append(units.size)
        target = targets.get(path)
        target = has if target is None else target + jnp.zeros_like(has)
        forced += units.size * jnp.sum(own, dtype=jnp.int32)
        present += units.size * jnp.sum(has)
        budget += units.size * jnp.sum(target)
    budget = jnp.where(rises, budget, jnp.minimum(budget, present))
    k = jnp.maximum(jnp.minimum(budget, present), forced)
    kept = top_k_masks(scores, k, where=candidates, sizes=weights)

    def grown(grows, candidates):
        inactive = [~own for own in candidates]
        chosen = top_k_masks(grows, budget - present, where=inactive, sizes=weights)
        return [
            leaf.units.count(own)
            for leaf, own in zip(leaves.values(), chosen, strict=True)
        ]

    more = jax.lax.cond(
        *(budget > present, grown),
        lambda *_: [jnp.zeros_like(count) for count in counts],
        *(grows, candidates),
    )
    pruned, sizes = {}, {}
    for (path, leaf), own, extra in zip(leaves.items(), kept, more, strict=True):
        pruned[path] = leaf._replace(active=own)
        sizes[path] = leaf.units.count(own) + extra
    return pruned, sizes


def _ablated(
    leaf: Leaf,
    kept: jax.Array,
    target: jax.Array,
    ablation: float,
) -> tuple[jax.Array, jax.Array]:
    """What is kept without the neurons that have lost, and every neuron's new fan-in.

    A weight is salient if it is kept, or would be grown if the layer grew where its
    gradients are largest. The layer's budget is divided evenly between the neurons that
    stay, rounded down.
    """
    units = leaf.units
    # The planned one: what rounding leaves out now may fit later.
    budget = jnp.sum(target, units.layer, keepdims=True)
    if leaf.budget is not None:
        budget = jnp.full_like(budget, leaf.budget)
    missing = jnp.maximum(budget - units.count(kept, "layer"), 0)
    fan_in = units.count(leaf.active)
    # Those ablated before cannot grow: their gradients would take from the others.
    candidates = ~kept & (fan_in > 0)
    salient = kept | units.select(leaf.grow, missing, where=candidates, within="layer")
    # Not what fan-ins are: a phase may begin with more of all.
    usual = jnp.max(target, units.layer, keepdims=True)
    needed = ablation * usual.astype(jnp.float32)
    stays = units.count(salient).astype(jnp.float32) >= needed
    stays |= units.count(leaf.held) > 0
    stays &= fan_in > 0
    neurons = jnp.sum(stays, units.layer, keepdims=True, dtype=jnp.int32)
    share = jnp.minimum(budget // jnp.maximum(neurons, 1), units.per_cell)
    target = jnp.where(stays, share, 0)
    most = jnp.maximum(jnp.minimum(units.count(kept), target), units.count(leaf.held))
    return units.select(leaf.drop, most, where=kept), target


def _redistributed(
    leaves: dict[str, Leaf], kept: dict[str, jax.Array], sizes: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The layers' numbers after sharing out what all of them have dropped."""
    lost, room, activity, shapes = [], [], [], []
    for path, leaf in leaves.items():
        units = leaf.units
        assert leaf.memory is not None, "redistribution needs a memory"
        counts = units.count(kept[path])
        size = jnp.sum(jnp.where(leaf.active, jnp.abs(leaf.memory), 0), units.layer)
        present = jnp.ravel(units.count(leaf.active)).astype(jnp.float32)
        activity.append(jnp.ravel(size) / jnp.maximum(present, 1))
        lost.append(jnp.sum(sizes[path] - counts))
        room.append(jnp.ravel(units.per_layer - counts))
        shapes.append(counts)
    shares = share(
        sum(lost, jnp.int32(0)), jnp.concatenate(activity), jnp.concatenate(room)
    )
    new, start = {}, 0
    for path, counts in zip(leaves, shapes, strict=True):
        own = shares[start : start + counts.size]
        new[path] = counts + jnp.reshape(own, counts.shape)
        start += counts.size
    return new

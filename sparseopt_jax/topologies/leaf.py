"""What an update reads of one leaf: the scores and numbers of its units."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import resolve_axes
from sparseopt_jax.masks.layouts import Layout
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.stages import (
    Draft,
    Drop,
    Grow,
    Prune,
    Stage,
    held_above,
    held_units,
)

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring


# Two keys: for the drop score and for the grow score.
Keys = jax.Array | tuple[jax.Array, jax.Array]


class Demand(NamedTuple):
    """What an update must do to all leaves.

    Attributes:
      fraction: float32 scalar, the fraction of the active units to replace.
      targets: active units of each cell after the update, by path; a leaf without a
        target keeps its number.
      adapts: as in ``Draft``.
      rises: as in ``Draft``, by path; True for a leaf without an entry.
    """

    fraction: jax.Array
    targets: dict[str, Any]
    adapts: jax.typing.ArrayLike
    rises: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What an update reads of one sparse leaf.

    Attributes:
      plan: the leaf's plan.
      mask: its current mask.
      param: its weights.
      grad: their dense gradient.
      seen: the gradient as the grow score sees it.
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
        """The units in which its weights are switched."""
        assert self.plan.units is not None
        return self.plan.units

    @property
    def has_neurons_as_cells(self) -> bool:
        """Whether each cell is the incoming weights of a neuron, as single weights."""
        axes, units = self.plan.axes, self.units
        is_neuron = axes is not None and tuple(axes.reduction) == units.cell
        return is_neuron and units.size == 1 and not units.cut

    def measure(self, stages: Sequence[Stage]) -> dict[str, jax.Array]:
        """Measure what the stages read besides scores."""
        measured: dict[str, jax.Array] = {}
        for stage in stages:
            active = self.units.any(self.mask)
            measured |= stage.measure(self.units, active, self.memory)
        return measured

    def draft(self, rewiring: "Rewiring", keys: Keys, demand: Demand) -> Draft:
        """Score and count the units; ``keys`` are for the drop and the grow score."""
        drop, grow = (
            scores.of_units(score, self.units, key, self.param, grad)
            for score, key, grad in zip(
                (rewiring.drop, rewiring.grow),
                keys,
                (self.grad, self.seen),
                strict=True,
            )
        )
        return first_draft(
            rewiring,
            self.plan,
            self.mask,
            self.param,
            drop=drop,
            grow=grow,
            demand=demand,
            measured=self.measure(rewiring.stages),
        )

    def new_mask(self, kept: jax.Array) -> jax.Array:
        """Return the new mask, from the units that are active after an update."""
        return self.units.spread(kept, self.mask)

    def grown(self, new: jax.Array) -> jax.Array:
        """Return how many weights a new mask has that the current one does not."""
        return count_true(new & ~self.mask)

    def moved(self, layout: Layout, index: jax.Array, new: jax.Array) -> jax.Array:
        """Return the index of a new mask, in which units that stay keep their slots."""
        return layout.moved(index, new)

    def fan_in(self, rewiring: "Rewiring", new: jax.Array) -> Any:
        """Return the fan-ins under a new mask; see ``Rewiring.fan_in``."""
        return rewiring.fan_in(self.plan.path, new)


@dataclasses.dataclass(frozen=True)
class BlockLeaf(Leaf):
    """A leaf of which only the active blocks are available.

    New masks are bool arrays of units. Scores are summed in the same order as those of
    a dense array, so that masks are identical; that array exists only for the sum.

    Attributes:
      plan: as in ``Leaf``.
      mask: int32 array, the index of its active blocks.
      param: their weights, of shape ``layout.shape``.
      grad: the dense gradient, or only that of active weights if this is enough.
      seen: the same.
      memory: None.
      layout: how the active blocks are arranged.
    """

    layout: Layout

    def measure(self, stages: Sequence[Stage]) -> dict[str, jax.Array]:
        """Return nothing: stages that ``updates_blocks`` admits read only scores."""
        del stages
        return {}

    def draft(self, rewiring: "Rewiring", keys: Keys, demand: Demand) -> Draft:
        """Score and count the units; see ``Leaf.draft``."""
        blocks = self._blocks(self.param)
        held = self._in_units(~jnp.all(jnp.isfinite(blocks), self._within))
        like = self._in_units(jnp.sum(blocks, self._within))
        if scores.is_drawn(rewiring.drop):
            drop = rewiring.drop(keys[0], like, like)
        else:
            drop = rewiring.drop(keys[0], self.param, self._active_gradient(rewiring))
            # The order in which a compiler sums an array depends on its shape.
            zeros = jnp.zeros(self.units.shape, drop.dtype)
            drop = self.units.sum(self.layout.put(zeros, self.mask, drop))
        if scores.is_drawn(rewiring.grow):
            grow = rewiring.grow(keys[1], like, like)
        else:
            grow = self.units.sum(rewiring.grow(keys[1], self.seen, self.seen))
        scored = Scored(
            active=self._active, held=held, drop=held_above(held, drop), grow=grow
        )
        return _draft_of(self.plan, scored, demand, {})

    def new_mask(self, kept: jax.Array) -> jax.Array:
        """Return the units that are active after an update, unchanged."""
        return kept

    def grown(self, new: jax.Array) -> jax.Array:
        """Return how many weights are grown; see ``Leaf.grown``."""
        return count_true(new & ~self._active) * self.units.size

    def moved(self, layout: Layout, index: jax.Array, new: jax.Array) -> jax.Array:
        """Return the index of new units; see ``Leaf.moved``."""
        return layout.moved_units(index, new)

    def fan_in(self, rewiring: "Rewiring", new: jax.Array) -> Any:
        """Return the fan-ins under a new mask; see ``Leaf.fan_in``."""
        axes = resolve_axes(rewiring.dims, self.plan.path, self.plan.leaf)
        assert axes is not None  # it has fan-ins
        units = self.units
        summed = [a for axis in axes.reduction for a in units.places[axis]]
        each = math.prod(units.split[a] for a in summed if a in units.inner)
        split = [1 if a in summed else n for a, n in enumerate(units.split)]
        counts = count_true(new, tuple(summed), keepdims=True) * each
        shape = [
            1 if axis in axes.reduction else n for axis, n in enumerate(units.shape)
        ]
        return jnp.reshape(jnp.broadcast_to(counts, split), shape)

    def _active_gradient(self, rewiring: "Rewiring") -> jax.Array:
        """Return the gradient of active weights; any array if ``drop`` needs none."""
        if not scores.needs_gradient(rewiring.drop):
            return self.param
        is_dense = self.grad.shape != self.param.shape
        return self.layout.take(self.grad, self.mask) if is_dense else self.grad

    @property
    def _active(self) -> jax.Array:
        return self._in_units(jnp.ones(self.mask.shape, jnp.bool_))

    @property
    def _within(self) -> tuple[int, ...]:
        """The axes within a block, in an array of active blocks."""
        return tuple(range(self.mask.ndim, self.mask.ndim + len(self.units.inner)))

    def _blocks(self, active: jax.Array) -> jax.Array:
        extents = [self.units.split[a] for a in self.units.inner]
        return jnp.reshape(active, (*self.mask.shape, *extents))

    def _in_units(self, slots: jax.Array) -> jax.Array:
        return self.layout.in_units(self.mask, slots)


def updates_blocks(rewiring: "Rewiring") -> bool:
    """Return whether a ``BlockLeaf`` holds all that an update reads of its leaf."""
    drop, grow = rewiring.drop, rewiring.grow
    sees_gradients = getattr(type(grow), "seen", None) is scores.DeclaredScore.seen
    return (
        all(type(stage) in (Prune, Drop, Grow) for stage in rewiring.stages)
        and rewiring.keeps_counts
        and not (rewiring.memory or rewiring.min_fan_in or rewiring.track_explored)
        and (scores.is_drawn(drop) or scores.is_elementwise(drop))
        and (
            scores.is_drawn(grow)
            or (scores.is_elementwise(grow) and not scores.needs_weight(grow))
        )
        and sees_gradients
    )


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
    """Return the draft of one leaf before the first stage.

    Args:
      rewiring: the topology.
      plan: the leaf's plan.
      mask: its current mask.
      param: its weights.
      drop: scores of its units, of which the lowest are dropped.
      grow: scores of its units, of which the highest are grown.
      demand: what the update must do.
      measured: what the stages measured.
    """
    units: Any = plan.units
    held, drop = held_units(
        mask,
        jnp.isfinite(param),
        units,
        drop,
        min_fan_in=rewiring.min_fan_in,
        neuron=plan.axes.reduction,  # pyright: ignore
    )
    scored = Scored(active=units.any(mask), held=held, drop=drop, grow=grow)
    return _draft_of(plan, scored, demand, measured)


class Scored(NamedTuple):
    """Units and their scores, as in ``Draft``."""

    active: jax.Array
    held: jax.Array
    drop: jax.Array
    grow: jax.Array


def _draft_of(
    plan: LeafPlan, scored: Scored, demand: Demand, measured: dict[str, jax.Array]
) -> Draft:
    units: Any = plan.units
    present = units.count(scored.active)
    return Draft(
        units=units,
        **scored._asdict(),
        fraction=demand.fraction,
        target=demand.targets.get(plan.path),
        adapts=demand.adapts,
        rises=demand.rises.get(plan.path, True),
        planned=None if plan.per_cell is None else plan.per_cell * units.cells,
        measured=measured,
        kept=scored.active,
        most=present,
        size=present,
    )

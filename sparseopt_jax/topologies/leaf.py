"""What decides about the units of one leaf in an update: its scores and numbers."""

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


# To drop and to grow by.
Keys = jax.Array | tuple[jax.Array, jax.Array]


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


@dataclasses.dataclass(frozen=True)
class Leaf:
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

    @property
    def has_neurons_as_cells(self) -> bool:
        """Whether a cell is the incoming weights of one neuron, each by itself."""
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
        """Score and count the units, by two keys, to drop and to grow by."""
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
        """From the units that are active after an update to the new mask."""
        return self.units.spread(kept, self.mask)

    def grown(self, new: jax.Array) -> jax.Array:
        """Return how many weights a new mask has that the present one has not."""
        return count_true(new & ~self.mask)

    def moved(self, layout: Layout, index: jax.Array, new: jax.Array) -> jax.Array:
        """Return where the active units of a new mask stand, which kept their slots."""
        return layout.moved(index, new)

    def fan_in(self, rewiring: "Rewiring", new: jax.Array) -> Any:
        """Return the fan-ins of the neurons by a new mask: as ``Rewiring.fan_in``."""
        return rewiring.fan_in(self.plan.path, new)


@dataclasses.dataclass(frozen=True)
class BlockLeaf(Leaf):
    """The same of a leaf whose active blocks alone are at hand.

    New masks are bool arrays of units. Scores are added up as those of a dense array
    are, in the same order, so that masks are the same: that array lives for the sum.

    Attributes:
      plan: as in ``Leaf``.
      mask: int32 array, the index of its active blocks.
      param: their weights, as ``layout.shape`` has them.
      grad: the dense gradient; where that of active weights is enough, these alone.
      seen: the same.
      memory: None.
      layout: how the active blocks stand.
    """

    layout: Layout

    def measure(self, stages: Sequence[Stage]) -> dict[str, jax.Array]:
        """As ``Leaf.measure``: the stages of ``updates_blocks`` read nothing."""
        del stages
        return {}

    def draft(self, rewiring: "Rewiring", keys: Keys, demand: Demand) -> Draft:
        """As ``Leaf.draft``."""
        blocks = self._blocks(self.param)
        held = self._in_units(~jnp.all(jnp.isfinite(blocks), self._within))
        like = self._in_units(jnp.sum(blocks, self._within))
        if scores.is_drawn(rewiring.drop):
            drop = rewiring.drop(keys[0], like, like)
        else:
            drop = rewiring.drop(keys[0], self.param, self._active_gradient(rewiring))
            # Compilers add up arrays of other shapes in other orders.
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
        """From the units that are active after an update to these units."""
        return kept

    def grown(self, new: jax.Array) -> jax.Array:
        """As ``Leaf.grown``."""
        return count_true(new & ~self._active) * self.units.size

    def moved(self, layout: Layout, index: jax.Array, new: jax.Array) -> jax.Array:
        """As ``Leaf.moved``."""
        return layout.moved_units(index, new)

    def fan_in(self, rewiring: "Rewiring", new: jax.Array) -> Any:
        """As ``Leaf.fan_in``."""
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
        """The gradient of active weights; anything where the drop score reads none."""
        if not scores.needs_gradient(rewiring.drop):
            return self.param
        is_dense = self.grad.shape != self.param.shape
        return self.layout.take(self.grad, self.mask) if is_dense else self.grad

    @property
    def _active(self) -> jax.Array:
        return self._in_units(jnp.ones(self.mask.shape, jnp.bool_))

    @property
    def _within(self) -> tuple[int, ...]:
        """The axes of blocks that are within one."""
        return tuple(range(self.mask.ndim, self.mask.ndim + len(self.units.inner)))

    def _blocks(self, active: jax.Array) -> jax.Array:
        extents = [self.units.split[a] for a in self.units.inner]
        return jnp.reshape(active, (*self.mask.shape, *extents))

    def _in_units(self, slots: jax.Array) -> jax.Array:
        return self.layout.in_units(self.mask, slots)


def updates_blocks(rewiring: "Rewiring") -> bool:
    """Whether all that an update reads of a leaf of blocks is in a ``BlockLeaf``."""
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
    """Units and their scores, as ``Draft`` has them."""

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
        rises=demand.rises,
        planned=None if plan.per_cell is None else plan.per_cell * units.cells,
        measured=measured,
        kept=scored.active,
        most=present,
        size=present,
    )

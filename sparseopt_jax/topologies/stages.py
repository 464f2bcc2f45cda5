"""The stages of an update of the masks: prune to a number, drop, grow.

A stage is a pure function from one draft of the new masks to the next. It counts and
selects units; no array is sorted. It uses only elementwise operations and methods of
``draft.units``, so that the same code works for a single leaf, sharded or not, and for
many layers side by side as rows of one array.
"""

import abc
import dataclasses
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.row_units import RowUnits
from sparseopt_jax.arrays.selection import top_k_mask
from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers.leaf_plan import LeafPlan

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring


class Draft(NamedTuple):
    """The masks of one leaf, or of several side by side, during an update.

    Arrays have an entry per unit. Numbers are int32, one per cell unless stated
    otherwise, and broadcast against the arrays.

    Attributes:
      units: the units in which weights are switched.
      active: bool, the units that are active before the update.
      held: bool, active units that must not be dropped.
      drop: float32 scores; the lowest are dropped; infinite where held.
      grow: float32 scores; the highest are grown.
      fraction: float32 scalar, the fraction of a layer's active units to replace.
      target: active units after the update; None if their number stays.
      adapts: whether the target applies, a bool or bool scalar; if False, numbers stay.
      rises: whether cells with fewer active units than their target are filled up to
        it, a bool or bools per layer; if False, they keep their number.
      planned: active units planned for each layer; None for as many as it has.
      measured: what the stages measured by ``Stage.measure``, by name.
      kept: bool, the units that stay according to the stages so far; finally the new
        mask.
      most: units of each cell that may stay.
      size: units of each cell that will be active.
    """

    units: Units | RowUnits
    active: jax.Array
    held: jax.Array
    drop: jax.Array
    grow: jax.Array
    fraction: jax.Array
    target: jax.typing.ArrayLike | None
    adapts: jax.typing.ArrayLike
    rises: jax.typing.ArrayLike
    planned: jax.typing.ArrayLike | None
    measured: dict[str, jax.Array]
    kept: jax.Array
    most: jax.Array
    size: jax.Array


def held_units(
    mask: jax.Array,
    finite: jax.Array,
    units: Units | RowUnits,
    drop: jax.Array,
    *,
    min_fan_in: int,
    neuron: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Mark the units that no stage may drop, and raise their scores above all others.

    Args:
      mask: the current mask.
      finite: True for finite weights; the others stay active, because no update can
        take them to zero.
      units: the units in which weights are switched.
      drop: the score of each unit, of which the lowest are dropped.
      min_fan_in: least number of active weights per neuron.
      neuron: the axes of a neuron's weights.

    Returns:
      Bool array of units, and the new scores.
    """
    active = units.any(mask)
    held = active & ~units.all(finite)
    if min_fan_in:
        # Units are single weights here. Inactive ones are selected only if a neuron has
        # fewer active ones, and must not be marked.
        held |= active & top_k_mask(drop, min_fan_in, where=mask, axis=neuron)
    return held, held_above(held, drop)


def held_above(held: jax.Array, drop: jax.Array) -> jax.Array:
    """Raise the scores of units that must not be dropped above all others."""
    # Sums may be infinite too, and must rank below held units.
    drop = jnp.minimum(drop, jnp.finfo(jnp.float32).max)
    return jnp.where(held, jnp.inf, drop)


class Stage(abc.ABC):
    """Base class of all stages; subclass ``LayerStage`` or ``NetworkStage``.

    Stages are values: make a subclass a frozen dataclass, so that two with the same
    settings are equal. A stage declares what it needs and does.

    Attributes:
      keeps_counts: whether layers have as many active units after it as before, or as
        many as their targets.
      crosses_layers: whether layers compete for units.
      prunes: whether it prunes layers to their targets; it then also makes the first
        masks of a density schedule that starts below 1.
    """

    keeps_counts: ClassVar[bool] = True
    crosses_layers: ClassVar[bool] = False
    prunes: ClassVar[bool] = False

    def check(self, rewiring: "Rewiring") -> None:
        """Raise ValueError if the stage does not fit the topology's other parts."""
        del rewiring

    def check_leaf(self, plan: LeafPlan) -> None:
        """Raise ValueError if the stage does not fit a sparse leaf."""
        del plan

    def measure(
        self, units: Units, active: jax.Array, memory: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Measure what the stage reads besides scores, on one leaf.

        Args:
          units: the units in which weights are switched.
          active: bool array of units.
          memory: what is remembered of the weights' gradients, or None.

        Returns:
          By name, one number per layer, with the layer's axes of size 1.
        """
        del units, active, memory
        return {}

    @abc.abstractmethod
    def over(self, drafts: list[Draft]) -> list[Draft]:
        """Return the next draft of every leaf."""


class LayerStage(Stage):
    """A stage that handles one layer at a time."""

    @abc.abstractmethod
    def __call__(self, draft: Draft) -> Draft:
        """Return the next draft."""

    def over(self, drafts: list[Draft]) -> list[Draft]:
        return [self(draft) for draft in drafts]


class NetworkStage(Stage):
    """A stage that compares layers: ``over`` receives all drafts at once."""

    crosses_layers = True


@dataclasses.dataclass(frozen=True)
class Prune(LayerStage):
    """Prune every cell to its target; a later stage grows cells below their target.

    Does nothing if numbers stay the same.
    """

    prunes = True

    def __call__(self, draft: Draft) -> Draft:
        """Return the draft without the units beyond the target."""
        if draft.target is None:
            return draft
        units, present = draft.units, draft.size
        size = jnp.where(draft.rises, draft.target, jnp.minimum(draft.target, present))
        size = jnp.where(draft.adapts, size, present)
        most, kept = jnp.minimum(present, size), draft.kept
        if not units.is_layer_wide:
            most = jnp.maximum(most, units.count(draft.held))
            kept = units.select(draft.drop, most, where=kept)
        # If a layer is one cell, ``Drop`` also prunes, in the same selection.
        return draft._replace(kept=kept, most=most, size=size)


@dataclasses.dataclass(frozen=True)
class Drop(LayerStage):
    """Drop a fraction of every layer's active units, lowest scores first."""

    def __call__(self, draft: Draft) -> Draft:
        """Return the draft without the dropped units."""
        units = draft.units
        total = units.total(draft.most)
        dropped = jnp.floor(draft.fraction * total.astype(jnp.float32))
        left = total - dropped.astype(jnp.int32)
        left = jnp.maximum(left, units.count(draft.held, "layer"))
        kept = units.select(draft.drop, left, where=draft.kept, within="layer")
        return draft._replace(kept=kept)


@dataclasses.dataclass(frozen=True)
class Grow(LayerStage):
    """Grow every cell to its size, highest scores first.

    Attributes:
      again: whether units that the same update dropped may be grown again; if False,
        only when no others are left.
    """

    again: bool = True

    def __call__(self, draft: Draft) -> Draft:
        """Return the new masks."""
        units, scores = draft.units, draft.grow
        missing = draft.size - units.count(draft.kept)
        if not self.again:
            scores = jnp.where(draft.active, -jnp.inf, scores)
        grown = units.select(scores, jnp.maximum(missing, 0), where=~draft.kept)
        return draft._replace(kept=draft.kept | grown)

"""The stages of an update of the masks: prune to a number, drop, grow.

A stage is a pure function from one draft of the new masks to the next. It counts and
selects units; no array is sorted. In it stand only elementwise operations and methods
of ``draft.units``, so that the same code serves a single leaf, sharded or not, and
many layers that lie side by side as rows of one array.
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
    """The masks of one leaf, or of several side by side, while an update is made.

    Arrays are of units. Numbers are int32, one for each cell unless said otherwise, and
    broadcast against the arrays.

    Attributes:
      units: how the weights are switched.
      active: bool, the units that are active before the update.
      held: bool, active units that must not be dropped.
      drop: float32 scores, the lowest of which are dropped; infinite where held.
      grow: float32 scores, the highest of which are grown.
      fraction: float32 scalar, the part of a layer's active units that is replaced.
      target: active units after the update; None where their number stays.
      adapts: whether the target holds, a bool or bool scalar; False is without any.
      rises: whether what has fewer active units than its target is filled up to it, a
        bool or bool scalar; else the target is what it has.
      planned: active units that each layer was planned with; None for what it has.
      measured: what stages asked for by ``Stage.measure``, by name.
      kept: bool, the units that stay, as far as stages have decided; in the end the
        new mask.
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
    """Mark the units that no stage may drop, and set their scores above all others.

    Args:
      mask: the present mask.
      finite: weights that are finite: no update takes others to zero, so they stay
        active.
      units: how the weights are switched.
      drop: score of each unit to be kept.
      min_fan_in: the least number of weights that a neuron keeps.
      neuron: the axes of one neuron's weights.

    Returns:
      Bool array of units, and the scores.
    """
    active = units.any(mask)
    held = active & ~units.all(finite)
    if min_fan_in:
        # Single weights here, so units are weights. An inactive one is chosen only
        # where a neuron has fewer: it does not count.
        held |= active & top_k_mask(drop, min_fan_in, where=mask, axis=neuron)
    return held, held_above(held, drop)


def held_above(held: jax.Array, drop: jax.Array) -> jax.Array:
    """Set the scores of units that must not be dropped above all others."""
    # Sums may be infinite as well: below what is held.
    drop = jnp.minimum(drop, jnp.finfo(jnp.float32).max)
    return jnp.where(held, jnp.inf, drop)


class Stage(abc.ABC):
    """What all stages have in common; subclass ``LayerStage`` or ``NetworkStage``.

    Stages are values: make a subclass a frozen dataclass, so that those with the same
    settings are equal. What a stage needs and does it declares.

    Attributes:
      keeps_counts: whether layers have as many active units after it as before, or as
        their targets say.
      crosses_layers: whether layers compete for units.
      prunes: whether it brings layers down to their targets: then it also makes the
        first masks of a density that starts below 1.
    """

    keeps_counts: ClassVar[bool] = True
    crosses_layers: ClassVar[bool] = False
    prunes: ClassVar[bool] = False

    def check(self, rewiring: "Rewiring") -> None:
        """Raise ValueError where the stage cannot work with the other parts."""
        del rewiring

    def check_leaf(self, plan: LeafPlan) -> None:
        """Raise ValueError where the stage cannot work on a sparse leaf."""
        del plan

    def measure(
        self, units: Units, active: jax.Array, memory: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Measure what the stage reads besides scores, on one leaf.

        Args:
          units: how the weights are switched.
          active: bool array of units.
          memory: what is remembered of the weights' gradients, or None.

        Returns:
          One number for each layer, the layer's axes of size 1, by name.
        """
        del units, active, memory
        return {}

    @abc.abstractmethod
    def over(self, drafts: list[Draft]) -> list[Draft]:
        """Return the next draft of every leaf."""


class LayerStage(Stage):
    """A stage that looks at one layer at a time."""

    @abc.abstractmethod
    def __call__(self, draft: Draft) -> Draft:
        """Return the next draft."""

    def over(self, drafts: list[Draft]) -> list[Draft]:
        return [self(draft) for draft in drafts]


class NetworkStage(Stage):
    """A stage that compares layers: ``over`` sees all drafts at once."""

    crosses_layers = True


@dataclasses.dataclass(frozen=True)
class Prune(LayerStage):
    """Bring every cell to its target: down here, up where units are grown.

    Does nothing where numbers stay as they are.
    """

    prunes = True

    def __call__(self, draft: Draft) -> Draft:
        """Return the draft without what is above the target."""
        if draft.target is None:
            return draft
        units, present = draft.units, draft.size
        size = jnp.where(draft.rises, draft.target, jnp.minimum(draft.target, present))
        size = jnp.where(draft.adapts, size, present)
        most, kept = jnp.minimum(present, size), draft.kept
        if not units.is_layer_wide:
            most = jnp.maximum(most, units.count(draft.held))
            kept = units.select(draft.drop, most, where=kept)
        # Else one selection prunes and drops.
        return draft._replace(kept=kept, most=most, size=size)


@dataclasses.dataclass(frozen=True)
class Drop(LayerStage):
    """Drop a fraction of every layer's active units, lowest scores first."""

    def __call__(self, draft: Draft) -> Draft:
        """Return the draft without what is dropped."""
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
      again: whether units may come back that the same update has dropped; without,
        only where nothing else is left.
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

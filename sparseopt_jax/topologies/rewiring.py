"""Rewiring: a topology composed of parts.

The parts are a distribution (how many weights each layer gets), a structure (which may
be active together), a drop score and a grow score (which ones), stages (what an update
does with them) and a schedule (when, and what fraction). The methods of the literature,
in ``sparseopt_jax.topologies.methods``, are compositions of these parts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import integer
from sparseopt_jax.arguments.equality import hash_of, hash_of_tree, same, same_tree
from sparseopt_jax.layers import distributions
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where, check_where
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import Dims, check_dims, fan_in, resolve_axes
from sparseopt_jax.layers.structures import (
    Block,
    Structures,
    Unstructured,
    check_structure,
    fixed_density,
)
from sparseopt_jax.masks.compact_storage import planned_shapes
from sparseopt_jax.masks.state import check_masks, map_masked
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.base import Topology, TopologyState
from sparseopt_jax.topologies.first_masks import first_masks
from sparseopt_jax.topologies.leaf import Demand, updates_blocks
from sparseopt_jax.topologies.memory import GradientMemory, no_gradients
from sparseopt_jax.topologies.planning import first_planned, paths_of_full, planned
from sparseopt_jax.topologies.previous_masks import PREVIOUS_MASKS
from sparseopt_jax.topologies.schedules import (
    DensitySchedule,
    UpdateSteps,
    described_updates,
)
from sparseopt_jax.topologies.side_by_side import rewire_side_by_side
from sparseopt_jax.topologies.stages import Drop, Grow, Prune, Stage
from sparseopt_jax.topologies.targets import rises, targets
from sparseopt_jax.topologies.updates import collect, rewire_leaf_by_leaf, write_back
from sparseopt_jax.trees import paths


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rewiring(Topology):
    """A topology composed of parts: distribution, structure, scores, stages, schedule.

    Build it with a method such as ``rigl``, or from the parts.

    Topologies are values: two with the same settings are equal. Given masks are
    compared entry by entry, functions by identity.

    Attributes:
      sparsity: fraction of zeros, in [0, 1), the final one with a ``density`` schedule;
        None if ``masks`` are given, or a structure fixes it.
      name: the name in tables and checkpoints.
      distribution: how the budget is shared between layers.
      first: what the distribution ``"uniform"`` keeps dense: globs over paths; True
        for the network's first layer, found by names and shapes; None for nothing.
      structure: which weights of a layer may be active together, for all leaves or by
        globs over paths.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      include: leaves to make sparse although they are not kernels: globs over paths, or
        a function of path and leaf.
      masks: masks to start from, instead of random ones; ``PREVIOUS_MASKS`` for a
        phase that keeps the masks of the previous one, or their numbers of active
        weights.
      dims: the axes of kernels, as in ``sparseopt_jax.layers.neurons.resolve_axes``.
      schedule: when the masks are updated; None for never.
      drop: score of active weights; the lowest are dropped.
      grow: score of inactive weights; the highest are grown.
      stages: what an update does, in this order.
      replaces_step: whether an update replaces the gradient step (RigL) or follows it
        (SET).
      density: how the number of active weights moves; None if it is constant. With
        ``masks`` it starts from them.
      memory: what growth remembers of earlier gradients; None for the current one only.
      min_fan_in: least number of active weights per neuron.
      track_explored: whether to record which weights have ever been active (one bool
        per weight).
    """

    sparsity: float | None
    name: str = "custom"
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel"
    first: First = True
    structure: Structures = Unstructured()
    where: Where | None = None
    include: Include | None = None
    masks: Any = None
    dims: Dims = None
    schedule: UpdateSteps | None = None
    drop: scores.Score = scores.magnitude
    grow: scores.Score = scores.random
    stages: tuple[Stage, ...] = (Prune(), Drop(), Grow())
    replaces_step: bool = False
    density: DensitySchedule | None = None
    memory: GradientMemory | None = None
    min_fan_in: int = 0
    track_explored: bool = False

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            distributions.check_sparsity(self.sparsity)
        check_structure(self.structure)
        if self.target_density is None and not isinstance(self.structure, Mapping):
            if self.masks is None:
                raise ValueError("sparsity must be given unless masks are, got None")
            if self.density is not None and not self.is_handed_on:
                raise ValueError(
                    "sparsity must be given: masks specify where the density starts, "
                    "not where it ends"
                )
        distributions.check_distribution(self.distribution)
        check_dims(self.dims)
        check_where(self.where, self.include)
        distributions.check_first(self.first, self.distribution)
        if not (self.first is None or isinstance(self.first, bool | str)):
            object.__setattr__(self, "first", tuple(self.first))
        if self.include is not None and not callable(self.include):
            globs = self.include
            globs = (globs,) if isinstance(globs, str) else tuple(globs)
            object.__setattr__(self, "include", globs)
        if isinstance(self.masks, str) and not self.is_handed_on:
            raise TypeError(
                "masks must be a tree of bool arrays, or so.PREVIOUS_MASKS in phases, "
                f"got {self.masks!r}"
            )
        if self.masks is not None and not self.is_handed_on:
            check_masks(self.masks)
        for name in ("distribution", "structure", "dims"):
            value = getattr(self, name)
            if isinstance(value, dict):
                # A copy that nobody else can modify.
                object.__setattr__(self, name, dict(value))
        self._check_change()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rewiring):
            return NotImplemented
        return self is other or all(
            (same_tree if field.name == "masks" else same)(
                getattr(self, field.name), getattr(other, field.name)
            )
            for field in dataclasses.fields(self)
        )

    def __hash__(self) -> int:
        return hash(
            tuple(
                (hash_of_tree if field.name == "masks" else hash_of)(
                    getattr(self, field.name)
                )
                for field in dataclasses.fields(self)
            )
        )

    def _check_change(self) -> None:
        for name in ("drop", "grow"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"{name} must be a function of (key, param, grad), got "
                    f"{getattr(self, name)!r}"
                )
        if self.density is not None:
            distributions.check_sparsity(
                self.density.initial_sparsity, "initial_sparsity"
            )
            if self.is_handed_on:
                raise ValueError(
                    "masks=so.PREVIOUS_MASKS keeps the number of active weights, but a "
                    "density schedule changes it: leave masks out; in so.phases the "
                    "topology starts from the previous masks anyway"
                )
        least = integer("min_fan_in", self.min_fan_in, 0)
        object.__setattr__(self, "min_fan_in", least)
        if self.memory is not None:
            self.memory.check(self.schedule)
        object.__setattr__(self, "stages", tuple(self.stages))
        for stage in self.stages:
            if not isinstance(stage, Stage):
                raise TypeError(
                    "stages must hold stages such as so.topologies.Drop(), got "
                    f"{stage!r}"
                )
            stage.check(self)

    @property
    def is_handed_on(self) -> bool:
        """Whether it takes over the previous phase's masks, or their numbers."""
        return isinstance(self.masks, str) and self.masks == PREVIOUS_MASKS

    @property
    def keeps_counts(self) -> bool:
        """Whether each layer's number of active weights never changes."""
        return self.density is None and all(stage.keeps_counts for stage in self.stages)

    @property
    def crosses_layers(self) -> bool:
        """Whether layers compete for weights."""
        return any(stage.crosses_layers for stage in self.stages)

    @property
    def may_empty_layers(self) -> bool:
        """False if each layer's number of active weights is constant or scheduled."""
        by_layer = self.density is not None and not self.crosses_layers
        return not (self.keeps_counts or by_layer)

    @property
    def given_masks(self) -> Any:
        return None if self.is_handed_on else self.masks

    @property
    def target_density(self) -> float | None:
        """The target fraction of active weights: from ``sparsity`` or the structure."""
        if self.sparsity is not None:
            return 1.0 - self.sparsity
        return fixed_density(self.structure)

    @property
    def switches_blocks(self) -> bool:
        return isinstance(self.structure, Block)

    @property
    def updates_blocks(self) -> bool:
        return updates_blocks(self)

    @property
    def dense_gradients(self) -> float:
        """The fraction of steps that need the dense gradient, until the last update.

        If the grow score needs it, one extra step after every ``every`` steps (RigL).
        """
        if self.schedule is None or not self.scores_inactive:
            return 0.0
        if self.memory is not None:
            return self.memory.dense_gradients(self.schedule.interval)  # pyright: ignore
        return self.schedule.frequency

    @property
    def scores_inactive(self) -> bool:
        """Whether updates read the gradients of inactive weights."""
        return self.memory is not None or scores.needs_gradient(self.grow)

    @property
    def reads_gradients(self) -> bool:
        """Whether it scores weights by gradients, or remembers them."""
        return self.scores_inactive or scores.needs_gradient(self.drop)

    def leaves(self, params: Any) -> list[LeafPlan]:
        """Decide about each leaf; see ``Topology.leaves``."""
        return planned(self, params)

    def first_leaves(self, params: Any) -> list[LeafPlan]:
        """Decide about each leaf as ``leaves`` does, but for the first masks."""
        return first_planned(self, params)

    def full_leaves(self, params: Any) -> frozenset[str]:
        """Return the paths of leaves whose weights are all active and stay so.

        A layer that its distribution fills keeps its count, so its mask stays full.
        """
        if self.crosses_layers or not all(s.keeps_counts for s in self.stages):
            return frozenset()
        full = paths_of_full(self.first_leaves(params))
        return (
            full if self.density is None else full & paths_of_full(self.leaves(params))
        )

    @property
    def moves(self) -> bool:
        """Whether the masks are ever updated."""
        return self.schedule is not None

    @property
    def updates(self) -> str:
        """How often the masks are updated, as a sentence; empty if never."""
        return described_updates(self.schedule)

    def due(self, count: Any) -> Any:
        """Return whether masks are updated at step ``count``; see ``Topology.due``."""
        return False if self.schedule is None else self.schedule.due(count)

    def init(self, key: jax.Array, params: optax.Params) -> tuple[Any, TopologyState]:
        """Make the first masks, with exactly the planned number of weights per layer.

        They are random or given, or keep the largest weights if the density schedule
        has ``by_weights``.

        Args:
          key: typed PRNG key.
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``. Only shapes, dtypes
            and sharding types are used, except with ``by_weights``: then the values of
            arrays, even of traced ones. With shapes only, masks are random.

        Returns:
          Masks in the structure of ``params``, and the topology's state.

        Raises:
          ValueError: as ``leaves``.
        """
        masks = first_masks(self, key, params)
        # A copy, because a donated state must not hold the same buffer twice.
        explored = jax.tree.map(jnp.copy, masks) if self.track_explored else ()
        return masks, TopologyState(
            updated_at=jnp.full([], -1, jnp.int32),
            explored=explored,
            turned=(),
            fan_ins=self.fan_ins(masks),
            grown=map_masked(lambda mask, _: jnp.zeros([], jnp.int32), masks, masks),
            memory=self.no_memory(masks),
        )

    def no_memory(self, masks: Any) -> Any:
        """Return the memory of gradients before the first step."""
        return () if self.memory is None else no_gradients(masks)

    def fan_ins(self, masks: Any) -> Any:
        """Return each neuron's number of active inputs, as in ``TopologyState``."""
        return paths.map_with_paths(self.fan_in, masks)

    def fan_in(self, path: str, mask: Any) -> Any:
        """Return the fan-ins of one leaf; ``optax.MaskedNode()`` without neurons."""
        axes = None if paths.is_hole(mask) else resolve_axes(self.dims, path, mask)
        return optax.MaskedNode() if axes is None else fan_in(mask, axes)

    def observe(self, count: Any, state: TopologyState, grads: Any) -> TopologyState:
        """Add the gradient of a step to the memory; see ``Topology.observe``."""
        if self.memory is None:
            return state
        memory = self.memory.observe(
            self.schedule,  # pyright: ignore
            count,
            state.memory,
            grads,
        )
        return state._replace(memory=memory)

    def update(
        self,
        key: jax.Array,
        count: jax.Array,
        masks: Any,
        state: TopologyState,
        params: optax.Params,
        grads: optax.Updates,
        *,
        fraction: jax.Array | None = None,
        adapts: Any = False,
    ) -> tuple[Any, TopologyState]:
        """Update the masks once, whether or not an update is due.

        The stages run in order. By default each layer drops a fraction of its active
        units, which the schedule sets for ``count``, lowest drop scores first. Then
        every cell grows back to its number, highest grow scores first, among all units
        that are now inactive: those just dropped may come back. Non-finite weights are
        not dropped.

        Args:
          key: typed PRNG key of this step.
          count: int32 scalar, the step.
          masks: the current masks.
          state: the topology's state, after ``observe`` for this step.
          params: tree like the masks, the weights.
          grads: tree like the masks, the dense gradient.
          fraction: the fraction to drop, instead of the schedule's.
          adapts: whether masks from a previous phase are brought to this topology's
            numbers of active weights: a bool or bool scalar. A density schedule does
            not fill up sparser masks unless its density has risen.

        Returns:
          The new masks and the new state. If the topology keeps counts, every layer
          has as many active weights as before.
        """
        if fraction is None:
            fraction = self.schedule.fraction(count)  # pyright: ignore
        adapts = True if self.density else adapts
        shapes = planned_shapes(masks, params)
        demand = Demand(
            fraction=fraction,  # pyright: ignore
            targets={} if adapts is False else targets(self, count, shapes),
            adapts=adapts,
            rises=rises(self, count, shapes),
        )
        leaves = collect(self, masks, params, grads, state.memory)
        rewired = rewire_side_by_side(self, key, leaves, demand)
        if rewired is None:
            rewired = rewire_leaf_by_leaf(self, key, leaves, demand)
        return write_back(self, count, masks, state, leaves, rewired)

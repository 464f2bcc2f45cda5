"""Rewiring: a topology that is composed of parts.

A distribution (how many weights each layer gets), a structure (which may be active
together), a drop score and a grow score (which ones), stages (what an update does with
them) and a schedule (when, and what fraction). The methods of the literature are
compositions of such parts, in ``sparseopt_jax.topologies.methods``.
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
from sparseopt_jax.masks.state import check_masks
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
    told_updates,
)
from sparseopt_jax.topologies.side_by_side import rewire_side_by_side
from sparseopt_jax.topologies.stages import Drop, Grow, Prune, Stage
from sparseopt_jax.topologies.targets import rises, targets
from sparseopt_jax.topologies.updates import collect, rewire_leaf_by_leaf, write_back
from sparseopt_jax.trees import paths


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rewiring(Topology):
    """A topology composed of parts: what a layer gets, what is dropped and grown, when.

    Build one with a method such as ``rigl``, or from the parts.

    Topologies are values: those with the same settings are equal, given masks compared
    entry by entry, and functions by their identity.

    Attributes:
      sparsity: fraction of zeros, in [0, 1), in the end where ``density`` moves it;
        None if ``masks`` are given, or a structure fixes it.
      name: what it is called in tables and checkpoints.
      distribution: how the budget is shared between layers.
      first: what the distribution ``"uniform"`` keeps dense: globs over paths, True
        for the first layer that names and shapes tell, None for nothing.
      structure: what may be active within a layer, for all or by globs over paths.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      include: globs over paths, or a function of path and leaf: leaves that are made
        sparse although they are no kernels.
      masks: masks to start from, instead of random ones; ``PREVIOUS_MASKS`` for a
        phase that keeps the masks, or their numbers of active weights, as they are
        handed on.
      dims: the axes of kernels, as in ``sparseopt_jax.layers.neurons.resolve_axes``.
      schedule: when the topology changes; None if it never does.
      drop: score by which active weights are kept, the highest.
      grow: score by which inactive weights are activated, the highest.
      stages: what an update does, one after another.
      replaces_step: whether a change replaces the gradient step (RigL) or follows it
        (SET).
      density: how the number of active weights moves; None if it does not. With
        ``masks`` it moves from what those have.
      memory: what growth remembers of earlier gradients; None for the present one only.
      min_fan_in: active weights that every neuron keeps.
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
                    "sparsity must be given: masks are where the density starts, not "
                    "where it ends"
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
                # A copy, which nobody else can change.
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
                    "masks=so.PREVIOUS_MASKS keeps the number of active weights, which "
                    "a density moves: leave masks out; in phases it starts from the "
                    "masks that are handed on"
                )
        least = integer("min_fan_in", self.min_fan_in, 0)
        object.__setattr__(self, "min_fan_in", least)
        if self.memory is not None:
            self.memory.check(self.schedule)
        object.__setattr__(self, "stages", tuple(self.stages))
        for stage in self.stages:
            if not isinstance(stage, Stage):
                raise TypeError(
                    f"stages must be such as so.topologies.Drop(), got {stage!r}"
                )
            stage.check(self)

    @property
    def is_handed_on(self) -> bool:
        """Whether it takes the masks, or their numbers, that a phase before left."""
        return isinstance(self.masks, str) and self.masks == PREVIOUS_MASKS

    @property
    def keeps_counts(self) -> bool:
        """Whether every layer has as many active weights at any time."""
        return self.density is None and all(stage.keeps_counts for stage in self.stages)

    @property
    def crosses_layers(self) -> bool:
        """Whether layers compete for weights."""
        return any(stage.crosses_layers for stage in self.stages)

    @property
    def may_empty_layers(self) -> bool:
        """False where a schedule decides about every layer by itself."""
        by_layer = self.density is not None and not self.crosses_layers
        return not (self.keeps_counts or by_layer)

    @property
    def given_masks(self) -> Any:
        return None if self.is_handed_on else self.masks

    @property
    def target_density(self) -> float | None:
        """By ``sparsity``, or else by the structure: as ``Topology.target_density``."""
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
        """The fraction of the steps that need the dense gradient, while masks change.

        RigL takes one more step for it after each ``every`` others. Whether growth
        needs it is its score's to say.
        """
        interval = None if self.schedule is None else self.schedule.interval
        if interval is None:
            return 0.0
        if self.memory is not None:
            return self.memory.dense_gradients(interval)
        return min(1 / (interval + 1), 1.0) if scores.needs_gradient(self.grow) else 0.0

    @property
    def reads_gradients(self) -> bool:
        """Whether it scores weights by gradients, or remembers them."""
        by_gradients = map(scores.needs_gradient, (self.drop, self.grow))
        return self.memory is not None or any(by_gradients)

    def leaves(self, params: Any) -> list[LeafPlan]:
        """Decide about each leaf: as ``Topology.leaves``."""
        return planned(self, params)

    def first_leaves(self, params: Any) -> list[LeafPlan]:
        """Decide about each leaf as ``leaves`` does, for the masks of the beginning."""
        return first_planned(self, params)

    def full_leaves(self, params: Any) -> frozenset[str]:
        """Paths of the leaves all of whose weights are active, and will stay so.

        A layer that its distribution saturates keeps its count like any other, so its
        mask never changes anything.
        """
        if self.crosses_layers or not all(s.keeps_counts for s in self.stages):
            return frozenset()
        full = paths_of_full(self.first_leaves(params))
        return (
            full if self.density is None else full & paths_of_full(self.leaves(params))
        )

    @property
    def moves(self) -> bool:
        """Whether the masks ever change."""
        return self.schedule is not None

    @property
    def updates(self) -> str:
        """How often the masks are updated, as a sentence; empty if never."""
        return told_updates(self.schedule)

    def due(self, count: Any) -> Any:
        """Return whether the masks change at step ``count``: as ``Topology.due``."""
        return False if self.schedule is None else self.schedule.due(count)

    def init(self, key: jax.Array, params: optax.Params) -> tuple[Any, TopologyState]:
        """Make the first masks: exactly as many active weights as each layer gets.

        They are random, or given; a density that starts by weights keeps the largest.

        Args:
          key: typed PRNG key.
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``. Only shapes, dtypes
            and sharding types are used, unless masks start from weights: then the
            values of arrays, traced ones as well; with shapes alone they are random.

        Returns:
          Masks in the structure of ``params``, and what the topology keeps.

        Raises:
          ValueError: as ``leaves``.
        """
        masks = first_masks(self, key, params)
        # A copy: a donated state must not hold one buffer twice.
        explored = jax.tree.map(jnp.copy, masks) if self.track_explored else ()
        return masks, TopologyState(
            updated_at=jnp.full([], -1, jnp.int32),
            explored=explored,
            turned=(),
            fan_ins=self.fan_ins(masks),
            grown=paths.map_with_paths(_no_growth, masks),
            memory=self.no_memory(masks),
        )

    def no_memory(self, masks: Any) -> Any:
        """Return what growth remembers before the first step."""
        return () if self.memory is None else no_gradients(masks)

    def fan_ins(self, masks: Any) -> Any:
        """Each neuron's number of active incoming weights, as ``TopologyState`` has."""
        return paths.map_with_paths(self.fan_in, masks)

    def fan_in(self, path: str, mask: Any) -> Any:
        """The fan-ins of one leaf; ``optax.MaskedNode()`` where it has no neurons."""
        axes = None if paths.is_hole(mask) else resolve_axes(self.dims, path, mask)
        return optax.MaskedNode() if axes is None else fan_in(mask, axes)

    def observe(self, count: Any, state: TopologyState, grads: Any) -> TopologyState:
        """Take the gradient of a step into what growth remembers."""
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

        The stages run one after another. By default, per layer, the fraction that the
        schedule gives for ``count`` of the active units is dropped, lowest drop scores
        first, and every cell grows to its number again, highest grow scores first,
        among all that are then inactive: those just dropped may come back. Weights
        that are infinite or NaN are not dropped.

        Args:
          key: typed PRNG key of this step.
          count: int32 scalar, the step.
          masks: the present masks.
          state: what the topology keeps, ``observe`` called for this step.
          params: tree like the masks, the weights.
          grads: tree like the masks, the dense gradient.
          fraction: what to drop, instead of what the schedule gives.
          adapts: whether masks of other numbers than this topology's, as a phase hands
            them on, are brought to its own: a bool or bool scalar. A density that moves
            grows none that are sparser, unless its schedule rises.

        Returns:
          The new masks and the new state. Where the topology keeps counts, every layer
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


def _no_growth(path: str, mask: Any) -> Any:
    del path
    return mask if paths.is_hole(mask) else jnp.zeros([], jnp.int32)

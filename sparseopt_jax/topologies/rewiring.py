"""Topologies: which weights are active, and how that changes.

One class for every method: a composition of a distribution (how many weights each layer
gets), a structure (which may be active together), a drop score and a grow score (which
ones), and a schedule (when, and what fraction). Those of the literature are in
``sparseopt_jax.topologies.methods``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding

from sparseopt_jax.arguments.checks import integer, number
from sparseopt_jax.arguments.equality import hash_of, hash_of_tree, same, same_tree
from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.arrays.rounding import scaled
from sparseopt_jax.arrays.sharding_types import explicit_sharding, sharded
from sparseopt_jax.arrays.units import random_units_mask
from sparseopt_jax.layers import distributions
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where, check_where
from sparseopt_jax.layers.neurons import (
    Dims,
    check_dims,
    correction_factor,
    fan_in,
    one_neuron,
    resolve_axes,
)
from sparseopt_jax.layers.plans import LeafPlan, Rules, masks_by_path, plan_leaves
from sparseopt_jax.layers.structures import (
    ConstantFanIn,
    Structures,
    Unstructured,
    check_structure,
    resolve_structure,
)
from sparseopt_jax.masks.state import check_masks, map_masked, map_masked_with_path
from sparseopt_jax.topologies import changes, scores
from sparseopt_jax.topologies.base import Topology, TopologyState
from sparseopt_jax.topologies.gradient_memory import (
    GradientMemory,
    GradientMomentum,
    MeanGradient,
    no_gradients,
)
from sparseopt_jax.topologies.schedules import (
    DensitySchedule,
    StepList,
    UpdateSchedule,
    told_updates,
)
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.leaf_keys import leaf_key

KEPT = "kept"
AT_RANDOM = "random"
BY_WEIGHTS = "weights"
_ANY_WEIGHTS = Unstructured()


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
      masks: masks to start from, instead of random ones; ``"kept"`` for a phase that
        keeps the masks, or their numbers of active weights, as they are handed on.
      dims: the axes of kernels, as in ``sparseopt_jax.layers.neurons.resolve_axes``.
      schedule: when the topology changes; None if it never does.
      drop: score by which active weights are kept, the highest.
      grow: score by which inactive weights are activated, the highest.
      replaces_step: whether a change replaces the gradient step (RigL) or follows it
        (SET).
      density: how the number of active weights moves; None if it does not. With
        ``masks`` it moves from what those have.
      starts_from: what the first masks of a moving density hold: ``"random"`` weights,
        or the largest of the ``"weights"`` given to ``init``, by the drop score.
      scope: what a density that falls compares: the weights of each ``"layer"``, or
        ``"global"``, of the whole network.
      memory: what growth remembers of earlier gradients; None for the present one only.
      corrected_growth: whether growth sees the gradient times SparseOpt's factors.
      redistributes: whether what all layers drop is grown in proportion to the mean
        size of a layer's remembered gradients (SNFS).
      ablation: neurons with fewer salient weights than this fraction of their fan-in
        lose all of them to the others (SRigL); None for never.
      min_fan_in: active weights that every neuron keeps.
      regrows: whether a change may grow again what it has just dropped; without, only
        where nothing else is left.
      track_explored: whether to record which weights have ever been active (one bool
        per weight).
    """

    sparsity: float | None
    name: str = "custom"
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel"
    first: First = True
    structure: Structures = _ANY_WEIGHTS
    where: Where | None = None
    include: Include | None = None
    masks: Any = None
    dims: Dims = None
    schedule: UpdateSchedule | StepList | None = None
    drop: scores.Score = scores.magnitude
    grow: scores.Score = scores.random
    replaces_step: bool = False
    density: DensitySchedule | None = None
    starts_from: str = AT_RANDOM
    scope: str = "layer"
    memory: GradientMemory | None = None
    corrected_growth: bool = False
    redistributes: bool = False
    ablation: float | None = None
    min_fan_in: int = 0
    regrows: bool = True
    track_explored: bool = False

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            distributions.check_sparsity(self.sparsity)
        check_structure(self.structure)
        fixes_density = (
            isinstance(self.structure, Mapping) or self.structure.density is not None
        )
        if self.sparsity is None and not fixes_density:
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
        if not isinstance(self.scope, str) or self.scope not in ("layer", "global"):
            raise ValueError(f"scope must be 'layer' or 'global', got {self.scope!r}")
        if self.density is not None:
            distributions.check_sparsity(
                self.density.initial_sparsity, "initial_sparsity"
            )
            if self.is_handed_on:
                raise ValueError(
                    'masks="kept" keeps the number of active weights, which a density '
                    "moves: leave masks out; in phases it starts from the masks that "
                    "are handed on"
                )
        if self.starts_from not in (AT_RANDOM, BY_WEIGHTS):
            raise ValueError(
                f"starts_from must be {AT_RANDOM!r} or {BY_WEIGHTS!r}, got "
                f"{self.starts_from!r}"
            )
        least = integer("min_fan_in", self.min_fan_in, 0)
        object.__setattr__(self, "min_fan_in", least)
        if self.ablation is not None:
            number("gamma_sal", self.ablation, 0, 1)
            if self.structure != ConstantFanIn():
                raise ValueError(
                    "neurons are ablated under ConstantFanIn() only, got structure "
                    f"{self.structure}"
                )
        if self.memory is not None:
            if not isinstance(self.schedule, UpdateSchedule):
                raise ValueError("a memory of gradients needs changes at an interval")
            self.memory.check(self.schedule)
        if self.redistributes and (
            self.memory is None or self.structure != Unstructured()
        ):
            raise ValueError(
                "redistribution needs a memory of gradients and Unstructured(), got "
                f"{self.memory} and {self.structure}"
            )

    @property
    def is_handed_on(self) -> bool:
        """Whether it takes the masks, or their numbers, that a phase before left."""
        return isinstance(self.masks, str) and self.masks == KEPT

    @property
    def keeps_counts(self) -> bool:
        """Whether every layer has as many active weights at any time."""
        return self.density is None and not self.redistributes and self.ablation is None

    @property
    def crosses_layers(self) -> bool:
        """Whether layers compete for weights."""
        return self.scope == "global" or self.redistributes

    @property
    def dense_gradients(self) -> float:
        """The fraction of the steps that need the dense gradient, while masks change.

        RigL takes one more step for it after each ``every`` others. Whether growth
        needs it is its score's to say.
        """
        if isinstance(self.memory, GradientMomentum):
            return 1.0
        if not scores.needs_gradient(self.grow):
            return 0.0
        if not isinstance(self.schedule, UpdateSchedule):
            return 0.0
        steps = self.memory.steps if isinstance(self.memory, MeanGradient) else 1
        return min(steps / (self.schedule.every + 1), 1.0)

    def plan(self, params: Any) -> list[LeafPlan]:
        """What becomes of each leaf of ``params``.

        Args:
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

        Returns:
          One entry per leaf, in tree order.

        Raises:
          ValueError: if no leaf can be sparse, a pattern matches nothing, a layer
            would keep no weight, a structure does not fit a shape, or the given masks
            do not fit.
        """
        if self.is_handed_on:
            raise ValueError(
                'masks="kept" takes masks over from a phase before; use it in phases'
            )
        leaves = plan_leaves(self._rules(self.sparsity), params)
        self._check_countable(leaves)
        if self.scope == "global":
            for plan in leaves:
                if plan.units is not None and not plan.units.is_layer_wide:
                    raise ValueError(
                        f"scope 'global' cannot keep {plan.structure}, the structure "
                        f"of {plan.path!r}: its numbers are fixed within the layer"
                    )
        return leaves

    def _check_countable(self, leaves: list[LeafPlan]) -> None:
        """Raises where an int32 could not count what is counted together."""
        total = 0
        for plan in leaves:
            if plan.units is None:
                continue
            units = plan.units.per_layer
            total += math.prod(plan.units.shape)
            if units >= 2**31:
                raise ValueError(
                    f"{plan.path!r} has {units} units of {plan.structure} in one "
                    "layer, and an int32 counts 2**31 - 1: make them fewer by a "
                    "mapping to Block((...)), split the kernel, name its stacked axes "
                    "by dims, or exclude it by where"
                )
        if total >= 2**31 and self.crosses_layers:
            raise ValueError(
                f"{self.name} compares all layers, whose {total} weights an int32 does "
                "not count: exclude some by where, or take a method that keeps to each "
                "layer"
            )

    def _rules(self, sparsity: float | None) -> Rules:
        return Rules(
            sparsity,
            *(self.distribution, self.structure, self.where),
            *(self.masks, self.dims, self.min_fan_in),
            include=self.include,
            first=self.first,
            moves=self.density is not None,
        )

    def _first_leaves(self, params: Any) -> list[LeafPlan]:
        last = self.plan(params)  # raises where the end does not fit
        if self.density is None:
            return last
        initial = self.density.initial_sparsity
        rules = self._rules(initial)._replace(begins=True)
        if isinstance(self.distribution, Mapping):
            # The sparsities of a mapping are those of the end.
            ends = self.distribution.items()
            begins = {pattern: min(initial, own) for pattern, own in ends}
            rules = rules._replace(distribution=begins)
        return plan_leaves(rules, params)

    def full_leaves(self, params: Any) -> frozenset[str]:
        """Paths of the leaves all of whose weights are active, and will stay so.

        A layer that its distribution saturates keeps its count like any other, so its
        mask never changes anything.
        """
        if self.crosses_layers or self.ablation is not None:
            return frozenset()
        full = _full(self._first_leaves(params))
        return full if self.density is None else full & _full(self.plan(params))

    @property
    def moves(self) -> bool:
        """Whether the masks ever change."""
        return self.schedule is not None

    @property
    def updates(self) -> str:
        """How often the masks are updated, as a sentence; empty if never."""
        return told_updates(self.schedule)

    def due(self, count: Any) -> Any:
        """Whether the masks change at step ``count``: a bool for an int, else an array.

        What a host loop asks before it calls ``update_topology``.
        """
        return False if self.schedule is None else self.schedule.due(count)

    def init(self, key: jax.Array, params: Any) -> tuple[Any, TopologyState]:
        """The first masks: exactly as many active weights as each layer gets.

        They are random, or given; a density that ``starts_from`` weights keeps the
        largest.

        Args:
          key: typed PRNG key.
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``. Only shapes, dtypes
            and sharding types are used, unless masks start from weights: then the
            values of arrays, traced ones as well; with shapes alone they are random.

        Returns:
          Masks in the structure of ``params``, and what the topology keeps.

        Raises:
          ValueError: as ``plan``.
        """
        plans = {plan.path: plan for plan in self._first_leaves(params)}
        given = {} if self.masks is None else masks_by_path(self.masks)
        chosen = self._chosen(key, params, plans, given)

        def at_leaf(path, leaf):
            plan = plans.get(path)
            if plan is None or plan.layer is None:
                return optax.MaskedNode()
            sharding = _sharding(leaf)
            if path in chosen or path in given:
                mask = chosen[path] if path in chosen else given[path]
                return sharded(jnp.asarray(mask), sharding)
            return random_units_mask(
                leaf_key(key, path),
                plan.per_cell,
                plan.units,
                least=self.min_fan_in,
                neuron=plan.axes.reduction,  # pyright: ignore
                sharding=sharding,
            )

        masks = paths.map_with_paths(at_leaf, params)
        # optax finds parameter-like parts of a state by a tree of one placeholder, in
        # whose place the masks must stand.
        masks = masks if plans else params
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

    def _chosen(
        self,
        key: jax.Array,
        params: Any,
        plans: dict[str, LeafPlan],
        given: dict[str, Any],
    ) -> dict[str, jax.Array]:
        """First masks of a moving density, chosen among given ones or by the weights.

        Empty where it begins dense, with the given masks as they are, or at random.
        """
        plans = {path: plan for path, plan in plans.items() if plan.layer is not None}
        begins_full = all(
            plan.per_cell == plan.units.per_cell  # pyright: ignore
            for plan in plans.values()
        )
        leaves = paths.leaves_by_path(params)
        has_weights = self.starts_from == BY_WEIGHTS and all(
            isinstance(leaves[path], jax.Array | np.ndarray) for path in plans
        )
        if self.density is None or begins_full or not (given or has_weights):
            return {}
        score = scores.random
        if has_weights:
            score = scores.magnitude if scores.needs_gradient(self.drop) else self.drop
        found = {}
        for path, plan in plans.items():
            leaf = leaves[path]
            if path in given:
                mask = sharded(jnp.asarray(given[path]), _sharding(leaf))
            else:
                mask = (leaf == leaf) | True  # wherever the leaf lies
            weights = jnp.asarray(leaf if has_weights else mask, jnp.float32)
            units: Any = plan.units
            drop = scores.of_units(score, units, leaf_key(key, path), weights, weights)
            found[path] = changes.Leaf.of(
                mask,
                units,
                finite=jnp.isfinite(weights),
                drop=drop,
                grow=drop,
                min_fan_in=self.min_fan_in,
                neuron=plan.axes.reduction,  # pyright: ignore
                memory=None,
                budget=None,
            )
        return changes.change(
            found,
            jnp.float32(0.0),
            {path: plan.per_cell for path, plan in plans.items()},
            adapts=True,
            rises=False,
            scope=self.scope,
            ablation=None,
            redistributes=False,
            regrows=True,
        )

    def no_memory(self, masks: Any) -> Any:
        """What growth remembers before the first step."""
        return () if self.memory is None else no_gradients(masks)

    def fan_ins(self, masks: Any) -> Any:
        """Each neuron's number of active incoming weights, as ``TopologyState`` has."""
        return paths.map_with_paths(self._fan_in, masks)

    def _fan_in(self, path: str, mask: Any, _: Any = None) -> Any:
        axes = None if paths.is_hole(mask) else resolve_axes(self.dims, path, mask)
        return optax.MaskedNode() if axes is None else fan_in(mask, axes)

    def observe(self, count: Any, state: TopologyState, grads: Any) -> TopologyState:
        """Takes the gradient of a step into what growth remembers.

        Args:
          count: int32 scalar, the step.
          state: what the topology keeps.
          grads: the dense gradient.

        Returns:
          The new state; the same if nothing is remembered.
        """
        if self.memory is None:
            return state
        memory = self.memory.observe(
            self.schedule,  # pyright: ignore
            *(count, state.memory, grads),
        )
        return state._replace(memory=memory)

    def update(
        self,
        key: jax.Array,
        count: jax.Array,
        masks: Any,
        state: TopologyState,
        params: Any,
        grads: Any,
        *,
        fraction: jax.Array | None = None,
        adapts: Any = False,
    ) -> tuple[Any, TopologyState]:
        """Changes the masks once, whether or not a change is due.

        Per layer, the fraction that the schedule gives for ``count`` of the active
        units is dropped, lowest drop scores first, and every cell grows to its number
        again, highest grow scores first, among all that are then inactive: those just
        dropped may come back. Weights that are infinite or NaN are not dropped.

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
          The new masks and the new state. Unless the density moves, neurons are ablated
          or layers redistribute, every layer has as many active weights as before.
        """
        if fraction is None:
            fraction = self.schedule.fraction(count)  # pyright: ignore
        found = self._collect(key, masks, params, grads, state.memory)
        adapts = True if self.density else adapts
        targets = None if adapts is False else self._targets(count, params)
        new = changes.change(
            found,
            fraction,
            targets,
            adapts=adapts,
            rises=self._rises(count, params),
            scope=self.scope,
            ablation=self.ablation,
            redistributes=self.redistributes,
            regrows=self.regrows,
        )
        grown = {
            path: count_true(mask & ~found[path].mask) for path, mask in new.items()
        }
        masks_now = paths.map_with_paths(lambda path, old: new.get(path, old), masks)
        return masks_now, TopologyState(
            updated_at=jnp.asarray(count, jnp.int32),
            explored=map_masked(jnp.logical_or, masks_now, state.explored),
            turned=state.turned,
            fan_ins=map_masked_with_path(self._fan_in, masks_now, state.fan_ins),
            grown=paths.map_with_paths(
                lambda path, old: grown.get(path, old), state.grown
            ),
            memory=state.memory,
        )

    def _kept_plan(self, path: str, leaf: Any) -> LeafPlan:
        """The axes and units of a leaf whose masks another topology has made."""
        shape = tuple(leaf.shape)
        axes = resolve_axes(self.dims, path, leaf) or one_neuron(leaf)
        units = resolve_structure(self.structure, path).units(path, shape, axes)
        return LeafPlan(path, leaf, "", axes, units=units)

    def _targets(self, count: Any, params: Any) -> dict[str, Any]:
        """Active units of every cell at step ``count``, by path, where this decides."""
        if self.is_handed_on:
            return {}
        plans = {plan.path: plan for plan in self.plan(params)}
        last = {p: plan.per_cell for p, plan in plans.items() if plan.per_cell}
        if self.density is None:
            return dict(last)
        progress = jnp.asarray(self.density.progress(count), jnp.float32)
        first: dict[str, Any] = {
            plan.path: plan.per_cell for plan in self._first_leaves(params)
        }
        # A schedule may go beyond its ends, a layer not.
        return {
            path: n
            + jnp.clip(
                scaled(first[path] - n, progress),
                *(1 - n, plans[path].units.per_cell - n),  # pyright: ignore
            )
            for path, n in last.items()
        }

    def _rises(self, count: Any, params: Any) -> Any:
        """Whether an update at ``count`` may grow layers: a bool or bool scalar.

        A density that moves grows what is sparser than it says only where it has risen
        since the update before: what is pruned stays pruned.
        """
        if self.density is None or self.schedule is None:
            return True
        now, before = (
            jnp.asarray(self.density.progress(step), jnp.float32)
            for step in (count, self.schedule.previous(count))
        )
        first, last = (
            sum(
                plan.per_cell * plan.units.cells
                for plan in leaves
                if plan.per_cell and plan.units
            )
            for leaves in (self._first_leaves(params), self.plan(params))
        )
        return now > before if first > last else now < before

    def _collect(
        self, key: jax.Array, masks: Any, params: Any, grads: Any, memory: Any
    ) -> dict[str, changes.Leaf]:
        """The sparse leaves by path, with all that decides about them."""
        leaves = [] if self.is_handed_on else self.plan(params)
        plans = {plan.path: plan for plan in leaves}
        remembered = paths.leaves_by_path(memory)
        found: dict[str, changes.Leaf] = {}

        def at_leaf(path, mask, param, grad):
            plan = plans.get(path) or self._kept_plan(path, param)
            drop_key, grow_key = jax.random.split(leaf_key(key, path))
            seen = remembered.get(path, grad)
            if self.corrected_growth and plan.axes is not None:
                factor = correction_factor(fan_in(mask, plan.axes), plan.axes)
                seen = seen * factor.astype(seen.dtype)
            units: Any = plan.units
            found[path] = changes.Leaf.of(
                mask,
                units,
                finite=jnp.isfinite(param),
                drop=scores.of_units(self.drop, units, drop_key, param, grad),
                grow=scores.of_units(self.grow, units, grow_key, param, seen),
                min_fan_in=self.min_fan_in,
                neuron=plan.axes.reduction,  # pyright: ignore
                memory=remembered.get(path),
                budget=None if plan.per_cell is None else plan.per_cell * units.cells,
            )
            return param

        map_masked_with_path(at_leaf, masks, params, grads)
        return found


def _no_growth(path: str, mask: Any) -> Any:
    del path
    return mask if paths.is_hole(mask) else jnp.zeros([], jnp.int32)


def _full(plans: list[LeafPlan]) -> frozenset[str]:
    return frozenset(
        plan.path
        for plan in plans
        if plan.layer and plan.active == plan.layer.size * plan.layer.copies
    )


def _sharding(leaf: Any) -> NamedSharding | None:
    """How a parameter is sharded over a mesh, as far as that is known now."""
    if not isinstance(leaf, jax.Array):
        return None
    if isinstance(leaf, Tracer):
        return explicit_sharding(leaf)
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None

"""Topologies: which weights are active, and how that changes.

One class for every method: a composition of a distribution (how many weights each layer
gets), a drop score and a grow score (which ones), and a schedule (when, and what
fraction). ``sparseopt_jax.methods`` has those of the literature.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding

from sparseopt_jax import distributions, paths, scores
from sparseopt_jax.distributions import Distribution, Layer
from sparseopt_jax.eligibility import Where, why_dense
from sparseopt_jax.masks import check_masks, map_masked, map_masked_with_path
from sparseopt_jax.neurons import Axes, Dims, check_dims, fan_in, resolve_axes
from sparseopt_jax.schedules import UpdateSchedule
from sparseopt_jax.selection import random_mask, top_k_mask
from sparseopt_jax.sharding_types import explicit_sharding, sharded


class TopologyState(NamedTuple):
    """What a topology keeps.

    Attributes:
      updated_at: int32 scalar, the step of the last change, -1 before the first.
      explored: bool arrays like the masks, True where a weight has ever been active;
        ``()`` unless the topology tracks it.
      turned: bool arrays like the masks, True where the last change turned a weight on
        or off; ``()`` unless someone asks for it, as ``sparsify`` does where a change
        follows a gradient step in the same program: that step is still the old masks'.
      fan_ins: int32 arrays, each neuron's number of active incoming weights, the
        reduction axes kept with size 1; ``optax.MaskedNode()`` at leaves without
        neurons. Counted at a change, so that no step has to.
    """

    updated_at: jax.Array
    explored: Any
    turned: Any
    fan_ins: Any


class LeafPlan(NamedTuple):
    """What a topology decides about one leaf, from its shape alone.

    Attributes:
      path: the leaf's canonical path.
      leaf: the leaf, or what stands for its shape.
      why_dense: the reason that it stays dense; empty if it is sparse.
      axes: its axes; None if it has no neurons.
      layer: the layer that distributions see; None if it stays dense.
      active: its active weights; None if it stays dense, or if a traced or remote mask
        keeps the number to itself.
    """

    path: str
    leaf: Any
    why_dense: str
    axes: Axes | None
    layer: Layer | None
    active: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Pure functions that make and change masks. Build one with ``static``, ``set_``,
    ``rigl``, or from the parts.

    Attributes:
      sparsity: fraction of zeros, in [0, 1); None if ``masks`` are given.
      distribution: how the budget is shared between layers.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      masks: masks to start from, instead of random ones.
      dims: the axes of kernels, as in ``sparseopt_jax.neurons.resolve_axes``.
      schedule: when the topology changes; None if it never does.
      drop: score by which active weights are kept, the highest.
      grow: score by which inactive weights are activated, the highest.
      replaces_step: whether a change replaces the gradient step (RigL) or follows it
        (SET).
      track_explored: whether to record which weights have ever been active (one bool
        per weight).
    """

    sparsity: float | None
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel"
    where: Where | None = None
    masks: Any = None
    dims: Dims = None
    schedule: UpdateSchedule | None = None
    drop: scores.Score = scores.magnitude
    grow: scores.Score = scores.random
    replaces_step: bool = False
    track_explored: bool = False

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            distributions.check_sparsity(self.sparsity)
        elif self.masks is None:
            raise ValueError("sparsity must be given unless masks are, got None")
        distributions.check_distribution(self.distribution)
        check_dims(self.dims)
        if self.where is not None and not callable(self.where):
            raise TypeError(
                f"where must be a function of (path, leaf), got {self.where!r}"
            )
        if self.masks is not None:
            check_masks(self.masks)

    def leaves(self, params: Any) -> list[LeafPlan]:
        """What becomes of each leaf of ``params``.

        Args:
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

        Returns:
          One entry per leaf, in tree order.

        Raises:
          ValueError: if no leaf can be sparse, a pattern matches nothing, a layer
            would keep no weight, or the given masks do not fit.
        """
        flat = {
            path: leaf
            for path, leaf in paths.flatten_with_paths(params)
            if not paths.is_hole(leaf)
        }
        if isinstance(self.dims, Mapping):
            paths.check_patterns(self.dims, flat, "dims")
        axes = {path: resolve_axes(self.dims, path, x) for path, x in flat.items()}
        if self.masks is not None:
            return self._leaves_of_masks(params, flat, axes)

        reasons = {
            path: why_dense(path, x, axes[path], self.where) for path, x in flat.items()
        }
        layers = {
            path: Layer.of(path, x, own)
            for path, x in flat.items()
            if (own := axes[path]) is not None and not reasons[path]
        }
        if flat and not layers:
            listed = "; ".join(f"{path}: {why}" for path, why in reasons.items())
            raise ValueError(f"no parameter can be made sparse ({listed})")
        counts = distributions.allocate(
            self.distribution, list(layers.values()), self.sparsity or 0.0
        )
        return [
            LeafPlan(path, x, reasons[path], axes[path], layer, active)
            for path, x in flat.items()
            for layer in [layers.get(path)]
            for active in [counts[path] * layer.copies if layer else None]
        ]

    def _leaves_of_masks(
        self, params: Any, flat: dict[str, Any], axes: dict[str, Axes | None]
    ) -> list[LeafPlan]:
        masks = self._masks_by_path()
        expected = [path for path, _ in paths.flatten_with_paths(params)]
        for hole in [path for path, mask in masks.items() if mask is None]:
            # It may stand for a subtree, as wrappers make them, or for no leaf at all.
            if hole not in expected:
                masks.pop(hole)
                below = [path for path in expected if path.startswith(f"{hole}/")]
                masks.update(dict.fromkeys(below))
        if sorted(masks) != sorted(expected):
            raise ValueError(
                "masks must have the structure of the parameters, with "
                "optax.MaskedNode() at dense leaves: they hold "
                f"{', '.join(masks)}; the parameters are {', '.join(expected)}"
            )
        plans = []
        for path, x in flat.items():
            mask = masks[path]
            if mask is None:
                plans.append(
                    LeafPlan(path, x, "dense in masks", axes[path], None, None)
                )
                continue
            if tuple(mask.shape) != tuple(x.shape):
                raise ValueError(
                    f"the mask at {path!r} has shape {tuple(mask.shape)}, its "
                    f"parameter {tuple(x.shape)}"
                )
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"the mask at {path!r} belongs to a parameter of type {x.dtype}; "
                    "only real floating-point parameters can be sparse"
                )
            # A vector is the inputs of one neuron.
            own = axes[path] or Axes((), tuple(range(len(x.shape))), ())
            layer = Layer.of(path, x, own)
            plans.append(LeafPlan(path, x, "", own, layer, _count(mask)))
        if flat and not any(plan.layer for plan in plans):
            raise ValueError("masks hold no bool array: nothing would be sparse")
        return plans

    def _masks_by_path(self) -> dict[str, Any]:
        def is_dense(x):
            return x is None or paths.is_hole(x)

        leaves = jax.tree_util.tree_leaves_with_path(self.masks, is_leaf=is_dense)
        return {
            paths.path_string(key_path): None if is_dense(leaf) else leaf
            for key_path, leaf in leaves
        }

    def full_leaves(self, params: Any) -> frozenset[str]:
        """Paths of the leaves all of whose weights are active, and will stay so.

        A layer that its distribution saturates keeps its count like any other, so its
        mask never changes anything.
        """
        return frozenset(
            plan.path
            for plan in self.leaves(params)
            if plan.layer and plan.active == plan.layer.size * plan.layer.copies
        )

    def due(self, count: Any) -> Any:
        """Whether the masks change at step ``count``: a bool for an int, else an array.

        What a host loop asks before it calls ``update_topology``.
        """
        return False if self.schedule is None else self.schedule.due(count)

    def init(self, key: jax.Array, params: Any) -> tuple[Any, TopologyState]:
        """The first masks: exactly as many random active weights as each layer gets.

        Args:
          key: typed PRNG key.
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``; only shapes, dtypes
            and sharding types are used.

        Returns:
          Masks in the structure of ``params``, and what the topology keeps.

        Raises:
          ValueError: as ``leaves``.
        """
        plans = {plan.path: plan for plan in self.leaves(params)}
        given = {} if self.masks is None else self._masks_by_path()

        def at_leaf(path, leaf):
            plan = plans.get(path)
            if plan is None or plan.layer is None:
                return optax.MaskedNode()
            sharding = _sharding(leaf)
            if path in given:
                return sharded(jnp.asarray(given[path]), sharding)
            return random_mask(
                _leaf_key(key, path),
                leaf.shape,
                plan.active // plan.layer.copies,  # pyright: ignore
                axis=plan.axes.layer,  # pyright: ignore
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
            fan_ins=paths.map_with_paths(self._fan_in, masks),
        )

    def _fan_in(self, path: str, mask: Any, _: Any = None) -> Any:
        axes = None if paths.is_hole(mask) else resolve_axes(self.dims, path, mask)
        return optax.MaskedNode() if axes is None else fan_in(mask, axes)

    def update(
        self,
        key: jax.Array,
        count: jax.Array,
        masks: Any,
        state: TopologyState,
        params: Any,
        grads: Any,
    ) -> tuple[Any, TopologyState]:
        """Changes the masks once, whether or not a change is due.

        Per layer, the fraction that the schedule gives for ``count`` of the active
        weights is dropped, lowest drop scores first, and as many are grown, highest
        grow scores first, among all that are then inactive: those just dropped may
        come back. Weights that are infinite or NaN are not dropped.

        Args:
          key: typed PRNG key of this step.
          count: int32 scalar, the step.
          masks: the present masks.
          state: what the topology keeps.
          params: tree like the masks, the weights.
          grads: tree like the masks, the dense gradient.

        Returns:
          New masks with as many active weights in every layer, and the new state.
        """
        assert self.schedule is not None, "a static topology has no update"
        fraction = self.schedule.fraction(count)

        def at_leaf(path, leaf, mask, grad):
            if paths.is_hole(leaf) or paths.is_hole(mask):
                return mask
            axes = resolve_axes(self.dims, path, leaf)
            axis = None if axes is None else axes.layer
            drop_key, grow_key = jax.random.split(_leaf_key(key, path))
            count_in = functools.partial(
                jnp.sum, axis=axis, keepdims=True, dtype=jnp.int32
            )
            active = count_in(mask)
            # No update takes infinity or NaN to zero: such a weight stays active.
            finite = jnp.isfinite(leaf)
            dropped = jnp.floor(fraction * active).astype(jnp.int32)
            dropped = jnp.minimum(dropped, count_in(mask & finite))
            score = jnp.where(finite, self.drop(drop_key, leaf, grad), jnp.inf)
            kept = top_k_mask(score, active - dropped, where=mask, axis=axis)
            grown = top_k_mask(
                self.grow(grow_key, leaf, grad), dropped, where=~kept, axis=axis
            )
            return kept | grown

        new = paths.map_with_paths(at_leaf, params, masks, grads)
        turned = state.turned
        if jax.tree.leaves(turned):
            # As a change of the old masks the new ones take their place in memory.
            changes = jax.lax.optimization_barrier(
                map_masked(jnp.logical_xor, masks, new)
            )
            new = map_masked(jnp.logical_xor, masks, changes)
            turned = map_masked(lambda own, _: own, changes, turned)
        return new, TopologyState(
            updated_at=jnp.asarray(count, jnp.int32),
            explored=map_masked(jnp.logical_or, new, state.explored),
            turned=turned,
            fan_ins=map_masked_with_path(self._fan_in, new, state.fan_ins),
        )


def _count(mask: Any) -> int | None:
    """How many are True, if that can be known now: not while tracing, not from afar."""
    if isinstance(mask, Tracer):
        return None
    if not getattr(mask, "is_fully_addressable", True):
        return None
    return int(np.count_nonzero(np.asarray(mask)))


def _leaf_key(key: jax.Array, path: str) -> jax.Array:
    # By name, not by position: the same leaf draws the same numbers in any tree.
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def _sharding(leaf: Any) -> NamedSharding | None:
    """How a parameter is sharded over a mesh, as far as that is known now."""
    if not isinstance(leaf, jax.Array):
        return None
    if isinstance(leaf, Tracer):
        return explicit_sharding(leaf)
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None

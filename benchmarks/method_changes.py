"""One update of masks: by the library, and by sorting.

The sorting code is written as such methods usually are: ``jnp.argsort`` of a whole
kernel, whose k-th entry is the threshold, and ranks by two sorts within the groups of a
structure.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from benchmarks.method_arms import Method
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.methods.snfs import Redistribute, share
from sparseopt_jax.topologies.methods.srigl import Ablate
from sparseopt_jax.topologies.methods.str_ import SoftThreshold
from sparseopt_jax.topologies.phases import Phases
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.trees.leaf_keys import leaf_key

Arrays = dict[str, jax.Array]


def begin(method: Method, params: Any, grads: Any, count: int) -> tuple[Any, Any]:
    """Return the state and the weights before the update at a step.

    Methods with a memory have seen the gradient once.
    """
    assert method is not None and not isinstance(method, SoftThreshold)
    state: Any = so.sparsify(optax.identity(), method).init(params)
    if not isinstance(method, ForwardMasks):
        params = so.apply_masks(params, state)
        seen = method.observe(state.count, state.topology_state, grads)
        state = state._replace(topology_state=seen)
    return state._replace(count=jnp.int32(count)), params


def change(method: Method, state: Any, params: Any, grads: Any) -> Any:
    """Return the state after an update of its masks, by the library."""
    assert method is not None and not isinstance(method, SoftThreshold)
    masks, topology_state = method.update(
        *(_key(state), state.count, state.masks, state.topology_state, params, grads)
    )
    return state._replace(masks=masks, topology_state=topology_state)


def _key(state: Any) -> jax.Array:
    return jax.random.wrap_key_data(state.key)


def masks_of(state: Any) -> list[Arrays]:
    """Return the masks of a state, and the masks of trained weights if it has some."""
    trained = getattr(state.topology_state, "trained", ())
    return [state.masks, trained] if trained else [state.masks]


def change_by_sorting(
    method: Method, count: int, state: Any, params: Arrays, grads: Arrays
) -> list[Arrays]:
    """Return the masks after the same update, chosen by ``jnp.argsort``.

    Args:
      method: as in ``change``, with the same structure for all kernels.
      count: the step of the state.
      state: the state from ``begin``.
      params: kernels (inputs, neurons) by name.
      grads: their gradients.

    Returns:
      The same as ``masks_of`` for the state after ``change``.
    """
    if isinstance(method, ForwardMasks):
        return _largest_by_sorting(method, params)
    memory = state.topology_state.memory
    if isinstance(method, Phases):
        phase = sum(count >= start for start in method.starts[1:])
        method, memory = method.topologies[phase], memory[phase]
    assert isinstance(method, Rewiring) and method.schedule is not None
    leaves = {}
    for path, mask in state.masks.items():
        drop_key, grow_key = jax.random.split(leaf_key(_key(state), path))
        units = Cut.of(method.structure, mask.shape)
        seen = memory[path] if memory else grads[path]
        leaves[path] = _Leaf(
            units,
            units.any(mask),
            units.sum(method.drop(drop_key, params[path], grads[path])),
            functools.partial(units.scores, method.grow, grow_key, params[path], seen),
            seen,
        )
    if method.density is not None:
        leaves = _pruned(method, state.count, leaves, params)
    if getattr(method.schedule, "drop_fraction", 0.0):
        fraction = method.schedule.fraction(state.count)
        leaves = _replaced(method, fraction, leaves)
    return [{path: leaf.units.spread(leaf.active) for path, leaf in leaves.items()}]


class Cut(NamedTuple):
    """How a structure cuts a kernel (inputs, neurons) into units.

    Attributes:
      shape: shape of the kernel.
      split: the same, with a separate axis for blocks or groups.
      within: axis within a unit, or None if units are weights.
      group: axis within a group that keeps its number of units, or None for the kernel.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    within: int | None = None
    group: int | None = None

    @classmethod
    def of(cls, structure: Any, shape: tuple[int, ...]) -> "Cut":
        """Return the cut of a kernel of this shape."""
        inputs, neurons = shape
        match structure:
            case so.NM(_, m):
                return cls(shape, (inputs // m, m, neurons), group=1)
            case so.Block((1, width)):
                return cls(shape, (inputs, neurons // width, width), within=2)
            case so.Channel():
                return cls(shape, shape, within=0)
            case so.ConstantFanIn():
                return cls(shape, shape, group=0)
        return cls(shape, shape)

    def sum(self, x: jax.Array) -> jax.Array:
        """Sum over units."""
        x = x.reshape(self.split)
        return x if self.within is None else jnp.sum(x, self.within, keepdims=True)

    def scores(
        self, score: Any, key: jax.Array, param: jax.Array, grad: jax.Array
    ) -> jax.Array:
        """Sum scores over units; a random score is drawn for the unit itself."""
        if scores.is_drawn(score):
            param = self.any(param != 0)
            return score(key, param, param)
        return self.sum(score(key, param, grad))

    def any(self, mask: jax.Array) -> jax.Array:
        """Return the units that are active."""
        mask = mask.reshape(self.split)
        return mask if self.within is None else mask.any(self.within, keepdims=True)

    def spread(self, units: jax.Array) -> jax.Array:
        """Expand units to a mask of the kernel."""
        return jnp.broadcast_to(units, self.split).reshape(self.shape)

    def count(self, units: jax.Array) -> jax.Array:
        """Count the units that are True, in every group or in the kernel."""
        return jnp.sum(units, self.group, keepdims=True)


def largest(
    scores: jax.Array, k: Any, where: Any = True, axis: int | None = None
) -> jax.Array:
    """Mark the k largest scores by sorting; ties by the lowest index.

    With an axis, mark k in each group along it.
    """
    scores = jnp.where(where, scores, -jnp.inf)
    if axis is not None:
        ranks = jnp.argsort(jnp.argsort(-scores, axis), axis)
        return ranks < k
    flat = scores.ravel()
    k = jnp.asarray(k).ravel()[0]
    last = jnp.argsort(-flat)[jnp.maximum(k - 1, 0)]
    tied = (flat == flat[last]) & (jnp.arange(flat.size) <= last)
    return (((flat > flat[last]) | tied) & (k > 0)).reshape(scores.shape)


class _Leaf(NamedTuple):
    """One kernel in units: which are active, and their scores."""

    units: Cut
    active: jax.Array
    drop: jax.Array
    grow: Callable[[], jax.Array]
    seen: jax.Array


def _largest_by_sorting(method: ForwardMasks, params: Arrays) -> list[Arrays]:
    """Return masks of the largest weights; one sort serves used and trained ones."""
    topologies = [method.topology, *([method.trained] if method.trained else [])]
    plans = [{plan.path: plan for plan in t.leaves(params)} for t in topologies]
    masks: list[Arrays] = [{} for _ in topologies]
    for path, param in params.items():
        cut = Cut.of(method.topology.structure, param.shape)
        for found, plan in zip(masks, plans, strict=True):
            # The compiler finds that both sort the same array.
            chosen = largest(
                cut.sum(jnp.abs(param)), plan[path].per_cell, axis=cut.group
            )
            found[path] = cut.spread(chosen)
    return masks


def _pruned(
    method: Rewiring, count: jax.Array, leaves: dict[str, _Leaf], params: Arrays
) -> dict[str, _Leaf]:
    """Prune each kernel to the number of weights that its density requires."""
    assert method.density is not None
    progress = method.density.progress(count)
    targets = {}
    for plan in method.leaves(params):
        last: Any = plan.per_cell
        first = jnp.sum(leaves[plan.path].active)
        moved = jnp.round((first - last) * progress).astype(jnp.int32)
        targets[plan.path] = last + moved
    if not method.crosses_layers:
        return {
            path: leaf._replace(active=largest(leaf.drop, targets[path], leaf.active))
            for path, leaf in leaves.items()
        }
    scores, active = (
        jnp.concatenate([getattr(leaf, name).ravel() for leaf in leaves.values()])
        for name in ("drop", "active")
    )
    kept = largest(scores, sum(targets.values()), active)
    new, start = {}, 0
    for path, leaf in leaves.items():
        end = start + leaf.active.size
        still_active = kept[start:end].reshape(leaf.active.shape)
        new[path], start = leaf._replace(active=still_active), end
    return new


def _replaced(
    method: Rewiring, fraction: jax.Array, leaves: dict[str, _Leaf]
) -> dict[str, _Leaf]:
    """Drop a fraction of every kernel, and grow as many in every group."""
    kept, sizes = {}, {}
    for path, leaf in leaves.items():
        total = jnp.sum(leaf.active)
        left = total - jnp.floor(fraction * total).astype(jnp.int32)
        kept[path] = largest(leaf.drop, left, leaf.active)
        sizes[path] = leaf.units.count(leaf.active)
        for stage in method.stages:
            if isinstance(stage, Ablate):
                kept[path], sizes[path] = _ablated(leaf, kept[path], stage.gamma)
    if Redistribute() in method.stages:
        counts = [jnp.sum(kept[path]) for path in leaves]
        before = jnp.stack([jnp.sum(sizes[path]) for path in leaves])
        lost = jnp.sum(before) - sum(counts)
        sizes_of_memory = [
            jnp.sum(jnp.where(kept[path], jnp.abs(leaf.seen), 0)) / count
            for (path, leaf), count in zip(leaves.items(), counts, strict=True)
        ]
        room = [kept[path].size - n for path, n in zip(leaves, counts, strict=True)]
        shares = share(lost, jnp.stack(sizes_of_memory), jnp.stack(room))
        for index, (path, count) in enumerate(zip(leaves, counts, strict=True)):
            sizes[path] = count + shares[index]
    new = {}
    for path, leaf in leaves.items():
        units = leaf.units
        missing = sizes[path] - units.count(kept[path])
        grown = largest(leaf.grow(), missing, ~kept[path], units.group)
        new[path] = leaf._replace(active=kept[path] | grown)
    return new


def _ablated(leaf: _Leaf, kept: jax.Array, gamma: float) -> tuple[jax.Array, jax.Array]:
    """Return what SRigL keeps, and every neuron's new fan-in."""
    units, grow = leaf.units, leaf.grow()
    budget = jnp.sum(leaf.active)
    salient = kept | largest(grow, budget - jnp.sum(kept), ~kept)
    fan_in = units.count(leaf.active)
    stays = (units.count(salient) >= gamma * jnp.max(fan_in)) & (fan_in > 0)
    size = jnp.minimum(budget // jnp.maximum(jnp.sum(stays), 1), units.shape[0])
    target = jnp.where(stays, size, 0)
    most = jnp.minimum(units.count(kept), target)
    return largest(leaf.drop, most, kept, units.group), target

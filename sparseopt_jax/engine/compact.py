"""The owner of masks whose inner optimizer knows the active weights only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from sparseopt_jax.arrays.conditions import if_due
from sparseopt_jax.arrays.sharding_types import explicit_sharding, sharded, typed_like
from sparseopt_jax.engine.compact_inner import check_inner
from sparseopt_jax.engine.frozen_leaves import warn_of_frozen
from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.engine.inner_state import hold, initial_state, map_weight_state
from sparseopt_jax.engine.transformations import checked_inner
from sparseopt_jax.layers.plans import LeafPlan, masks_by_path
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.active_weights import ActiveIndices, Layout
from sparseopt_jax.masks.lost_masks import check_not_lost
from sparseopt_jax.masks.owners import check_update, record_owner
from sparseopt_jax.masks.state import (
    SparseState,
    check_order,
    find_states,
    map_masked,
    zero_masked,
)
from sparseopt_jax.masks.stored_masks import filled, loaded, stored, whole, without
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.prng_keys import load_key, store_key, typed_key


def compact_gradients(grads: Any, opt_state: Any) -> Any:
    """The gradients of the active weights alone, for a compact ``sparsify``.

    Sum these over micro-batches instead of the gradients: what is summed then has the
    size of the active weights, and ``tx.update`` takes it in place of the gradients.
    A topology that scores inactive weights by their gradients (RigL) needs those; one
    that grows at random (SET, SMET) does not.

    Args:
      grads: tree like the parameters.
      opt_state: any pytree that holds the state of a compact ``sparsify``.

    Returns:
      A tree like ``grads``, what is sparse replaced by its active entries.

    Raises:
      ValueError: if ``opt_state`` holds no such state.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> tx = so.sparsify(optax.adam(1e-3), so.static(0.75), compact=True)
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> state = tx.init(params)
      >>> grads = so.compact_gradients(params, state)
      >>> grads["kernel"].shape, grads["bias"].shape
      ((1, 8), (8,))
      >>> updates, state = tx.update(grads, state, params)
    """
    check_order("compact_gradients(grads, opt_state)", grads, opt_state)
    found = [
        state.masks
        for state in find_states(opt_state)
        if isinstance(state.masks, ActiveIndices)
    ]
    if not found:
        raise ValueError(
            "opt_state holds no active weights: build the optimizer with "
            "sparsify(..., compact=True)"
        )
    for indices in found:
        grads = active_entries(indices, grads)
    return grads


def make_compact(
    inner: optax.GradientTransformation,
    topology: Any,
    key: jax.typing.ArrayLike,
    *,
    host_updates: bool,
) -> optax.GradientTransformationExtraArgs:
    """The owner of active weights: what ``sparsify(compact=True)`` makes of them."""
    topology = _checked_topology(topology)
    inner = checked_inner(inner)
    check_inner(inner)
    named = environment.named_by(inner)
    moves = topology.moves and not host_updates

    def init_fn(params):
        init_key, own_key = jax.random.split(typed_key(key))
        masks, topology_state = topology.init(init_key, params)
        layouts = layouts_of(topology, params)
        if not layouts:
            # The tree of placeholders by which optax finds what belongs to parameters.
            indices, active = jnp.zeros([]), params
        else:
            indices = first_indices(layouts, masks)
            active = _initial(indices, zero_masked(masks, params))
        topology_state = stored(True, topology_state)
        record_owner(
            topology, inner, params, indices, packed=True, compact=True, key=key
        )
        inner_state = inner.init(active)
        if isinstance(indices, ActiveIndices):
            told = environment.of_masks(
                indices.weights(), topology_state.fan_ins, topology.dims
            )
            warn_of_frozen(inner, topology, told, inner_state, active)
        return SparseState(
            count=jnp.zeros([], jnp.int32),
            key=store_key(own_key),
            masks=indices,
            topology_state=topology_state,
            inner_state=inner_state,
        )

    def update_fn(updates, state, params=None, **extra_args):
        state = whole(state)
        shapes = {path: layout.shape for path, layout in state.masks.layouts}
        check_update(updates, params, extra_args, shapes)
        check_not_lost(topology, state, params)
        old = state
        masks, inner_state = in_types_of(params, inner, state.masks, state.inner_state)
        state = state._replace(masks=masks, inner_state=inner_state)
        count, topology_state = state.count, state.topology_state
        if moves or topology.memory is not None:
            _check_gradients(topology, state.masks, updates)

        def step(indices, fan_ins, updates, inner_state, params):
            told = environment.of_masks(indices.weights(), fan_ins, topology.dims)
            args = (
                active_entries(indices, updates),
                inner_state,
                active_entries(indices, params),
            )
            return environment.run(inner, named, told, *args, **extra_args)

        program = InnerProgram.of(
            step,
            state.masks,
            topology_state.fan_ins,
            updates,
            state.inner_state,
            params,
        )
        frozen = program.frozen() if moves else frozenset()

        def change(kept, params, grads, memory):
            indices, topology_state = kept
            masks = masks_like(indices, params)
            masks, topology_state = loaded(masks, topology_state, params)
            moved, topology_state = topology.update(
                jax.random.fold_in(load_key(state.key, key), count),
                *(count, without(frozen, masks)),
                topology_state._replace(memory=memory),
                *(params, _spread(indices, grads, params)),
            )
            topology_state = stored(True, topology_state._replace(memory=()))
            return indices.moved(filled(moved, masks)), topology_state

        def step_and_change(kept, params, grads, memory, inner_state):
            indices, topology_state = kept
            if early is None:
                stepped = program.updates_only(
                    indices, topology_state.fan_ins, grads, inner_state, params
                )
            else:
                stepped, _ = early
            stepped = _zeroing(indices, indices, stepped, params)
            return change(kept, optax.apply_updates(params, stepped), grads, memory)

        topology_state = topology.observe(count, topology_state, updates)
        memory = topology_state.memory
        kept = state.masks, topology_state._replace(memory=())
        if moves and topology.replaces_step:
            kept = if_due(topology.due(count), change, kept, params, updates, memory)
        stepping, fan_ins = kept[0], kept[1].fan_ins
        early = None
        if moves and not topology.replaces_step:
            if not program.is_repeatable:
                # What the host was asked for is not to be asked for again.
                args = (stepping, fan_ins, updates, state.inner_state, params)
                early = program.run(args)
            kept = if_due(
                *(topology.due(count), step_and_change, kept),
                *(params, updates, memory, state.inner_state),
            )
        indices, topology_state = kept

        replaces = topology.moves and topology.replaces_step
        replaced = replaces and topology_state.updated_at == count

        def held(new):
            return hold(replaced, state.inner_state, new) if replaces else new

        def refreshed_where_taken(new):
            return refreshed(inner, state.masks, indices, new, params)

        if early is None:
            args = (stepping, fan_ins, updates, state.inner_state, params)
            stepped, inner_state = program.run(args, held, refreshed_where_taken)
        else:
            stepped, inner_state = early[0], refreshed_where_taken(held(early[1]))
        if replaces:
            stepped = jax.tree.map(
                lambda u: jnp.where(replaced, jnp.zeros_like(u), u), stepped
            )
        new = SparseState(
            count=jnp.asarray(optax.safe_increment(count)),
            key=state.key,
            masks=indices,
            topology_state=topology_state._replace(memory=memory),
            inner_state=inner_state,
        )
        return _zeroing(stepping, indices, stepped, params), typed_like(old, new)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _checked_topology(topology: Any) -> Rewiring:
    if not isinstance(topology, Rewiring):
        raise TypeError(
            "compact=True needs one topology, as static, set_ and rigl make it, got "
            f"{getattr(topology, 'name', repr(topology))}: leave compact out"
        )
    if not topology.keeps_counts:
        raise ValueError(
            f"{topology.name} changes how many weights a layer has, but compact=True "
            "has room for one number: leave compact out, or use a topology that keeps "
            "the number, such as set_ or rigl"
        )
    return topology


def _check_gradients(topology: Rewiring, indices: ActiveIndices, grads: Any) -> None:
    layouts = dict(indices.layouts)
    for path, x in paths.leaves_by_path(grads).items():
        if path not in layouts or layouts[path].is_full:
            continue
        is_compact = jnp.shape(x) == layouts[path].shape
        if is_compact and (topology.memory or topology.dense_gradients):
            raise ValueError(
                f"{topology.name} scores inactive weights by their gradients, which "
                f"the compact gradient of {path!r} leaves out: pass the gradient "
                "itself, or use a topology that grows at random"
            )


def layouts_of(topology: Rewiring, params: Any) -> dict[str, Layout]:
    """How the active weights of every sparse leaf stand side by side, by path.

    Args:
      topology: decides what is sparse.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      One layout for each sparse leaf.

    Raises:
      ValueError: as ``Topology.plan``; for given masks whose cells have different
        numbers of active units, and for leaves that are sharded across active weights.
    """
    found = {}
    for plan in topology.plan(params):
        if plan.units is None:
            continue
        per_cell = plan.per_cell
        if per_cell is None:
            per_cell = _per_cell(plan, masks_by_path(topology.masks)[plan.path])
        found[plan.path] = Layout(plan.units, per_cell)
        if plan.units.per_cell >= 2**31:
            raise ValueError(
                f"{plan.path!r} with shape {plan.units.shape} has more units than an "
                "int32 can count; leave compact out, or use larger blocks"
            )
        sharding = getattr(plan.leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            check_sharding(plan.path, found[plan.path], sharding)
    return found


def _per_cell(plan: LeafPlan, mask: Any) -> int:
    units = plan.units
    assert units is not None
    if isinstance(mask, Tracer):
        raise ValueError(
            f"the mask at {plan.path!r} is traced, but compact=True needs to know how "
            "many weights are active: build the optimizer outside of jit"
        )
    counts = np.asarray(units.count(units.any(jnp.asarray(mask))))
    if counts.min() != counts.max():
        raise ValueError(
            f"the mask at {plan.path!r} has between {counts.min()} and {counts.max()} "
            "active units in a layer or neuron, but compact=True has room for one "
            "number: leave compact out, or structure out"
        )
    return int(counts.max())


def check_sharding(path: str, layout: Layout, sharding: NamedSharding) -> None:
    """Raises if active weights would have to be gathered from other devices.

    Args:
      path: the leaf's path, for the error.
      layout: how its active weights stand.
      sharding: how the leaf is sharded.

    Raises:
      ValueError: if the leaf is split along an axis that they cross.
    """
    if layout.is_full:
        return
    spec = [*sharding.spec, *[None] * len(layout.units.shape)]
    split = [a for a in layout.crossed if spec[a] is not None]
    if split:
        raise ValueError(
            f"{path!r} with shape {layout.units.shape} is sharded along axis "
            f"{split[0]} by {sharding.spec}: its active weights lie across that axis, "
            "and every device would have to gather all of it at every step. Shard it "
            "along other axes only: structure=ConstantFanIn() or NM(n, m) leave the "
            "neurons' axis free, a stack of layers its own; or leave compact out"
        )


def masks_like(indices: ActiveIndices, params: Any) -> Any:
    """The masks as bool arrays, in type sharded as their weights are."""
    return map_masked(
        lambda param, mask: sharded(mask, explicit_sharding(param)),
        *(params, indices.masks()),
    )


def in_types_of(
    params: Any,
    inner: optax.GradientTransformation,
    indices: ActiveIndices,
    inner_state: Any,
) -> tuple[ActiveIndices, Any]:
    """What is kept of active weights, in type sharded as the weights themselves are.

    A state whose shardings come from the names on boxes has none for it.

    Args:
      params: the parameters.
      inner: what the state belongs to.
      indices: places of the active weights.
      inner_state: the state of ``inner``.

    Returns:
      The same without any change where no mesh is explicit.
    """
    shardings = {
        path: explicit_sharding(x) for path, x in paths.leaves_by_path(params).items()
    }
    if not any(shardings.values()):
        return indices, inner_state
    layouts = dict(indices.layouts)

    def at_leaf(path, index):
        of_leaf = shardings.get(path)
        if paths.is_hole(index) or of_leaf is None:
            return index
        spec = layouts[path].spec(index.shape, of_leaf.spec)
        return sharded(index, NamedSharding(of_leaf.mesh, spec or PartitionSpec()))

    tree = paths.map_with_paths(at_leaf, indices.tree)
    indices = indices.with_tree(tree)
    return indices, typed_like(
        initial_state(inner, active_entries(indices, params)), inner_state
    )


def refreshed(
    inner: optax.GradientTransformation,
    old: ActiveIndices,
    new: ActiveIndices,
    inner_state: Any,
    params: Any,
) -> Any:
    """The inner state, with what ``inner.init`` gives in slots that were taken anew."""
    layouts = dict(new.layouts)
    stays = paths.map_with_paths(
        lambda path, a, b: a if paths.is_hole(a) else a == b, *(old.tree, new.tree)
    )
    fresh = initial_state(inner, active_entries(new, params))

    def keep(mask, state, fresh):
        return jnp.where(mask, state, fresh).astype(state.dtype)

    def of_weights(path, own):
        return own if paths.is_hole(own) else layouts[path].spread(own)

    def of_blocks(path, own):
        if paths.is_hole(own) or not layouts[path].has_rows:
            return optax.MaskedNode()
        return layouts[path].spread(own)[..., :1]

    # What is kept for each weight, and what is kept once for a block.
    for masks_of in (of_weights, of_blocks):
        masks = paths.map_with_paths(masks_of, stays)
        inner_state = map_weight_state(keep, masks, inner_state, fresh)
    return inner_state


def first_indices(layouts: dict[str, Layout], masks: Any) -> ActiveIndices:
    """The places of the active weights of masks, in ascending order."""

    def at_leaf(path, mask):
        if paths.is_hole(mask) or layouts[path].is_full:
            return optax.MaskedNode()
        return layouts[path].index(mask)

    tree = paths.map_with_paths(at_leaf, masks)
    return ActiveIndices.of(tree, tuple(layouts.items()))


def _initial(indices: ActiveIndices, params: Any) -> Any:
    """The active weights, or what stands for their shape."""
    layouts = dict(indices.layouts)

    def at_leaf(path, param, index):
        if isinstance(param, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(layouts[path].shape, param.dtype)
        return layouts[path].take(param, index)

    return _at_indices(indices, at_leaf, params)


def _at_indices(indices: ActiveIndices, function: Any, tree: Any) -> Any:
    """Maps ``function(path, leaf, index)`` over what is sparse in a tree."""
    by_path = paths.leaves_by_path(indices.tree)
    return paths.map_with_paths(
        lambda path, x: (
            function(path, x, by_path[path])
            if path in by_path and not paths.is_hole(x)
            else x
        ),
        tree,
    )


def active_entries(indices: ActiveIndices, tree: Any) -> Any:
    """The active entries of a tree, which may have nothing else already."""
    layouts = dict(indices.layouts)

    def at_leaf(path, x, index):
        layout = layouts[path]
        if jnp.shape(x) == layout.shape:
            return x
        if jnp.shape(x) != layout.units.shape:
            raise ValueError(
                f"{path!r} has shape {jnp.shape(x)}, but its parameter "
                f"{layout.units.shape} and its active weights {layout.shape}"
            )
        return layout.take(x, index)

    return _at_indices(indices, at_leaf, tree)


def _spread(indices: ActiveIndices, grads: Any, params: Any) -> Any:
    """Gradients like the parameters, zero where only the active ones are known."""
    layouts = dict(indices.layouts)
    by_path = paths.leaves_by_path(params)

    def at_leaf(path, x, index):
        layout = layouts[path]
        if jnp.shape(x) != layout.shape:
            return x
        return layout.put(jnp.zeros_like(by_path[path], x.dtype), index, x)

    return _at_indices(indices, at_leaf, grads)


def _zeroing(
    stepping: ActiveIndices, ending: ActiveIndices, updates: Any, params: Any
) -> Any:
    """The updates where a weight was active and stays so, and -params elsewhere."""
    layouts = dict(stepping.layouts)
    before = paths.leaves_by_path(stepping.tree)
    after = paths.leaves_by_path(ending.tree)

    def at_leaf(path, param, update):
        if path not in before or paths.is_hole(param):
            return update
        layout, index = layouts[path], before[path]
        # In the wider of both types: a narrowed -p would leave a remainder of p.
        zeroing = (-param).astype(jnp.result_type(update, param))
        if after[path] is not index:
            stays = layout.spread(after[path] == index)
            update = jnp.where(stays, update, layout.take(zeroing, index))
        return layout.put(zeroing, index, update)

    return paths.map_with_paths(at_leaf, params, updates)

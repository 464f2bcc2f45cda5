"""The owner of the masks: a transformation around any optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.arrays.conditions import if_due
from sparseopt_jax.engine.compact import make_compact
from sparseopt_jax.engine.frozen_leaves import warn_of_frozen
from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.engine.inner_state import hold, refresh
from sparseopt_jax.engine.placement import check_placement
from sparseopt_jax.engine.straight_through import make_straight_through
from sparseopt_jax.engine.transformations import checked_inner
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.lost_masks import check_not_lost
from sparseopt_jax.masks.owners import check_update, record_owner
from sparseopt_jax.masks.state import SparseState, map_masked, zero_masked
from sparseopt_jax.masks.stored_masks import (
    filled,
    loaded,
    stored,
    unpacked,
    whole,
    without,
)
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.trees.evened_boxes import with_evened_boxes
from sparseopt_jax.trees.prng_keys import check_key, load_key, store_key, typed_key


def sparsify(
    inner: optax.GradientTransformation,
    topology: Topology,
    *,
    key: jax.typing.ArrayLike = 0,
    host_updates: bool = False,
    packed: bool = False,
    compact: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains sparse with any optimizer.

    Each step the masked gradient goes through ``inner``, once, and the resulting update
    makes inactive weights exactly zero:

    .. math::
      u = \begin{cases} \mathrm{inner}(m \odot g) & m = 1 \\ -w & m = 0 \end{cases}

    so that ``optax.apply_updates`` is all that follows. When the topology is due, its
    masks change within the step. Whatever ``inner`` keeps for an inactive weight has
    the value that ``inner.init`` gives, so that a newly grown weight starts at zero
    with a fresh state, and a weight that is dropped and regrown at once keeps its own.

    The package's transformations read the masks inside of it. One of your own receives
    them if its ``update`` names them, ``def update(updates, state, params=None, *,
    masks, **extra_args)``; all others see only the arguments that you pass.

    Leaves that ``inner`` never moves, as ``optax.partition`` with ``set_to_zero`` has
    them, keep their masks, and a warning at ``init`` names them where a topology has
    chosen those masks.

    Put it outermost, except for ``optax.MultiSteps``, ``optax.apply_if_finite`` and
    the like around it: nothing may scale or narrow the update afterwards.

    Args:
      inner: any transformation, ready with its learning rate, say
        ``optax.chain(scale_by_sparseopt(), optax.sgd(0.1))``. A correction before a
        transformation that normalises the gradient, such as Adam, is divided out
        again: that is warned of.
      topology: which weights are active, from ``static``, ``set_``, ``rigl`` or any
        other method.
      key: seed or PRNG key, the same on every replica: any integer that
        ``jax.random.key`` takes, a typed key, or its uint32 data.
      host_updates: leave the topology's changes to ``update_topology``, called from
        the host; the step then contains no condition.
      packed: keep the masks as one bit a weight instead of one byte. The results are
        the same, to the last bit; ``get_masks`` gives bool arrays in any case. In the
        state they are ``PackedMask`` nodes, which ``optax.tree.map_params`` cannot map
        together with trees of the parameters.
      compact: let ``inner`` see and keep active weights alone, side by side in an array
        of their number, so that moments take memory in proportion to the density. It
        needs a topology that keeps the number of active weights. The results are those
        of ``compact=False``, up to the rounding of sums over a layer, such as norms.
        In the state masks are the places of active units, int32; ``masks=`` that a
        transformation inside reads are ``ActiveWeights``. A leaf that is split over
        devices may be split along axes only that its active weights do not cross: for
        ``ConstantFanIn`` and ``NM`` the neurons'.

    Returns:
      The transformation; its state is a ``SparseState``. ``update`` needs ``params``
      and hands further keyword arguments down to ``inner``.

    Raises:
      TypeError: if ``topology`` is no topology, or ``inner`` no transformation.
      ValueError: if ``inner`` holds ``optax.MultiSteps``, which belongs outside, or
        ``optax.contrib.sam`` without its opaque mode; for ``packed`` with ``compact``;
        with ``compact``, if ``inner`` gives a weight something else when it
        sees the active ones alone (Muon, Adafactor), named in the message, or if the
        topology changes numbers of active weights; at ``init``, where the topology
        does not fit the parameters; at ``update``, without ``params``, with ``masks``
        from outside, or with gradients of other shapes than the parameters.

    Note:
      With ``optax.inject_hyperparams`` name ``inner``, ``topology``, ``host_updates``,
      ``packed`` and ``compact`` in ``static_args``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> tx = so.sparsify(optax.adam(1e-3), so.rigl(0.75, every=100, stop=1000))
      >>> state = tx.init(params)
      >>> params = so.apply_masks(params, state)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> int((params["kernel"] != 0).sum())
      8
    """
    check_static(host_updates=host_updates, packed=packed, compact=compact)
    check_key(key)
    check_placement(inner)
    if compact and packed:
        raise ValueError(
            "packed and compact are two ways to keep masks: with compact=True they are "
            "the places of active weights already; leave one of both out"
        )
    if compact:
        owner = make_compact(inner, topology, key, host_updates=host_updates)
    else:
        owner = make_owner(
            inner,
            topology,
            key=key,
            host_updates=host_updates,
            packed=packed,
            zeros=True,
        )
    return with_evened_boxes(owner)


def make_owner(
    inner: optax.GradientTransformation,
    topology: Topology,
    *,
    key: jax.typing.ArrayLike,
    host_updates: bool,
    packed: bool = False,
    zeros: bool,
) -> optax.GradientTransformationExtraArgs:
    """``sparsify``, with or without the updates that make inactive weights zero.

    Args:
      inner: as in ``sparsify``.
      topology: as in ``sparsify``.
      key: as in ``sparsify``.
      host_updates: as in ``sparsify``.
      packed: as in ``sparsify``.
      zeros: False leaves the updates of inactive weights at what ``inner`` makes of
        zero gradients. The weights after the step are then not known here, so a
        topology that follows the step sees those before it.

    Returns:
      The transformation.
    """
    check_key(key)
    if not isinstance(topology, Topology):
        raise TypeError(
            f"topology must be a Topology, as static, set_ and rigl make it, got "
            f"{topology!r}"
        )
    if topology.stays_dense:
        if not zeros:
            raise TypeError(
                f"{topology.name} keeps the weights behind its masks dense, which "
                "needs sparsify; sparseopt masks them"
            )
        return make_straight_through(
            inner,
            topology,  # pyright: ignore
            key,
            host_updates=host_updates,
            packed=packed,
        )
    inner = checked_inner(inner)
    named = environment.named_by(inner)
    if host_updates and topology.replaces_step is None:
        raise ValueError(
            "host_updates needs phases that all replace the gradient step, or all "
            "follow it"
        )

    moves = topology.moves and not host_updates
    moves_first = moves and (topology.replaces_step is not False or not zeros)
    moves_after = moves and topology.replaces_step is not True and zeros
    replaces = topology.moves and topology.replaces_step is not False

    def due(count, *, first):
        if moves_first != moves_after:
            return topology.due(count)
        return topology.due(count) & (topology.replaces(count) == first)

    def init_fn(params):
        init_key, own_key = jax.random.split(typed_key(key))
        masks, topology_state = topology.init(init_key, params)
        if moves_after:
            unturned = jax.tree.map(jnp.zeros_like, masks)
            topology_state = topology_state._replace(turned=unturned)
        inner_state = inner.init(zero_masked(masks, params))
        told = environment.of_masks(masks, topology_state.fan_ins, topology.dims)
        warn_of_frozen(inner, topology, told, inner_state, params)
        masks, topology_state = stored(packed, (masks, topology_state))
        record_owner(topology, inner, params, masks, packed, key=key, is_link=not zeros)
        return SparseState(
            count=jnp.zeros([], jnp.int32),
            key=store_key(own_key),
            masks=masks,
            topology_state=topology_state,
            inner_state=inner_state,
        )

    def update_fn(updates, state, params=None, **extra_args):
        check_update(updates, params, extra_args)
        state = whole(state) if packed else state
        check_not_lost(topology, state, params)
        count, topology_state = state.count, state.topology_state
        # Full layers are dense to everything below: they cost nothing, and a network
        # of sparsity 0 runs the inner optimizer's own program, to the last bit.
        state_masks = without(topology.full_leaves(params), state.masks)

        def step(masks, fan_ins, updates, inner_state, params):
            told = environment.of_masks(masks, fan_ins, topology.dims)
            masked = zero_masked(masks, updates)
            args = (masked, inner_state, params)
            return environment.run(inner, named, told, *args, **extra_args)

        program = InnerProgram.of(
            step,
            unpacked(state_masks, params),
            topology_state.fan_ins,
            updates,
            state.inner_state,
            params,
        )
        frozen = program.frozen() if topology.moves else frozenset()

        def change(kept, params, grads, memory):
            step_key = jax.random.fold_in(load_key(state.key, key), count)
            moving, topology_state = kept
            masks, topology_state = loaded(moving, topology_state, params)
            masks, topology_state = topology.update(
                *(step_key, count, masks, topology_state._replace(memory=memory)),
                *(params, grads),
            )
            return stored(packed, (masks, topology_state._replace(memory=())))

        def step_and_change(kept, params, grads, memory, inner_state):
            # The step is taken a second time: handed over instead, the stepped weights
            # would have to be written out at every step, due or not.
            moving, topology_state = kept
            masks = unpacked(filled(moving, state_masks), params)
            if early is None:
                stepped = program.updates_only(
                    masks, topology_state.fan_ins, grads, inner_state, params
                )
            else:
                stepped, _ = early
            stepped = optax.apply_updates(params, _zeroing(masks, stepped, params))
            return change(kept, stepped, grads, memory)

        topology_state = topology.observe(count, topology_state, updates)
        memory = topology_state.memory
        topology_state = topology_state._replace(memory=())
        # What the inner optimizer never moves is left as it is.
        kept = (without(frozen, state_masks), topology_state)
        if moves_first:
            kept = if_due(due(count, first=True), change, kept, params, updates, memory)
            state_masks = filled(kept[0], state_masks)
        masks = unpacked(state_masks, params)
        stepping, fan_ins = masks, kept[1].fan_ins
        early = None
        if moves_after:
            if not program.is_repeatable:
                # What the host was asked for is not to be asked for again.
                args = (masks, fan_ins, updates, state.inner_state, params)
                early = program.run(args)
            kept = if_due(
                *(due(count, first=False), step_and_change, kept),
                *(params, updates, memory, state.inner_state),
            )
            state_masks = filled(kept[0], state_masks)
            masks = unpacked(state_masks, params)
            # The old masks, told from the new ones: while they themselves were in use,
            # the new ones could not take their place in memory, and every step would
            # copy them.
            changed = kept[1].updated_at == count
            stepping = map_masked(
                lambda turned, new: new ^ (turned & changed),
                unpacked(kept[1].turned, params),
                masks,
            )
        topology_state = kept[1]

        changed = topology.moves and topology_state.updated_at == count
        replaced = replaces and (changed & topology.replaces(count))

        def held(new):
            return hold(replaced, state.inner_state, new) if replaces else new

        def refreshed(new):
            return refresh(inner, masks, new, params, changed)

        if early is None:
            args = (stepping, fan_ins, updates, state.inner_state, params)
            stepped, inner_state = program.run(args, held, refreshed)
        else:
            stepped, inner_state = early[0], refreshed(held(early[1]))
        if replaces:
            stepped = jax.tree.map(
                lambda u: jnp.where(replaced, jnp.zeros_like(u), u), stepped
            )
        if zeros:
            # What SET grows starts at zero, whatever the step made of it before.
            both = _both(stepping, masks) if moves_after else masks
            stepped = _zeroing(both, stepped, params)
        return stepped, SparseState(
            count=jnp.asarray(optax.safe_increment(count)),
            key=state.key,
            masks=filled(state_masks, state.masks),
            topology_state=topology_state._replace(memory=memory),
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _zeroing(masks: Any, updates: Any, params: Any) -> Any:
    """The updates, and -params where a mask is False."""
    # In the wider of both types: a narrowed -p would leave a remainder of p.
    return map_masked(
        lambda m, u, p: jnp.where(m, u, -p).astype(jnp.result_type(u, p)),
        masks,
        updates,
        params,
    )


def _both(masks: Any, others: Any) -> Any:
    return map_masked(jnp.logical_and, masks, others)

"""The engine of masks of the forward pass alone, behind which weights stay dense."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arrays.conditions import if_due
from sparseopt_jax.engine.inner_state import has_caches, initial_state, without_caches
from sparseopt_jax.engine.transformations import checked_inner
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.lost_masks import check_not_lost
from sparseopt_jax.masks.owners import check_update, record_owner
from sparseopt_jax.masks.state import ForwardMaskState
from sparseopt_jax.masks.stored_masks import stored, unpacked, whole
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.schedules import FOREVER, UpdateSchedule
from sparseopt_jax.trees.prng_keys import store_key, typed_key


def make_straight_through(
    inner: optax.GradientTransformation,
    method: ForwardMasks,
    key: jax.typing.ArrayLike,
    *,
    host_updates: bool,
    packed: bool,
) -> optax.GradientTransformationExtraArgs:
    """The owner of masks of the forward pass: what ``sparsify`` makes of them."""
    inner = checked_inner(inner)
    named = environment.named_by(inner)

    def init_fn(params):
        init_key, own_key = jax.random.split(typed_key(key))
        masks, topology_state = method.init(init_key, params)
        trained = method.init_trained(init_key, params)
        masks, trained = stored(packed, (masks, trained))
        record_owner(method, inner, params, masks, packed, key=key)
        return ForwardMaskState(
            count=jnp.zeros([], jnp.int32),
            key=store_key(own_key),
            masks=masks,
            trained_masks=trained,
            topology_state=topology_state,
            inner_state=inner.init(params),
        )

    def update_fn(updates, state, params=None, **extra_args):
        check_update(updates, params, extra_args)
        state = whole(state) if packed else state
        check_not_lost(method, state, params)
        masks = unpacked(state.masks, params)
        trained = unpacked(state.trained_masks, params)
        told = environment.of_masks(masks, state.topology_state.fan_ins, method.dims)
        updates = method.gradient(masks, trained, params, updates)
        args = (updates, state.inner_state, params)
        updates, inner_state = environment.run(inner, named, told, *args, **extra_args)
        # Weight decay and momentum would move what is not trained, too.
        updates = method.restricted(trained, updates)
        state = state._replace(inner_state=inner_state)
        if not host_updates:
            state = _refreshed_if_due(inner, method, state, params, updates, packed)
        return updates, state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _refreshed_if_due(
    inner: optax.GradientTransformation,
    method: ForwardMasks,
    state: Any,
    params: Any,
    updates: Any,
    packed: bool,
) -> ForwardMaskState:
    def refresh(light, params, updates):
        stepped = optax.apply_updates(params, updates)
        return with_chosen_masks(method, light, state.count, stepped, packed)

    always = method.schedule == UpdateSchedule(1, 0, FOREVER)
    light = if_due(
        always or method.due(state.count),
        refresh,
        state._replace(inner_state=()),
        params,
        updates,
    )
    inner_state = state.inner_state
    changed = light.topology_state.updated_at == state.count
    if has_caches(inner_state):
        fresh = initial_state(inner, params)
        inner_state = without_caches(changed, inner_state, fresh)
    return light._replace(inner_state=inner_state)


def with_chosen_masks(
    method: ForwardMasks,
    state: ForwardMaskState,
    count: jax.Array,
    params: optax.Params,
    packed: bool,
) -> ForwardMaskState:
    """Return the state with masks of the largest of these weights, chosen anew."""
    masks, topology_state = method.update(
        state.key,
        count,
        unpacked(state.masks, params),
        state.topology_state,
        params,
        params,
    )
    masks, trained = stored(packed, (masks, method.choose_trained(params)))
    return state._replace(
        masks=masks, trained_masks=trained, topology_state=topology_state
    )

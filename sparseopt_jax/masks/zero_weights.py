"""Zeros at inactive weights, unless their owner keeps the weights dense."""

from typing import Any

import optax

from sparseopt_jax.masks.compact_kernel import dense_shapes
from sparseopt_jax.masks.state import (
    check_masks_fit,
    check_order,
    merged_masks,
    needed_states,
    stays_dense,
    warn_of_averages,
    zero_masked,
)


def apply_updates(params: Any, updates: Any, opt_state: Any) -> Any:
    """Apply updates, then set exact zeros where the new masks are False.

    Weights that stay dense behind their masks, as with ``ste``, are kept.

    Use it for chains in which a transformation follows the masks, as with
    ``sparseopt``, and for ``optax.lookahead`` around ``sparsify``; other updates of
    ``sparsify`` need only ``optax.apply_updates``.

    Args:
      params: any pytree of arrays, or ``optax.LookaheadParams``.
      updates: tree like ``params``.
      opt_state: the state returned with ``updates``.

    Returns:
      A tree like ``params``.

    Raises:
      TypeError: if the arguments are swapped.
      ValueError: if ``opt_state`` holds no masks.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> tx = optax.chain(so.sparseopt(so.static(0.75)), optax.sgd(0.1))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = so.apply_updates(params, updates, state)
      >>> int((params["kernel"] != 0).sum())
      8
    """
    check_order("apply_updates(params, updates, opt_state)", params, opt_state)
    check_order("apply_updates(params, updates, opt_state)", updates, opt_state)
    masks = weight_masks(opt_state)
    new = optax.apply_updates(params, updates)
    if isinstance(new, optax.LookaheadParams):
        return type(new)(*(zero_masked(masks, weights) for weights in new))
    return zero_masked(masks, new)


def zero_inactive(params: Any, opt_state: Any) -> Any:
    """Return parameters with zeros at inactive weights, except those that stay dense.

    Args:
      params: any pytree of arrays.
      opt_state: an optimizer state.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: if ``opt_state`` holds no masks, or a mask fits no parameter.
    """
    warn_of_averages(opt_state)
    masks = weight_masks(opt_state)
    check_masks_fit(masks, dense_shapes(params))
    return zero_masked(masks, params)


def weight_masks(opt_state: Any) -> Any:
    """Return ``get_masks``, but with holes at weights that stay dense."""
    states = needed_states(opt_state)
    return merged_masks([state for state in states if not stays_dense(state)])

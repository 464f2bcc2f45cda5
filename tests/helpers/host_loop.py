"""One step of the documented loop with updates of the masks from the host."""

from collections.abc import Callable
from typing import Any

import optax

import sparseopt_jax as so


def step_with_update(
    topology: so.Topology,
    update: Callable[..., Any],
    change: Callable[..., Any],
    *args: Any,
    due: bool,
) -> tuple[Any, Any]:
    """Take a step, and update the masks before or after it if they are due.

    Args:
      topology: the topology.
      update: ``tx.update``.
      change: ``so.update_topology`` of the transformation.
      *args: gradients, state and parameters.
      due: whether to update the masks.

    Returns:
      The new state and parameters.
    """
    grads, state, params = args
    if due and topology.replaces_step:
        state, params = change(grads, state, params)
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    if due and not topology.replaces_step:
        state, params = change(grads, state, params)
    return state, params

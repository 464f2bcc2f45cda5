"""Losses that the inner optimizer evaluates itself, of masked weights."""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.masks.storage import MaskStorage, View


def masked_losses(
    storage: MaskStorage, view: View, extra_args: Mapping[str, Any]
) -> dict[str, Any]:
    """Return keyword arguments whose losses see the weights as the optimizer does.

    ``optax.contrib.sam`` calls ``grad_fn``, and Sophia differentiates ``obj_fn``: the
    masked step must hold the gradients of active weights only, like those that the
    caller passes. The ``value_fn`` of line searches is unchanged, because they cache
    its dense gradient, by which the next update of the masks may grow weights.

    Args:
      storage: decides what the optimizer sees of the weights.
      view: the masks.
      extra_args: the caller's keyword arguments.

    Returns:
      The arguments to pass on.
    """
    found = dict(extra_args)
    grad_fn, obj_fn = found.get("grad_fn"), found.get("obj_fn")
    if storage.is_compact:
        return found

    def masked_grad_fn(params, *args, **kwargs):
        seen = storage.take(view, params)
        return storage.gradient(view, grad_fn(seen, *args, **kwargs), params)

    def masked_obj_fn(params, *args, **kwargs):
        return obj_fn(storage.take(view, params), *args, **kwargs)

    if callable(grad_fn):
        found["grad_fn"] = masked_grad_fn
    if callable(obj_fn):
        found["obj_fn"] = masked_obj_fn
    return found

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
    if storage.is_compact:
        return dict(extra_args)

    def with_masked_gradient(grad_fn):
        def masked(params, *args, **kwargs):
            seen = storage.take(view, params)
            return storage.gradient(view, grad_fn(seen, *args, **kwargs), params)

        return masked

    def of_masked_weights(obj_fn):
        def masked(params, *args, **kwargs):
            return obj_fn(storage.take(view, params), *args, **kwargs)

        return masked

    wrappers = {"grad_fn": with_masked_gradient, "obj_fn": of_masked_weights}
    return {
        name: wrappers[name](x) if name in wrappers and callable(x) else x
        for name, x in extra_args.items()
    }

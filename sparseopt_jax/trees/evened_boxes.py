"""Updates in which only the gradients, the state or the parameters are boxed."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from sparseopt_jax.trees import paths
from sparseopt_jax.trees.boxes import has_boxes, is_box, unbox_tree, unboxed


def evened(update: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Wrap ``update(grads, state, params)``: remove boxes if only some trees have them.

    Users unbox parameters, gradients or a whole training state, before or after
    ``init``, and optax maps over all of them together.

    Args:
      update: returns a tree like the parameters, and the new state.

    Returns:
      The function. If all trees are boxed, or none is, it is ``update``. Otherwise, its
      first result has the boxes of the parameters, so that ``optax.apply_updates``
      accepts it, and the new state has those of the old one.
    """

    @functools.wraps(update)
    def evened_update(grads, state, params=None, **extra_args):
        if params is None or _agree(grads, state, params):
            return update(grads, state, params, **extra_args)
        plain = unbox_tree((grads, state, params))
        like_params, new_state = update(*plain, **extra_args)
        return reboxed(params, like_params), reboxed(state, new_state)

    return evened_update


def _agree(grads: Any, state: Any, params: Any) -> bool:
    """Tell whether leaves with a parameter's path and shape are boxed as it is."""
    if not any(map(has_boxes, (grads, state, params))):
        return True
    by_parts = {
        parts: (getattr(unboxed(leaf), "shape", None), is_box(leaf))
        for parts, leaf in _leaves_with_parts(params)
    }

    def agrees(parts, leaf):
        shape, boxed = paths.longest_ending(parts, by_parts) or (None, False)
        same = shape is not None and getattr(unboxed(leaf), "shape", None) == shape
        return not same or is_box(leaf) == boxed

    return all(agrees(*leaf) for leaf in _leaves_with_parts((grads, state)))


def _leaves_with_parts(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    leaves = paths.leaves_with_path(tree, is_leaf=is_box)
    return [(paths.path_parts(key_path), leaf) for key_path, leaf in leaves]


def reboxed(like: Any, tree: Any) -> Any:
    """Return a tree with the boxes of another tree that has the same leaves."""
    return jax.tree.structure(like).unflatten(jax.tree.leaves(tree))

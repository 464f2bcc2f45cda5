"""Boxes: Flax's wrappers around a parameter that name its axes.

``nn.Partitioned``, ``nn.LogicallyPartitioned``, any other ``AxisMetadata`` and the
variables of NNX. They are recognised by their methods, so that Flax is not imported.
"""

import functools
from typing import Any

import jax
import optax


def is_box(x: Any) -> bool:
    """Tell whether ``x`` wraps one leaf, or the ``optax.MaskedNode`` in its place."""
    if not is_wrapper_class(type(x)):
        return False
    content = _content(x)
    return (
        isinstance(content, optax.MaskedNode)
        or jax.tree_util.all_leaves([content])
        or is_box(content)
    )


def unboxed(x: Any) -> Any:
    """Return the content of a box, or of nested boxes; return anything else as is."""
    return unboxed(_content(x)) if is_box(x) else x


def unbox_tree(tree: Any) -> Any:
    """Return a tree without its boxes.

    Flax's own ``unbox`` also constrains shardings if a mesh is set.
    """
    return jax.tree.map(unboxed, tree, is_leaf=is_box)


def boxed_like(box: Any, leaf: Any) -> Any:
    """Return ``leaf`` in a copy of another leaf's box, if the box fits.

    A box names the axes of its content, so it fits only leaves of the same shape:
    masks and moments, not counts, packed bits or holes.

    Args:
      box: a box around an array, or anything else.
      leaf: the new content.

    Returns:
      A box, or ``leaf`` itself.
    """
    if not is_box(box):
        return leaf
    shape = getattr(unboxed(box), "shape", None)
    if shape is None or getattr(leaf, "shape", None) != shape:
        return leaf
    return _replaced(box, leaf)


def has_boxes(tree: Any) -> bool:
    """Tell whether a tree contains a box."""
    return any(map(is_box, jax.tree.leaves(tree, is_leaf=is_box)))


@functools.lru_cache(maxsize=1024)
def is_wrapper_class(kind: type) -> bool:
    """Tell whether a class is that of boxes, around one leaf or several.

    Cached by class, because maps over trees call it for every node.
    """
    return hasattr(kind, "replace_boxed") or (
        hasattr(kind, "get_value") and hasattr(kind, "get_metadata")
    )


def _children(box: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(box, is_leaf=lambda x: x is not box)


def _content(box: Any) -> Any:
    children, _ = _children(box)
    if len(children) == 1 and children[0] is not box:
        return children[0]
    return box.unbox() if hasattr(box, "unbox") else box.get_value()


def _replaced(box: Any, leaf: Any) -> Any:
    children, structure = _children(box)
    content = _content(box)
    leaf = _replaced(content, leaf) if is_box(content) else leaf
    if len(children) == 1 and children[0] is not box:
        return structure.unflatten([leaf])
    return box.replace_boxed(leaf) if hasattr(box, "replace_boxed") else leaf

"""Masks as indices of active weights, and as inner transformations see them."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.masks.layouts import (
    Layout,
    in_each,
    read_layouts,
    write_layouts,
)
from sparseopt_jax.trees import paths

# The layout and index of each leaf, by the parts of its path.
Places = dict[tuple[str, ...], tuple[Layout, Any]]


class _Parts(NamedTuple):
    tree: Any
    layout_text: Any


@jax.tree_util.register_pytree_with_keys_class
class ActiveIndices(_Parts):
    """Masks as indices of the active units, 4 bytes per active unit.

    Flax's serialization, and any other code that saves named tuples, sees a named
    tuple. The layouts, which a compiled step needs, are static, like a shape. A copy of
    them, ``layout_text``, is saved with the indices and read back if no other source
    has them.

    Attributes:
      tree: int32 arrays in the structure of the parameters, ``optax.MaskedNode()`` at
        leaves that are dense or whose weights are all active.
      layout_text: uint8 array, the layouts as written by ``write_layouts``.
      layouts: path and layout of every sparse leaf.
    """

    layouts: tuple[tuple[str, Layout], ...]

    def __new__(cls, tree: Any, layout_text: Any) -> "ActiveIndices":
        return cls._of(tree, layout_text, read_layouts(layout_text))

    @classmethod
    def of(
        cls,
        tree: Any,
        layouts: tuple[tuple[str, Layout], ...],
        replicas: tuple[int, ...] = (),
    ) -> "ActiveIndices":
        """Return indices with these layouts, whose text is repeated per replica."""
        text = jnp.asarray(write_layouts(layouts))
        text = jnp.broadcast_to(text, (*replicas, *text.shape))
        return cls._of(tree, text, layouts)

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> "ActiveIndices":
        tree, layout_text = iterable
        return cls(tree, layout_text)

    @classmethod
    def _of(cls, tree: Any, text: Any, layouts: Any) -> "ActiveIndices":
        self = tuple.__new__(cls, (tree, text))  # pyright: ignore
        self.layouts = layouts
        return self

    def tree_flatten_with_keys(self):
        """Implement JAX's pytree protocol."""
        names = map(jax.tree_util.GetAttrKey, self._fields)
        return tuple(zip(names, self, strict=True)), self.layouts

    @classmethod
    def tree_unflatten(cls, layouts, parts):
        """Implement JAX's pytree protocol."""
        tree, layout_text = parts
        return cls._of(tree, layout_text, layouts)

    def masks(self) -> Any:
        """Return the masks as bool arrays."""
        layouts = dict(self.layouts)
        replicas = jnp.shape(self.layout_text)[:-1]

        def at_leaf(path, index):
            if path not in layouts:
                return index
            layout = layouts[path]
            if layout.is_full:
                return jnp.ones((*replicas, *layout.units.shape), jnp.bool_)
            return in_each(layout.mask, replicas)(jnp.asarray(index))

        return paths.map_with_paths(at_leaf, self.tree)

    def places(self) -> Places:
        """Return layout and index of every leaf that is not full, by path parts."""
        layouts = dict(self.layouts)
        return {
            paths.path_parts(key_path): (layouts[paths.path_string(key_path)], index)
            for key_path, index in paths.leaves_with_path(self.tree)
        }

    def weights(self) -> Any:
        """Return the masks as ``ActiveWeights``, with holes at full leaves."""
        layouts = dict(self.layouts)
        return paths.map_with_paths(
            lambda path, index: (
                index if paths.is_hole(index) else ActiveWeights(index, layouts[path])
            ),
            self.tree,
        )

    def moved(self, masks: Any) -> "ActiveIndices":
        """Return the indices of new masks; units that stay active keep their slots."""
        layouts, new = dict(self.layouts), paths.leaves_by_path(masks)

        def at_leaf(path, index):
            if paths.is_hole(index):
                return index
            return layouts[path].moved(index, new[path])

        return self.with_tree(paths.map_with_paths(at_leaf, self.tree))

    def with_tree(self, tree: Any) -> "ActiveIndices":
        """Return other indices with the same layouts."""
        return self._of(tree, self.layout_text, self.layouts)


class ActiveWeights:
    """The mask of one leaf, as seen by a transformation inside a compact ``sparsify``.

    Attributes:
      index: indices of the active units.
      layout: how the active weights are arranged.
      shape: shape of the leaf, not of its active weights.
    """

    def __init__(self, index: jax.Array, layout: Layout):
        self.index = index
        self.layout = layout
        self.shape = layout.units.shape

    @property
    def size(self) -> int:
        """Number of weights in the leaf, active or not."""
        return math.prod(self.shape)

    def take(self, x: jax.Array) -> jax.Array:
        """Return the active entries of an array that broadcasts to the leaf."""
        return self.layout.take(jnp.broadcast_to(x, self.shape), self.index)

    def mask(self) -> jax.Array:
        """Return the mask as a bool array."""
        return self.layout.mask(self.index)


def at_active(mask: Any, x: jax.Array) -> jax.Array:
    """Return ``x``, or its active entries if the mask is of active weights only.

    Args:
      mask: a bool array, or the ``ActiveWeights`` of a compact ``sparsify``.
      x: an array that broadcasts to the leaf.

    Returns:
      An array that broadcasts to the updates that come with the mask.
    """
    return mask.take(x) if isinstance(mask, ActiveWeights) else x


def whole_mask(mask: Any) -> jax.Array:
    """Return a mask of either form as a bool array."""
    return mask.mask() if isinstance(mask, ActiveWeights) else mask

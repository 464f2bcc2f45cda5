"""Masks as the places of active weights, and as transformations inside see them."""

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

# Layout and index of leaves, by the parts of their paths.
Places = dict[tuple[str, ...], tuple[Layout, Any]]


class _Parts(NamedTuple):
    tree: Any
    layout_text: Any


@jax.tree_util.register_pytree_with_keys_class
class ActiveIndices(_Parts):
    """Masks as the places of the active weights, 4 bytes for each unit of them.

    A named tuple to Flax's serialization and to whatever else saves those. What a
    compiled step has to know is beside its parts, as static as a shape; written as
    ``layout_text`` it is saved with them, and read again where nothing else tells it.

    Attributes:
      tree: int32 arrays in the structure of the parameters, ``optax.MaskedNode()`` at
        dense leaves and at full ones.
      layout_text: uint8 array, the layouts as ``write_layouts`` gives them.
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
        """Return the indices of leaves that are laid out so, once for each replica."""
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
        """As JAX asks for it."""
        names = map(jax.tree_util.GetAttrKey, self._fields)
        return tuple(zip(names, self, strict=True)), self.layouts

    @classmethod
    def tree_unflatten(cls, layouts, parts):
        """As JAX asks for it."""
        tree, layout_text = parts
        return cls._of(tree, layout_text, layouts)

    def masks(self) -> Any:
        """Return the same as bool arrays."""
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
        """Layout and index of every leaf that is not full, by its path's parts."""
        layouts = dict(self.layouts)
        return {
            paths.path_parts(key_path): (layouts[paths.path_string(key_path)], index)
            for key_path, index in paths.leaves_with_path(self.tree)
        }

    def weights(self) -> Any:
        """Return the same as ``ActiveWeights``, a hole at full leaves."""
        layouts = dict(self.layouts)
        return paths.map_with_paths(
            lambda path, index: (
                index if paths.is_hole(index) else ActiveWeights(index, layouts[path])
            ),
            self.tree,
        )

    def moved(self, masks: Any) -> "ActiveIndices":
        """Return the indices of new masks; what stays active keeps its slot."""
        layouts, new = dict(self.layouts), paths.leaves_by_path(masks)

        def at_leaf(path, index):
            if paths.is_hole(index):
                return index
            return layouts[path].moved(index, new[path])

        return self.with_tree(paths.map_with_paths(at_leaf, self.tree))

    def with_tree(self, tree: Any) -> "ActiveIndices":
        """Other indices of leaves that are laid out as these are."""
        return self._of(tree, self.layout_text, self.layouts)


class ActiveWeights:
    """The mask of one leaf, as a transformation inside a compact ``sparsify`` sees it.

    Attributes:
      index: which units are active.
      layout: how they stand side by side.
      shape: shape of the leaf, not of its active weights.
    """

    def __init__(self, index: jax.Array, layout: Layout):
        self.index = index
        self.layout = layout
        self.shape = layout.units.shape

    @property
    def size(self) -> int:
        """Weights of the leaf, active or not."""
        return math.prod(self.shape)

    def take(self, x: jax.Array) -> jax.Array:
        """What an array that broadcasts to the leaf has at the active weights."""
        return self.layout.take(jnp.broadcast_to(x, self.shape), self.index)

    def mask(self) -> jax.Array:
        """Return the same as a bool array."""
        return self.layout.mask(self.index)


def at_active(mask: Any, x: jax.Array) -> jax.Array:
    """``x``, or its entries at the active weights where only those are at hand.

    Args:
      mask: a bool array, or the ``ActiveWeights`` of a compact ``sparsify``.
      x: an array that broadcasts to the leaf.

    Returns:
      What broadcasts to the updates that came with the mask.
    """
    return mask.take(x) if isinstance(mask, ActiveWeights) else x


def whole_mask(mask: Any) -> jax.Array:
    """Return the bool array of a mask, whichever of the two forms it has."""
    return mask.mask() if isinstance(mask, ActiveWeights) else mask

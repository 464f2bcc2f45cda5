"""A parameter of which only the active blocks are kept: a pytree node."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.masks.layouts import Layout, in_each
from sparseopt_jax.trees import paths

# A place has three digits of base 256, enough for 16.7 million blocks in a cell. Such
# digits are exact in every floating-point dtype that parameters are cast to.
_DIGITS = 3
_BASE = 256


@jax.tree_util.register_pytree_with_keys_class
class CompactKernel:
    """The active blocks of a kernel and their places, without a dense array.

    It replaces the dense array in trees of parameters, gradients and updates. Both of
    its parts are floating-point arrays, so ``jax.grad`` accepts trees that hold it, and
    ``optax.apply_updates`` moves blocks to new places in the same way as it updates
    weights: the places of a gradient are zeros, those of an update are differences.

    Attributes:
      active: float array of shape ``layout.shape``, the entries of the active blocks:
        one row per block.
      places: float array of shape (..., active blocks, 3), the digits of ``index``.
      layout: how the blocks are arranged in the dense array; static.
    """

    def __init__(self, active: Any, places: Any, layout: Layout):
        self.active = active
        self.places = places
        self.layout = layout

    @classmethod
    def of(cls, active: jax.Array, index: jax.Array, layout: Layout) -> "CompactKernel":
        """Build a kernel from active weights and the indices of their blocks.

        Args:
          active: array of shape ``layout.shape``.
          index: int32 array of shape ``layout.index_shape``.
          layout: how the blocks are arranged.
        """
        return cls(active, write_places(index), layout)

    def tree_flatten_with_keys(self):
        """Implement JAX's pytree protocol."""
        name = jax.tree_util.GetAttrKey
        parts = ((name("active"), self.active), (name("places"), self.places))
        return parts, self.layout

    @classmethod
    def tree_unflatten(cls, layout, parts):
        """Implement JAX's pytree protocol."""
        active, places = parts
        return cls(active, places, layout)

    def __repr__(self) -> str:
        # Trees may hold anything in place of arrays.
        blocks = getattr(self.active, "shape", self.active)
        dtype = getattr(self.active, "dtype", None)
        return f"CompactKernel(shape={self.shape}, blocks={blocks}, dtype={dtype})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense array, without axes added by ``vmap``."""
        return self.layout.units.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the weights."""
        return jnp.result_type(self.active)

    @property
    def replicas(self) -> tuple[int, ...]:
        """Sizes of the axes added by ``vmap``."""
        shape = jnp.shape(self.places)
        return shape[: len(shape) - len(self.layout.index_shape) - 1]

    @property
    def index(self) -> jax.Array:
        """Indices of the active blocks: int32, as returned by ``layout.index``."""
        return read_places(self.places)

    @property
    def blocks(self) -> jax.Array:
        """The active blocks: (..., active blocks, extents of a block)."""
        units = self.layout.units
        extents = tuple(units.split[a] for a in units.inner)
        return jnp.reshape(self.active, (*jnp.shape(self.places)[:-1], *extents))

    def with_active(self, active: Any) -> "CompactKernel":
        """Return a kernel with other values at the same places."""
        return CompactKernel(active, self.places, self.layout)

    def dense(self) -> jax.Array:
        """Return the dense array, exactly zero at inactive weights."""

        def put(active, places):
            zeros = jnp.zeros(self.shape, active.dtype)
            return self.layout.put(zeros, read_places(places), active)

        return in_each(put, self.replicas)(self.active, self.places)


def is_compact(x: Any) -> bool:
    """Return whether ``x`` is a parameter of which only the active blocks are kept."""
    return isinstance(x, CompactKernel)


def holds_compact(tree: Any) -> bool:
    """Return whether a tree holds a compact parameter."""
    return any(map(is_compact, jax.tree.leaves(tree, is_leaf=is_compact)))


def write_places(index: jax.Array) -> jax.Array:
    """Return int32 places below 2^24 as float32 digits along a new last axis."""
    powers = jnp.asarray([_BASE**i for i in range(_DIGITS)], jnp.int32)
    return ((index[..., None] // powers) % _BASE).astype(jnp.float32)


def read_places(places: jax.Array) -> jax.Array:
    """Return the places written by ``write_places``, rounding digits to integers."""
    digits = jnp.round(jax.lax.stop_gradient(places)).astype(jnp.int32)
    powers = np.asarray([_BASE**i for i in range(_DIGITS)], np.int32)
    return jnp.sum(digits * powers, -1, dtype=jnp.int32)


def map_compact(function: Any, tree: Any, *rest: Any) -> Any:
    """Map a function over a tree's compact kernels; other leaves are unchanged."""
    return jax.tree.map(
        lambda x, *others: function(x, *others) if is_compact(x) else x,
        tree,
        *rest,
        is_leaf=is_compact,
    )


def parameters_by_path(tree: Any) -> dict[str, Any]:
    """Return the parameters by path, without holes; a compact kernel is one entry."""
    found = paths.flatten_with_paths(tree, lambda x: paths.is_hole(x) or is_compact(x))
    return {path: x for path, x in found if not paths.is_hole(x)}


def active_arrays(tree: Any) -> Any:
    """Return a tree with arrays of active weights in place of compact kernels."""
    return map_compact(lambda kernel: kernel.active, tree)


def dense_shapes(tree: Any) -> Any:
    """Return a tree with the dense arrays' shapes in place of compact kernels."""
    return map_compact(
        lambda k: jax.ShapeDtypeStruct((*k.replicas, *k.shape), k.dtype), tree
    )


def dense_arrays(tree: Any, params: Any) -> Any:
    """Return a tree like the parameters with dense arrays for compact kernels.

    Args:
      tree: parameters, or their gradients, whose places are those of ``params``.
      params: the parameters.
    """

    def at_leaf(param, x):
        if not (is_compact(param) and is_compact(x)):
            return x
        if x is param:
            return x.dense()
        return param.with_active(x.active).dense()

    return jax.tree.map(at_leaf, params, tree, is_leaf=is_compact)


def with_kernels(function: Callable[..., Any], params: Any, arrays: Any) -> Any:
    """Return a tree like the parameters from the leaves of a plain tree.

    Args:
      function: ``function(path, kernel, array)`` returns the replacement of a compact
        kernel.
      params: the parameters, boxed or not.
      arrays: a tree without boxes, one array per parameter.
    """
    leaves = [
        function(path, param, x) if is_compact(param) else x
        for (path, param), x in zip(
            paths.flatten_with_paths(params, is_leaf=is_compact),
            jax.tree.leaves(arrays),
            strict=True,
        )
    ]
    return jax.tree.structure(params, is_leaf=is_compact).unflatten(leaves)

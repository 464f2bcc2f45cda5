"""A parameter of which the active blocks alone are kept: a node of the tree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.masks.layouts import Layout, in_each
from sparseopt_jax.trees import paths

# A place is written in three digits: 16.7 million blocks in a cell. Digits below 256
# are exact in every floating type that parameters are cast to.
_DIGITS = 3
_BASE = 256


@jax.tree_util.register_pytree_with_keys_class
class CompactKernel:
    """The active blocks of a kernel, and where they stand; no dense array.

    It stands in a tree of parameters in place of the dense array, and in trees of
    gradients and updates, too. Both of its parts are floating point arrays, so that
    ``jax.grad`` takes a tree that holds it, and ``optax.apply_updates`` moves blocks to
    their new places as it moves weights: the places of a gradient are zeros, those of
    an update are differences.

    Attributes:
      active: float array, the entries of the active blocks, as ``layout.shape`` has
        them: one row a block.
      places: float array of shape (..., active blocks, 3), the digits of ``index``.
      layout: how the blocks stand in the dense array; static.
    """

    def __init__(self, active: Any, places: Any, layout: Layout):
        self.active = active
        self.places = places
        self.layout = layout

    @classmethod
    def of(cls, active: jax.Array, index: jax.Array, layout: Layout) -> "CompactKernel":
        """Make one of active weights and the places of their blocks.

        Args:
          active: array of ``layout.shape``.
          index: int32 array of ``layout.index_shape``.
          layout: how the blocks stand.
        """
        return cls(active, write_places(index), layout)

    def tree_flatten_with_keys(self):
        """As JAX asks for it."""
        name = jax.tree_util.GetAttrKey
        parts = ((name("active"), self.active), (name("places"), self.places))
        return parts, self.layout

    @classmethod
    def tree_unflatten(cls, layout, parts):
        """As JAX asks for it."""
        active, places = parts
        return cls(active, places, layout)

    def __repr__(self) -> str:
        # A tree may hold anything in place of arrays.
        blocks = getattr(self.active, "shape", self.active)
        dtype = getattr(self.active, "dtype", None)
        return f"CompactKernel(shape={self.shape}, blocks={blocks}, dtype={dtype})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense array, without axes that ``vmap`` has added."""
        return self.layout.units.shape

    @property
    def dtype(self) -> Any:
        """Type of the weights."""
        return jnp.result_type(self.active)

    @property
    def replicas(self) -> tuple[int, ...]:
        """Sizes of the axes that ``vmap`` has added."""
        shape = jnp.shape(self.places)
        return shape[: len(shape) - len(self.layout.index_shape) - 1]

    @property
    def index(self) -> jax.Array:
        """Which blocks are active: int32, as ``layout.index`` gives them."""
        return read_places(self.places)

    @property
    def blocks(self) -> jax.Array:
        """The active blocks: (..., active blocks, extents of a block)."""
        units = self.layout.units
        extents = tuple(units.split[a] for a in units.inner)
        return jnp.reshape(self.active, (*jnp.shape(self.places)[:-1], *extents))

    def with_active(self, active: Any) -> "CompactKernel":
        """Other values at the same places."""
        return CompactKernel(active, self.places, self.layout)

    def dense(self) -> jax.Array:
        """Return the dense array, exactly zero at inactive weights."""

        def put(active, places):
            zeros = jnp.zeros(self.shape, active.dtype)
            return self.layout.put(zeros, read_places(places), active)

        return in_each(put, self.replicas)(self.active, self.places)


def is_compact(x: Any) -> bool:
    """Return whether ``x`` is a parameter of which the active blocks alone are kept."""
    return isinstance(x, CompactKernel)


def holds_compact(tree: Any) -> bool:
    """Return whether there is a compact parameter in a tree."""
    return any(map(is_compact, jax.tree.leaves(tree, is_leaf=is_compact)))


def write_places(index: jax.Array) -> jax.Array:
    """Write places, int32 below 2^24, as float32 digits along a new last axis."""
    powers = jnp.asarray([_BASE**i for i in range(_DIGITS)], jnp.int32)
    return ((index[..., None] // powers) % _BASE).astype(jnp.float32)


def read_places(places: jax.Array) -> jax.Array:
    """Read what ``write_places`` has written, rounded to whole digits."""
    digits = jnp.round(jax.lax.stop_gradient(places)).astype(jnp.int32)
    powers = np.asarray([_BASE**i for i in range(_DIGITS)], np.int32)
    return jnp.sum(digits * powers, -1, dtype=jnp.int32)


def map_compact(function: Any, tree: Any, *rest: Any) -> Any:
    """Map a function over a tree's compact kernels; all else stays as it is."""
    return jax.tree.map(
        lambda x, *others: function(x, *others) if is_compact(x) else x,
        tree,
        *rest,
        is_leaf=is_compact,
    )


def parameters_by_path(tree: Any) -> dict[str, Any]:
    """The parameters by their paths, without holes; compact ones are one each."""
    found = paths.flatten_with_paths(tree, lambda x: paths.is_hole(x) or is_compact(x))
    return {path: x for path, x in found if not paths.is_hole(x)}


def active_arrays(tree: Any) -> Any:
    """A tree with the active weights as plain arrays in place of compact kernels."""
    return map_compact(lambda kernel: kernel.active, tree)


def dense_shapes(tree: Any) -> Any:
    """A tree with what stands for the dense arrays in place of compact kernels."""
    return map_compact(
        lambda k: jax.ShapeDtypeStruct((*k.replicas, *k.shape), k.dtype), tree
    )


def dense_arrays(tree: Any, params: Any) -> Any:
    """Return a tree like the parameters with dense arrays at compact kernels.

    Args:
      tree: parameters, or gradients of them, which have no places of their own.
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
    """Return a tree like the parameters, of the leaves of a plain tree.

    Args:
      function: ``function(path, kernel, array)`` makes what takes a compact kernel's
        place.
      params: the parameters, boxed or not.
      arrays: a tree without boxes, an array for each of the parameters.
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

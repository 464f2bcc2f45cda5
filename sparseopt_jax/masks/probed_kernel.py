"""A compact kernel by which a loss is differentiated by all weights, active or not."""

from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.masks.compact_kernel import CompactKernel, map_compact
from sparseopt_jax.masks.layouts import Layout, in_each


@jax.tree_util.register_pytree_with_keys_class
class ProbedKernel(CompactKernel):
    """The active blocks of a kernel, and a dense array of zeros that is added to them.

    The gradient by the zeros is the dense gradient. Nothing computes with them, so that
    they take no memory: products are those of the active blocks.

    Attributes:
      zeros: dense array, the probe.
      places: as in ``CompactKernel``.
      layout: as in ``CompactKernel``.
    """

    def __init__(self, active: Any, places: Any, zeros: Any, layout: Layout):
        self._active = active
        self.places = places
        self.zeros = zeros
        self.layout = layout

    @classmethod
    def at(cls, kernel: CompactKernel) -> "ProbedKernel":
        """Add zeros to a kernel."""
        shape = (*kernel.replicas, *kernel.shape)
        zeros = jax.lax.full_like(kernel.active, 0, shape=shape)
        return cls(kernel.active, kernel.places, zeros, kernel.layout)

    def tree_flatten_with_keys(self):
        """As JAX asks for it."""
        name = jax.tree_util.GetAttrKey
        parts = {"active": self._active, "places": self.places, "zeros": self.zeros}
        return tuple((name(key), part) for key, part in parts.items()), self.layout

    @classmethod
    def tree_unflatten(cls, layout, parts):
        """As JAX asks for it."""
        active, places, zeros = parts
        return cls(active, places, zeros, layout)

    def __repr__(self) -> str:
        return f"ProbedKernel(shape={self.shape}, dtype={self.dtype})"

    @property
    def active(self) -> Any:
        """What is not to be read: its gradient would lack that of inactive weights.

        Raises:
          TypeError: always.
        """
        raise TypeError(
            "a loss that reads the active blocks of a compact kernel themselves has no "
            "dense gradient: multiply by so.sparse_apply, or by the arrays of "
            "so.dense_params"
        )

    @property
    def dtype(self) -> Any:
        """Type of the weights."""
        return jnp.result_type(self.zeros)

    def fixed(self) -> CompactKernel:
        """Return the kernel without its zeros, a constant to gradients."""
        active = jax.lax.stop_gradient(self._active)
        return CompactKernel(active, self.places, self.layout)

    def dense(self) -> jax.Array:
        """Return the dense array, exactly zero at inactive weights."""
        return self.fixed().dense() + self.zeros

    def total(self, gradient: "ProbedKernel") -> jax.Array:
        """The dense gradient, of the gradient by the zeros and by the active blocks.

        What the loss does to the leaves of the parameters, as a penalty, comes to the
        active blocks.
        """
        add = in_each(self.layout.add, self.replicas)
        return add(gradient.zeros, self.index, gradient._active)


def probed(params: Any) -> Any:
    """Return a tree of parameters with zeros added to its compact kernels."""
    return map_compact(ProbedKernel.at, params)

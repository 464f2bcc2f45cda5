"""A compact kernel for gradients with respect to all weights, active or not."""

from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.masks.compact_kernel import CompactKernel, map_compact
from sparseopt_jax.masks.layouts import Layout, in_each


@jax.tree_util.register_pytree_with_keys_class
class ProbedKernel(CompactKernel):
    """The active blocks of a kernel, and a dense array of zeros that is added to them.

    The gradient with respect to the zeros is the dense gradient. Nothing computes with
    the zeros, so they take no memory: products use only the active blocks.

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
        """Return a kernel with a probe of zeros added."""
        shape = (*kernel.replicas, *kernel.shape)
        zeros = jax.lax.full_like(kernel.active, 0, shape=shape)
        return cls(kernel.active, kernel.places, zeros, kernel.layout)

    def tree_flatten_with_keys(self):
        """Implement JAX's pytree protocol."""
        name = jax.tree_util.GetAttrKey
        parts = {"active": self._active, "places": self.places, "zeros": self.zeros}
        return tuple((name(key), part) for key, part in parts.items()), self.layout

    @classmethod
    def tree_unflatten(cls, layout, parts):
        """Implement JAX's pytree protocol."""
        active, places, zeros = parts
        return cls(active, places, zeros, layout)

    def __repr__(self) -> str:
        return f"ProbedKernel(shape={self.shape}, dtype={self.dtype})"

    @property
    def active(self) -> Any:
        """Not readable, because its gradient would omit the inactive weights.

        Raises:
          TypeError: always.
        """
        raise TypeError(
            "a loss that reads the active blocks of a compact kernel directly has no "
            "dense gradient: evaluate the model with so.sparse_apply, or with the "
            "arrays of so.dense_params"
        )

    @property
    def dtype(self) -> Any:
        """Dtype of the weights."""
        return jnp.result_type(self.zeros)

    def fixed(self) -> CompactKernel:
        """Return the kernel without its zeros, constant under differentiation."""
        active = jax.lax.stop_gradient(self._active)
        return CompactKernel(active, self.places, self.layout)

    def dense(self) -> jax.Array:
        """Return the dense array, exactly zero at inactive weights."""
        return self.fixed().dense() + self.zeros

    def total(self, gradient: "ProbedKernel") -> jax.Array:
        """Return the dense gradient: that of the zeros plus that of the active blocks.

        Terms of the loss that act on the leaves of the parameters, such as a penalty,
        contribute through the active blocks.
        """
        add = in_each(self.layout.add, self.replicas)
        return add(gradient.zeros, self.index, gradient._active)


def probed(params: Any) -> Any:
    """Return a tree of parameters with zeros added to its compact kernels."""
    return map_compact(ProbedKernel.at, params)

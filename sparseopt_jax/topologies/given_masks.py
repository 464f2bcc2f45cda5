"""Masks read from a network that is already sparse."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.trees import paths


def masks_of(
    params: Any,
    *,
    where: Where | None = None,
    include: Include | None = None,
    dims: Dims = None,
) -> Any:
    """Return the masks of a sparse checkpoint: True where its kernels are not zero.

    Pass them to a topology as ``masks=``, to continue from a network that is already
    sparse. Zeros in other leaves are ignored: biases, norms and embeddings stay dense,
    as in every topology.

    Args:
      params: any pytree of arrays.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      include: leaves that get masks although they are not kernels, as in ``static``.
      dims: the axes of kernels, as in ``static``.

    Returns:
      Bool arrays in the structure of ``params`` (True = active) at kernels,
      ``optax.MaskedNode()`` at all other leaves. A kernel without zeros has a full
      mask; NaN weights are active.

    Raises:
      ValueError: if there is no kernel, or a kernel is zero throughout.
      TypeError: if ``params`` holds shapes instead of arrays.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.array([[0.0, 2.0], [3.0, 0.0]]), "bias": jnp.zeros(2)}
      >>> masks = so.masks_of(params)
      >>> masks["kernel"].tolist(), masks["bias"]
      ([[False, True], [True, False]], MaskedNode())
      >>> topology = so.rigl(masks=masks, every=100, stop=1000)
    """
    finder = Rewiring(sparsity=0.0, where=where, include=include, dims=dims)
    kernels = {plan.path for plan in finder.leaves(params) if plan.layer}

    def at_leaf(path, leaf):
        if path not in kernels:
            return optax.MaskedNode()
        if not isinstance(leaf, jnp.ndarray | np.ndarray):
            raise TypeError(
                "params must hold arrays, because masks are read from their zeros; "
                f"{path!r} holds {leaf!r}"
            )
        mask = jnp.asarray(leaf) != 0
        if not isinstance(mask, Tracer) and not mask.any():
            raise ValueError(
                f"the kernel at {path!r} is zero throughout, so its mask cannot be "
                "read from it: keep it dense with where=lambda path, leaf: path != "
                f"{path!r}"
            )
        return mask

    return paths.map_with_paths(at_leaf, params)

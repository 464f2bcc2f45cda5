"""Masks read off a network that is sparse already."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sparseopt_jax.arguments.method_options import check_options
from sparseopt_jax.topologies.methods.static import static
from sparseopt_jax.trees import paths

_READ_OFF = "the masks are read off the zeros"
_UNFIT: dict[str, str] = dict.fromkeys(
    ("distribution", "first", "structure", "masks", "min_fan_in", "track_explored"),
    _READ_OFF,
)


def masks_of(params: Any, **options: Any) -> Any:
    """Returns the masks of a sparse checkpoint: where its kernels are not zero.

    What ``masks=`` of a topology takes, to go on from a network that is sparse already.
    Zeros elsewhere are no masks: biases, norms and embeddings stay dense by the rule of
    every topology.

    Args:
      params: any pytree of arrays.
      **options: what decides which leaves are kernels: ``where``, ``include`` and
        ``dims``, as in ``static``.

    Returns:
      Bool arrays in the structure of ``params`` (True = active) at kernels,
      ``optax.MaskedNode()`` at all other leaves. A kernel without zeros has a full
      mask; a NaN is active.

    Raises:
      ValueError: if there is no kernel, or a kernel is zero throughout.
      TypeError: if ``params`` hold shapes instead of arrays, or for another option.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.array([[0.0, 2.0], [3.0, 0.0]]), "bias": jnp.zeros(2)}
      >>> masks = so.masks_of(params)
      >>> masks["kernel"].tolist(), masks["bias"]
      ([[False, True], [True, False]], MaskedNode())
      >>> topology = so.rigl(masks=masks, every=100, stop=1000)
    """
    check_options("masks_of", static, options, unfit=_UNFIT)
    kernels = {
        plan.path for plan in static(0.0, **options).leaves(params) if plan.layer
    }

    def at_leaf(path, leaf):
        if path not in kernels:
            return optax.MaskedNode()
        if not isinstance(leaf, jnp.ndarray | np.ndarray):
            raise TypeError(
                f"params must hold arrays, whose zeros are the masks; at {path!r} "
                f"stands {leaf!r}"
            )
        mask = jnp.asarray(leaf) != 0
        if not isinstance(mask, Tracer) and not mask.any():
            raise ValueError(
                f"the kernel at {path!r} is zero throughout, which says nothing of its "
                "mask: leave it dense by where=lambda path, leaf: path != "
                f"{path!r}"
            )
        return mask

    return paths.map_with_paths(at_leaf, params)

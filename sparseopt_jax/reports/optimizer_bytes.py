"""The memory of an optimizer's state."""

import math
from typing import Any

import jax
import numpy as np

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.masks.state import unbox


def optimizer_bytes(opt_state: Any) -> int:
    """Count the bytes of an optimizer's state, masks or active indices included.

    Args:
      opt_state: the state of any optimizer, or its shapes from
        ``jax.eval_shape(tx.init, params)``, for networks that do not fit into memory.

    Returns:
      Bytes over all devices; a replicated array counts once.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((64, 64))}
      >>> dense = so.optimizer_bytes(optax.adam(1e-3).init(params))
      >>> tx = so.sparsify(optax.adam(1e-3), so.static(0.9), compact=True)
      >>> sparse = so.optimizer_bytes(tx.init(params))
      >>> dense, sparse  # 12 bytes for each of 410 weights, fan-ins, the layout
      (32772, 5329)
    """
    if callable(getattr(opt_state, "init", None)):
        raise TypeError(
            f"opt_state must be an optimizer's state, tx.init(params), got "
            f"{described(opt_state)}"
        )
    tree = unbox(getattr(opt_state, "opt_state", opt_state))
    return sum(map(_bytes, jax.tree.leaves(tree)))


def _bytes(leaf: Any) -> int:
    # An optimizer may keep a plain number, which has neither attribute.
    if not hasattr(leaf, "shape"):
        leaf = np.asarray(leaf)
    return math.prod(leaf.shape) * leaf.dtype.itemsize

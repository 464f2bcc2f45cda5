"""SNFS: momentum decides what grows, and where."""

import dataclasses
from typing import Any

from sparseopt_jax.arguments.method_options import check_options
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.gradient_memory import GradientMomentum
from sparseopt_jax.topologies.methods.static import set_
from sparseopt_jax.topologies.rewiring import Rewiring


def snfs(
    sparsity: float | None = None,
    *,
    momentum: float = 0.9,
    **options: Any,
) -> Rewiring:
    """SNFS: sparse momentum, which grows by it and shares weights out between layers.

    A mean of all gradients is kept for every weight. Layers drop their smallest
    weights; what all have dropped is grown in layers in proportion to the mean size of
    the momentum of their active weights, where that momentum is largest.

    Args:
      sparsity: as in ``static``.
      momentum: decay of the mean of gradients, in [0, 1).
      **options: as in ``set_``, without ``structure``.

    Returns:
      The topology. The number of active weights is kept over all layers together, not
      in each.

    Raises:
      ValueError: as ``set_``, and for a momentum outside [0, 1).
      TypeError: as ``set_``.

    Note:
      The momentum is the topology's own, of dense gradients, and costs a float32 for
      each weight, whatever the optimizer. The authors share that of SGD.

    References:
      Dettmers and Zettlemoyer, Sparse networks from scratch, 2019 (arXiv 1907.04840).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.snfs(0.9, every=100, stop=1000).keeps_counts
      False
    """
    check_options("snfs", set_, options)
    return dataclasses.replace(
        set_(sparsity, **options),
        name="snfs",
        grow=scores.gradient,
        memory=GradientMomentum(momentum),
        redistributes=True,
    )

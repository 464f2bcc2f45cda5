"""MEST: what is small and does not move is dropped."""

import dataclasses
from typing import Any

from sparseopt_jax.arguments.checks import number
from sparseopt_jax.arguments.method_options import check_options
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.methods.static import set_
from sparseopt_jax.topologies.rewiring import Rewiring


def mest(
    sparsity: float | None = None,
    *,
    gradient_weight: float = 1.0,
    **options: Any,
) -> Rewiring:
    """MEST: drops the least |w| + weight |gradient|, grows random weights.

    Args:
      sparsity: as in ``static``.
      gradient_weight: weight of the gradient in the drop score (lambda). The default is
        ours.
      **options: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``, and for a weight below 0.
      TypeError: as ``set_``.

    Note:
      The paper's soft memory bound, under which more weights than the budget are active
      between a growth and the drop after it, is left out.

    References:
      Yuan et al., MEST: accurate and fast memory-economic sparse training framework on
      the edge, 2021 (arXiv 2110.14032).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.mest(0.9, gradient_weight=0.5, every=100, stop=1000).name
      'mest'
    """
    number("gradient_weight", gradient_weight, 0)
    check_options("mest", set_, options)
    return dataclasses.replace(
        set_(sparsity, **options),
        name="mest",
        drop=scores.magnitude_and_gradient(gradient_weight),
    )

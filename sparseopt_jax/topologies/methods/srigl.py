"""SRigL: a constant fan-in, and fewer neurons."""

import dataclasses
from typing import Any

from sparseopt_jax.arguments.checks import number
from sparseopt_jax.arguments.method_options import check_options
from sparseopt_jax.layers.structures import ConstantFanIn
from sparseopt_jax.topologies.methods.static import rigl
from sparseopt_jax.topologies.rewiring import Rewiring


def srigl(
    sparsity: float | None = None,
    *,
    gamma_sal: float = 0.3,
    **options: Any,
) -> Rewiring:
    """SRigL: RigL with a constant fan-in, that removes neurons of little use.

    A layer drops its smallest weights; neurons with fewer than ``gamma_sal`` times
    their fan-in of salient weights (kept, or among those with the largest gradients)
    are ablated for good; the layer's budget is divided evenly between the others, which
    grow their largest gradients.

    Args:
      sparsity: as in ``static``.
      gamma_sal: least fraction of salient weights, in [0, 1]; 0 ablates nobody.
      **options: as in ``rigl``, without ``structure``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``rigl``, and for a ``gamma_sal`` outside [0, 1].
      TypeError: as ``rigl``.

    Note:
      Where a budget is no multiple of the neurons that are left, the remainder is left
      out, so that fan-ins stay equal. A neuron with an infinite or NaN weight stays.

    References:
      Lasby et al., Dynamic sparse training with structured sparsity, ICLR 2024
      (arXiv 2305.02299).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.srigl(0.9, every=100, stop=1000).structure
      ConstantFanIn()
    """
    number("gamma_sal", gamma_sal, 0, 1)
    unfit = {"structure": "it keeps a constant fan-in"}
    check_options("srigl", rigl, options, unfit=unfit)
    return dataclasses.replace(
        rigl(sparsity, structure=ConstantFanIn(), **options),
        name="srigl",
        ablation=gamma_sal,
    )

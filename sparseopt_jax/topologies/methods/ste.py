"""STE: gradients of masked weights go straight through to dense ones."""

from collections.abc import Mapping

from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import FOREVER, UpdateSchedule


@method("STE", "1308.3432")
def ste(
    sparsity: float | None = None,
    *,
    every: int = 1,
    start: int = 0,
    stop: int = FOREVER,
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    first: First = True,
    structure: Structures = Unstructured(),
    where: Where | None = None,
    include: Include | None = None,
    dims: Dims = None,
) -> ForwardMasks:
    """Straight-through estimator: prunes the forward pass, trains all weights.

    The largest weights are used; the gradient of the masked weights is applied to all
    of the dense ones. In the training loop::

        forward = so.apply_masks(params, opt_state)
        grads = jax.grad(loss)(forward, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)

    ``make_train_step`` does so by itself. To use the network after training, keep
    ``so.apply_masks(params, opt_state)``.

    Args:
      sparsity: as in ``static``.
      every: steps from one choice of masks to the next; 1 follows every step.
      start: first step after which masks are chosen anew.
      stop: first step after which they are not.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      dims: as in ``static``.

    Returns:
      What ``sparsify`` takes as a topology.

    Raises:
      ValueError: as ``static``.
      TypeError: as ``static``.

    References:
      Bengio et al., Estimating or propagating gradients through stochastic neurons for
      conditional computation, 2013 (arXiv 1308.3432).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.ste(0.9).moves
      True
    """
    used = Rewiring(
        name="ste",
        sparsity=sparsity,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
        dims=dims,
    )
    return ForwardMasks(topology=used, schedule=UpdateSchedule(every, start, stop))

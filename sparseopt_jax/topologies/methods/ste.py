"""STE: gradients of masked weights are passed straight through to dense ones."""

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
    """Prune the forward pass, train all weights (straight-through estimator, STE).

    The forward pass uses the largest weights. The gradient of these masked weights is
    applied to all dense weights. In the training loop::

        forward = so.apply_masks(params, opt_state)
        grads = jax.grad(loss)(forward, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)

    ``make_train_step`` includes this. After training, keep the weights
    ``so.apply_masks(params, opt_state)``.

    Args:
      sparsity: fraction of zeros in the forward pass, as in ``static``.
      every: steps between updates of the masks; 1 updates them after every step.
      start: first step after which masks are updated.
      stop: first step after which they are not; by default updates never end.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      dims: as in ``static``.

    Returns:
      A topology for ``sparsify``.

    Raises:
      ValueError: as ``static``, and for ``every < 1``, ``start < 0`` or
        ``stop <= start``.
      TypeError: for an argument of the wrong type.

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

"""Top-KAST: the largest weights are used, some more are trained."""

from typing import Any

from sparseopt_jax.layers.distributions import check_sparsity
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.methods.static import static
from sparseopt_jax.topologies.methods.ste import forward_topology
from sparseopt_jax.topologies.schedules import FOREVER, UpdateSchedule


def top_kast(
    sparsity: float | None = None,
    *,
    trained_sparsity: float,
    every: int = 100,
    start: int = 0,
    stop: int = FOREVER,
    penalty: float = 1e-4,
    **options: Any,
) -> ForwardMasks:
    """Top-KAST: uses the largest weights, trains some more, refreshed now and then.

    The forward pass uses the largest weights of each layer; the gradient goes to those
    and to the next largest; the others stay as they are until they are among them.

    Args:
      sparsity: fraction of zeros in the forward pass, as in ``static``.
      trained_sparsity: fraction of weights that are not trained, at most ``sparsity``.
      every: steps from one choice of masks to the next.
      start: as in ``ste``.
      stop: as in ``ste``.
      penalty: strength of the decay of trained weights, for those that the forward
        pass does not use divided by the layer's density. The default is ours.
      **options: as in ``ste``.

    Returns:
      What ``sparsify`` takes as a topology; to be used as ``ste`` is.

    Raises:
      ValueError: as ``ste``, and for a ``trained_sparsity`` above ``sparsity`` or a
        penalty below 0.
      TypeError: as ``ste``.

    References:
      Jayakumar et al., Top-KAST: Top-K always sparse training, 2020
      (arXiv 2106.03517).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.top_kast(0.9, trained_sparsity=0.8).trained.sparsity
      0.8
    """
    topology = forward_topology("top_kast", sparsity, options)
    check_sparsity(trained_sparsity, "trained_sparsity")
    if sparsity is None:
        raise ValueError(
            "top_kast needs sparsity, and a structure that does not fix it, so that "
            "there is more to train than to use"
        )
    if trained_sparsity > sparsity:
        raise ValueError(
            f"trained_sparsity must be at most sparsity = {sparsity}, got "
            f"{trained_sparsity}"
        )
    return ForwardMasks(
        topology=topology,
        schedule=UpdateSchedule(every, start, stop),
        trained=static(trained_sparsity, **options),
        penalty=penalty,
    )

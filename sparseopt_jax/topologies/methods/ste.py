"""STE and SR-STE: gradients of masked weights go straight through to dense ones."""

import dataclasses
from typing import Any

from sparseopt_jax.arguments.method_options import check_options
from sparseopt_jax.layers.structures import NM
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.methods.static import static
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import FOREVER, UpdateSchedule


def ste(
    sparsity: float | None = None,
    *,
    every: int = 1,
    start: int = 0,
    stop: int = FOREVER,
    **options: Any,
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
      **options: ``distribution``, ``first``, ``structure``, ``where``, ``include``,
        ``dims``, as in ``static``.

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
    return ForwardMasks(
        topology=forward_topology("ste", sparsity, options),
        schedule=UpdateSchedule(every, start, stop),
    )


def sr_ste(
    sparsity: float | None = None,
    *,
    decay: float = 2e-4,
    every: int = 1,
    start: int = 0,
    stop: int = FOREVER,
    **options: Any,
) -> ForwardMasks:
    """SR-STE: straight-through with a decay of the weights that are pruned.

    To the gradient of every inactive weight ``decay`` times the weight is added, so
    that the choice settles. Made for N of M: without ``structure`` and ``sparsity`` it
    is 2 of 4.

    Args:
      sparsity: as in ``static``.
      decay: strength of the decay (lambda), at least 0.
      every: as in ``ste``.
      start: as in ``ste``.
      stop: as in ``ste``.
      **options: as in ``ste``.

    Returns:
      What ``sparsify`` takes as a topology; to be used as ``ste`` is.

    Raises:
      ValueError: as ``ste``, and for a decay below 0.
      TypeError: as ``ste``.

    References:
      Zhou et al., Learning N:M fine-grained structured sparse neural networks from
      scratch, 2021 (arXiv 2102.04010).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.sr_ste(structure=so.NM(1, 4)).decay
      0.0002
    """
    if sparsity is None:
        options = {"structure": NM(2, 4), **options}
    return ForwardMasks(
        topology=forward_topology("sr_ste", sparsity, options),
        schedule=UpdateSchedule(every, start, stop),
        decay=decay,
    )


def forward_topology(
    name: str, sparsity: float | None, options: dict[str, Any]
) -> Rewiring:
    """How many weights the forward pass uses, and in what structure.

    Args:
      name: what the method is called.
      sparsity: as in ``static``.
      options: arguments of ``static`` by name.

    Returns:
      The topology.

    Raises:
      TypeError: for an argument that magnitudes leave no room for.
    """
    by_magnitude = "its masks are those of the largest weights"
    check_options(
        name,
        static,
        options,
        unfit=dict.fromkeys(("masks", "min_fan_in", "track_explored"), by_magnitude),
    )
    return dataclasses.replace(static(sparsity, **options), name=name)

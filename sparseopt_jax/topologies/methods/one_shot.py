"""One-shot pruning: the network is pruned once, during training."""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.arguments.checks import integer
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Structures, Unstructured
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.global_pruning import prune_within
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Alternating, DensitySchedule, StepList
from sparseopt_jax.topologies.stages import Drop, Grow

_SCORES = {
    "magnitude": scores.magnitude,
    "random": scores.random,
    "saliency": scores.saliency,
}


@method("one-shot", "1611.06440")
def one_shot(
    sparsity: float | None = None,
    *,
    at: int,
    score: str | scores.Score = "magnitude",
    scope: str = "layer",
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    first: First = True,
    structure: Structures = Unstructured(),
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    track_explored: bool = False,
) -> Rewiring:
    """Prune the network once, at one step, and keep the masks from then on.

    Args:
      sparsity: fraction of zeros after pruning, as in ``static``.
      at: the step after which the network is sparse.
      score: the score of weights, of which the highest are kept: ``"magnitude"``,
        ``"random"``, ``"saliency"`` (weight times gradient), or a function of (key,
        param, grad).
      scope: ``"layer"`` prunes each layer separately to the distribution's numbers,
        ``"global"`` all weights of the network by one threshold.
      distribution: as in ``static``.
      first: as in ``static``.
      structure: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: the weights to start from, ``so.masks_of(params)`` for those of a sparse
        checkpoint; ``sparsity`` must still be given.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``static``, and for an unknown ``score`` or ``scope`` or a negative
        ``at``.
      TypeError: for an argument of the wrong type.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.one_shot(0.9, at=1000, score="saliency").due(1000)
      True
    """
    if isinstance(score, str) and score not in _SCORES:
        raise ValueError(
            f"score must be one of {', '.join(_SCORES)}, or a function, got {score!r}"
        )
    at = integer("at", at, 0)
    return Rewiring(
        name="one_shot",
        sparsity=sparsity,
        distribution=distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        track_explored=track_explored,
        schedule=StepList((at,)),
        density=DensitySchedule(0.0, Alternating((at,))),
        drop=_SCORES[score] if isinstance(score, str) else score,
        stages=(prune_within(scope), Drop(), Grow()),
    )

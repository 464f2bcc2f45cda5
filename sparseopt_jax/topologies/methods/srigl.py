"""SRigL: a constant fan-in, and fewer neurons."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from sparseopt_jax.arguments.checks import number
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import ConstantFanIn
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.methods.rigl import rigl
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule
from sparseopt_jax.topologies.stages import Draft, Drop, Grow, LayerStage, Prune


@dataclasses.dataclass(frozen=True)
class Ablate(LayerStage):
    """Take all weights from neurons with few salient ones, and share out the budget.

    A weight is salient if it is kept, or would be grown if the layer grew where its
    scores are highest. The layer's budget is divided evenly between the neurons that
    stay, rounded down.

    Attributes:
      gamma: least fraction of salient weights that a neuron needs, of the layer's
        usual fan-in.
    """

    gamma: float
    keeps_counts: ClassVar[bool] = False

    def check(self, rewiring: Rewiring) -> None:
        """Raise ValueError unless all neurons have fan-ins of their own."""
        if rewiring.structure != ConstantFanIn():
            raise ValueError(
                "neurons are ablated under ConstantFanIn() only, got structure "
                f"{rewiring.structure}"
            )

    def __call__(self, draft: Draft) -> Draft:
        """Return the draft without ablated neurons, and with new fan-ins."""
        units, kept = draft.units, draft.kept
        budget = units.total(draft.size)
        if draft.planned is not None:
            # What rounding leaves out now may fit later.
            budget = jnp.full_like(budget, draft.planned)
        missing = jnp.maximum(budget - units.count(kept, "layer"), 0)
        fan_in = units.count(draft.active)
        # Those ablated before cannot grow: their gradients would take from the others.
        candidates = ~kept & (fan_in > 0)
        grown = units.select(draft.grow, missing, where=candidates, within="layer")
        salient = units.count(kept | grown)
        # Not what fan-ins are: a phase may begin with more of all.
        needed = self.gamma * units.largest(draft.size).astype(jnp.float32)
        stays = salient.astype(jnp.float32) >= needed
        stays |= units.count(draft.held) > 0
        stays &= fan_in > 0
        share = budget // jnp.maximum(units.total(stays), 1)
        size = jnp.where(stays, jnp.minimum(share, units.per_cell), 0)
        most = jnp.minimum(units.count(kept), size)
        most = jnp.maximum(most, units.count(draft.held))
        kept = units.select(draft.drop, most, where=kept)
        return draft._replace(kept=kept, size=size)


@method("SRigL", "2305.02299")
def srigl(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    drop_fraction: float = 0.3,
    decay: str | Schedule = "cosine",
    gamma_sal: float = 0.3,
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    first: First = True,
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    averaged_steps: int = 1,
    corrected_growth: bool = False,
    track_explored: bool = False,
) -> Rewiring:
    """SRigL: RigL with a constant fan-in, that removes neurons of little use.

    A layer drops its smallest weights; neurons with fewer than ``gamma_sal`` times
    their fan-in of salient weights (kept, or among those with the largest gradients)
    are ablated for good; the layer's budget is divided evenly between the others, which
    grow their largest gradients.

    Args:
      sparsity: as in ``static``.
      every: as in ``rigl``.
      stop: as in ``rigl``.
      start: as in ``rigl``.
      drop_fraction: as in ``rigl``.
      decay: as in ``rigl``.
      gamma_sal: least fraction of salient weights, in [0, 1]; 0 ablates nobody.
      distribution: as in ``static``.
      first: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      averaged_steps: as in ``rigl``.
      corrected_growth: as in ``rigl``.
      track_explored: as in ``static``.

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
    topology = rigl(
        sparsity,
        every=every,
        stop=stop,
        start=start,
        drop_fraction=drop_fraction,
        decay=decay,
        distribution=distribution,
        first=first,
        structure=ConstantFanIn(),
        where=where,
        include=include,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        averaged_steps=averaged_steps,
        corrected_growth=corrected_growth,
        track_explored=track_explored,
    )
    stages = (Prune(), Drop(), Ablate(gamma_sal), Grow())
    return dataclasses.replace(topology, name="srigl", stages=stages)

"""SRigL: RigL at a constant fan-in that ablates weak neurons."""

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
    """Ablate neurons with few salient weights, and divide the budget among the others.

    A weight is salient if it is kept, or among those that the layer would grow by the
    highest scores. The layer's budget is divided evenly among the neurons that stay,
    rounded down.

    Attributes:
      gamma: number of salient weights that a neuron needs, as a fraction of the layer's
        fan-in.
    """

    gamma: float
    keeps_counts: ClassVar[bool] = False

    def check(self, rewiring: Rewiring) -> None:
        """Raise ValueError unless the structure fixes the fan-in of every neuron."""
        if rewiring.structure != ConstantFanIn():
            raise ValueError(
                "neurons can be ablated under ConstantFanIn() only, got structure "
                f"{rewiring.structure}"
            )

    def __call__(self, draft: Draft) -> Draft:
        """Return the draft without ablated neurons, and with new fan-ins."""
        units, kept = draft.units, draft.kept
        budget = units.total(draft.size)
        if draft.planned is not None:
            # The weights that an earlier rounding left out may fit now.
            budget = jnp.full_like(budget, draft.planned)
        missing = jnp.maximum(budget - units.count(kept, "layer"), 0)
        fan_in = units.count(draft.active)
        # Neurons ablated before cannot grow, so their gradients must not compete.
        candidates = ~kept & (fan_in > 0)
        grown = units.select(draft.grow, missing, where=candidates, within="layer")
        salient = units.count(kept | grown)
        # The new fan-in, not the current one: a phase may begin with larger fan-ins.
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
    """Rewire like RigL at a constant fan-in, and ablate weak neurons (SRigL).

    A layer drops its smallest weights. A neuron is ablated for good if its salient
    weights (those kept, or among the largest gradients) number fewer than ``gamma_sal``
    times the fan-in. The layer's budget is divided evenly among the other neurons,
    which grow where their gradients are largest.

    Args:
      sparsity: as in ``static``.
      every: as in ``rigl``.
      stop: as in ``rigl``.
      start: as in ``rigl``.
      drop_fraction: as in ``rigl``.
      decay: as in ``rigl``.
      gamma_sal: least fraction of salient weights, in [0, 1]; 0 ablates no neuron.
      distribution: as in ``static``.
      first: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      averaged_steps: as in ``rigl``.
      corrected_growth: as in ``rigl``.
      track_explored: as in ``rigl``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``rigl``, and for a ``gamma_sal`` outside [0, 1].
      TypeError: for an argument of the wrong type.

    Note:
      If the budget is not a multiple of the number of remaining neurons, the remainder
      is left unused, so that fan-ins stay equal. Neurons with non-finite weights are
      never ablated.

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

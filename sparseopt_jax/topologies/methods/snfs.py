"""SNFS: momentum decides what grows, and where."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.units import Units
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import Unstructured
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.topologies.memory import GradientMomentum
from sparseopt_jax.topologies.methods.set_ import set_
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import Schedule
from sparseopt_jax.topologies.stages import Draft, Drop, Grow, NetworkStage, Prune


@dataclasses.dataclass(frozen=True)
class Redistribute(NetworkStage):
    """Redistribute what layers dropped, by the mean magnitude of their momentum."""

    keeps_counts: ClassVar[bool] = False

    def check(self, rewiring: Rewiring) -> None:
        """Raise ValueError unless there are momenta of single weights."""
        if rewiring.memory is None or rewiring.structure != Unstructured():
            raise ValueError(
                "redistribution needs a memory of gradients and Unstructured(), got "
                f"{rewiring.memory} and {rewiring.structure}"
            )

    def measure(
        self, units: Units, active: jax.Array, memory: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Measure the mean magnitude of the momentum of a layer's active weights."""
        assert memory is not None, "redistribution needs a memory"
        sizes = jnp.where(active, jnp.abs(memory), 0)
        total = jnp.sum(sizes, units.layer, keepdims=True)
        present = units.count(active, "layer").astype(jnp.float32)
        return {"activity": total / jnp.maximum(present, 1)}

    def over(self, drafts: list[Draft]) -> list[Draft]:
        """Return drafts with a new number of active weights for every layer."""
        lost, room, activity, counts = [], [], [], []
        for draft in drafts:
            units = draft.units
            counts.append(units.count(draft.kept, "layer"))
            lost.append(units.layer_vector(draft.size - counts[-1]))
            room.append(units.layer_vector(units.per_layer - counts[-1]))
            activity.append(units.layer_vector(draft.measured["activity"]))
        shares = share(
            sum(map(_sum, lost), jnp.int32(0)),
            jnp.concatenate(activity),
            jnp.concatenate(room),
        )
        ends = itertools.accumulate(places.size for places in room)
        parts = jnp.split(shares, list(ends)[:-1])
        return [
            draft._replace(size=count + draft.units.from_layer_vector(part))
            for draft, count, part in zip(drafts, counts, parts, strict=True)
        ]


@method("SNFS", "1907.04840")
def snfs(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    drop_fraction: float = 0.3,
    decay: str | Schedule = "cosine",
    momentum: float = 0.9,
    distribution: str | Mapping[str, float] | Distribution = "erdos_renyi_kernel",
    first: First = True,
    where: Where | None = None,
    include: Include | None = None,
    masks: Any = None,
    dims: Dims = None,
    min_fan_in: int = 0,
    track_explored: bool = False,
) -> Rewiring:
    """Grow by momentum, and redistribute weights between layers (SNFS).

    The method, sparse momentum, keeps an exponential moving average of the gradients of
    every weight, active or not. Layers drop their smallest weights. Each layer then
    grows a share of all dropped weights, in proportion to the mean magnitude of the
    momentum of its active weights, where its momentum is largest.

    Args:
      sparsity: as in ``static``.
      every: as in ``set_``.
      stop: as in ``set_``.
      start: as in ``set_``.
      drop_fraction: as in ``set_``.
      decay: as in ``set_``.
      momentum: decay of the moving average, in [0, 1).
      distribution: as in ``static``.
      first: as in ``static``.
      where: as in ``static``.
      include: as in ``static``.
      masks: as in ``static``.
      dims: as in ``static``.
      min_fan_in: as in ``static``.
      track_explored: as in ``set_``.

    Returns:
      The topology. The number of active weights is constant over all layers together,
      not within each.

    Raises:
      ValueError: as ``set_``, and for a ``momentum`` outside [0, 1).
      TypeError: for an argument of the wrong type.

    Note:
      The topology keeps this momentum, of dense gradients, separately from any momentum
      of the optimizer; it costs a float32 per weight. The authors use SGD's momentum.

    References:
      Dettmers and Zettlemoyer, Sparse networks from scratch, 2019 (arXiv 1907.04840).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.snfs(0.9, every=100, stop=1000).keeps_counts
      False
    """
    topology = set_(
        sparsity,
        every=every,
        stop=stop,
        start=start,
        drop_fraction=drop_fraction,
        decay=decay,
        distribution=distribution,
        first=first,
        where=where,
        include=include,
        masks=masks,
        dims=dims,
        min_fan_in=min_fan_in,
        track_explored=track_explored,
    )
    return dataclasses.replace(
        topology,
        name="snfs",
        grow=scores.gradient,
        stages=(Prune(), Drop(), Redistribute(), Grow()),
        memory=GradientMomentum(momentum),
    )


def share(total: jax.Array, weights: jax.Array, room: jax.Array) -> jax.Array:
    """Divide ``total`` in proportion to weights, giving no part more than its room.

    What a full part cannot take is divided among the others, in rounds. Shares are
    rounded by the largest remainders, ties by the lowest index.

    Args:
      total: int32 scalar; no more than the sum of ``room`` is divided.
      weights: float32 vector, not negative; non-finite weights count as 0, and if all
        are 0 the parts are equal.
      room: int32 vector.

    Returns:
      int32 vector that sums to ``total``.

    Examples:
      >>> import jax.numpy as jnp
      >>> weights, room = jnp.array([3.0, 1.0, 1.0]), jnp.array([2, 9, 9])
      >>> share(jnp.int32(6), weights, room).tolist()
      [2, 2, 2]
    """
    weights = jnp.where(jnp.isfinite(weights), weights, 0.0)

    def unsettled(given):
        return (_sum(given) < total) & jnp.any(given < room)

    def divide(given):
        left = total - _sum(given)
        free = given < room
        claims = jnp.where(free, weights, 0.0)
        # Scaled to at most 1, so that their sum is finite.
        claims = jnp.where(
            jnp.any(claims > 0), claims / jnp.max(claims), free.astype(jnp.float32)
        )
        ideal = left.astype(jnp.float32) * (claims / jnp.sum(claims))
        whole = jnp.minimum(jnp.floor(ideal).astype(jnp.int32), room - given)
        # float32 is not exact beyond 2**24, so the sum may exceed what is left.
        before = jnp.cumsum(whole, dtype=jnp.int32) - whole
        whole = jnp.clip(left - before, 0, whole)
        # Remainders decide which parts get one more, within their room and the total.
        rest = ideal - whole.astype(jnp.float32)
        rest = jnp.where(given + whole < room, rest, -1.0)
        order = jnp.argsort(-rest, stable=True)
        more = jnp.maximum(left - _sum(whole), 0)
        places = jnp.arange(order.size, dtype=jnp.int32)
        place = jnp.zeros_like(places).at[order].set(places)
        extra = (place < more) & (given + whole < room)
        return given + whole + extra.astype(jnp.int32)

    return jax.lax.while_loop(unsettled, divide, jnp.zeros_like(room))


def _sum(numbers: jax.Array) -> jax.Array:
    return jnp.sum(numbers, dtype=jnp.int32)

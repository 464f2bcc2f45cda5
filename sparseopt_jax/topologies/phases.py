"""Phases: one topology after another, such as dense, pruned, rewired, then frozen."""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sparseopt_jax.arguments.checks import integer
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.topologies.base import Topology, TopologyState
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import FOREVER, described_updates


@dataclasses.dataclass(frozen=True)
class Phases(Topology):
    """A sequence of topologies; build it with ``phases``.

    Attributes:
      starts: first step of each phase.
      topologies: the topology of each phase.
    """

    starts: tuple[int, ...]
    topologies: tuple[Rewiring, ...]

    @property
    def name(self) -> str:
        """The name in tables and checkpoints."""
        return "phases"

    @property
    def dims(self) -> Dims:
        """The axes of kernels, the same in all phases."""
        return self.topologies[0].dims

    @property
    def crosses_layers(self) -> bool:
        """Whether layers compete for weights in any phase."""
        return any(topology.crosses_layers for topology in self.topologies)

    @property
    def replaces_step(self) -> bool | None:
        """Whether updates replace the gradient step; None if phases differ."""
        kinds = {phase.replaces_step for phase in self.topologies if phase.moves}
        return kinds.pop() if len(kinds) == 1 else (None if kinds else False)

    def replaces(self, count: Any) -> Any:
        """Return whether an update at step ``count`` replaces the gradient step."""
        if self.replaces_step is not None:
            return self.replaces_step
        return self._of_phase(count, lambda phase: phase.replaces_step)

    def due(self, count: Any) -> Any:
        """Return whether masks are updated at step ``count``; see ``Topology.due``.

        They are if the phase's topology is due, and at the first step of a phase,
        unless it freezes the masks.
        """
        due = self._of_phase(count, lambda phase: phase.due(count))
        return due | _any(count == start for start in self._first_updates())

    def next_due(self, count: Any) -> Any:
        """Return the step of the next update; see ``Topology.next_due``."""
        found = jnp.int32(FOREVER)
        for phase, (start, end) in zip(self.topologies, self._spans(), strict=True):
            step = phase.next_due(jnp.maximum(count, start))
            found = jnp.minimum(found, jnp.where(step < end, step, FOREVER))
        for start in self._first_updates():
            found = jnp.minimum(found, jnp.where(start >= count, start, FOREVER))
        return found

    def _first_updates(self) -> list[int]:
        """Return the first steps of the phases whose first step updates the masks."""
        rest = zip(self.starts[1:], self.topologies[1:], strict=True)
        return [start for start, phase in rest if phase.moves or not phase.is_handed_on]

    def _of_phase(self, count: Any, of: Callable[[Rewiring], Any]) -> Any:
        parts = [
            (count >= start) & (count < end) & of(phase)
            for phase, (start, end) in zip(self.topologies, self._spans(), strict=True)
        ]
        return _any(parts)

    def _spans(self) -> list[tuple[int, int]]:
        return list(itertools.pairwise((*self.starts, FOREVER)))

    @property
    def updates(self) -> str:
        """How often the masks are updated; see ``Topology.updates``."""
        numbers = []
        for number, (phase, span) in enumerate(
            zip(self.topologies, self._spans(), strict=True)
        ):
            steps = _steps_within(phase, *span)
            begins = number > 0 and (phase.moves or not phase.is_handed_on)
            numbers.append(len(steps) + (begins and span[0] not in steps))
        last = self.topologies[-1].schedule
        if last is not None and last.is_endless:
            return f"{described_updates(last)[:-1]}, in the last phase."
        return f"Masks are updated {sum(numbers):,} times, in {len(numbers)} phases."

    @property
    def dense_gradients(self) -> float:
        """The largest fraction of a phase's steps that need the dense gradient."""
        return max(phase.dense_gradients for phase in self.topologies)

    @property
    def scores_inactive(self) -> bool:
        """Whether updates read the gradients of inactive weights in any phase."""
        return any(phase.scores_inactive for phase in self.topologies)

    @property
    def reads_gradients(self) -> bool:
        """Whether updates read gradients in any phase."""
        return any(phase.reads_gradients for phase in self.topologies)

    def leaves(self, params: Any) -> list[LeafPlan]:
        """Return the final decision about each leaf; see ``Topology.leaves``."""
        deciding = [phase for phase in self.topologies if not phase.is_handed_on]
        return deciding[-1].leaves(params)

    def full_leaves(self, params: Any) -> frozenset[str]:
        """Return the paths of leaves that are full in all phases."""
        return frozenset.intersection(
            *(
                phase.full_leaves(params)
                for phase in self.topologies
                if not (phase.is_handed_on and phase.keeps_counts)
            )
        )

    def init(self, key: jax.Array, params: Any) -> tuple[Any, TopologyState]:
        """Return the first phase's masks and the state of all phases."""
        masks, state = self.topologies[0].init(key, params)
        sparse = {plan.path for plan in self.topologies[0].leaves(params) if plan.layer}
        for number, phase in enumerate(self.topologies[1:], 2):
            if phase.is_handed_on:
                continue
            theirs = {plan.path for plan in phase.leaves(params) if plan.layer}
            if theirs != sparse:
                raise ValueError(
                    "all phases must make the same leaves sparse; phase 1 and phase "
                    f"{number} differ in {', '.join(sorted(theirs ^ sparse))}"
                )
        memory = tuple(phase.no_memory(masks) for phase in self.topologies)
        return masks, state._replace(memory=memory)

    def observe(self, count: Any, state: TopologyState, grads: Any) -> TopologyState:
        """Record the gradient for every phase; see ``Topology.observe``."""
        memory = tuple(
            phase.observe(count, state._replace(memory=memory), grads).memory
            for phase, memory in zip(self.topologies, state.memory, strict=True)
        )
        return state._replace(memory=memory)

    def update(
        self,
        key: jax.Array,
        count: jax.Array,
        masks: Any,
        state: TopologyState,
        params: Any,
        grads: Any,
    ) -> tuple[Any, TopologyState]:
        """Update the masks once, by the topology of the phase; see ``Topology.update``.

        A phase's first update brings the numbers of active weights to those of its
        topology.
        """

        def frozen(key, masks, state, params, grads):
            del key, params, grads
            grown = jax.tree.map(jnp.zeros_like, state.grown)
            return masks, state._replace(
                updated_at=jnp.asarray(count, jnp.int32),
                grown=grown,
                memory=(),
            )

        def of(index):
            phase = self.topologies[index]
            if phase.is_handed_on and not phase.moves:
                return frozen
            # After that, numbers moved between neurons or layers are kept.
            adapts = phase.keeps_counts or count == self.starts[index]

            def update(key, masks, state, params, grads):
                fraction = jnp.float32(0.0)
                if phase.schedule is not None:
                    due = phase.schedule.due(count)
                    fraction = jnp.where(due, phase.schedule.fraction(count), 0.0)
                masks, new = phase.update(
                    key,
                    count,
                    masks,
                    state._replace(memory=state.memory[index]),
                    params,
                    grads,
                    fraction=fraction,
                    adapts=adapts,
                )
                return masks, new._replace(memory=())

            return update

        branches = [of(i) for i in range(len(self.topologies))]
        operands = (key, masks, state, params, grads)
        if not isinstance(count, Tracer):
            # Outside jit, a switch would compile at every call.
            index = sum(int(count) >= start for start in self.starts[1:])
            masks, new = branches[index](*operands)
            return masks, new._replace(memory=state.memory)
        index = sum(
            (jnp.asarray(count >= start, jnp.int32) for start in self.starts[1:]),
            jnp.int32(0),
        )
        masks, new = jax.lax.switch(index, branches, *operands)
        return masks, new._replace(memory=state.memory)


def phases(*parts: tuple[int, Rewiring]) -> Phases:
    """Run topologies one after another, each on the masks of the one before.

    Each phase begins at its first step and follows its own schedule, whose steps count
    from the start of training. If its numbers of active weights differ from those of
    the previous phase, its first step drops weights by its drop score, or grows them by
    its grow score, until they agree. A topology with ``masks=so.PREVIOUS_MASKS`` keeps
    the numbers of the previous phase: ``static(masks=so.PREVIOUS_MASKS)`` freezes the
    masks.

    Args:
      *parts: pairs of a first step and a topology; the steps ascend from 0.

    Returns:
      A topology for ``sparsify``.

    Raises:
      ValueError: if the steps do not ascend from 0; if the first topology has
        ``masks=so.PREVIOUS_MASKS``, or a later one any other masks; if the phases
        differ in ``dims`` or ``track_explored``; if a phase ends before its topology
        reaches its sparsity, or without an update.
      TypeError: if a part is not a pair of an integer and a topology.

    Examples:
      Dense for 1,000 steps, then pruned gradually, rewired by RigL, and finally frozen:

      >>> import sparseopt_jax as so
      >>> masks = so.PREVIOUS_MASKS
      >>> topology = so.phases(
      ...     (0, so.static(0.0)),
      ...     (1000, so.gradual_magnitude(0.9, every=100, start=1000, stop=4000)),
      ...     (4000, so.rigl(masks=masks, every=100, start=4100, stop=8000)),
      ...     (8000, so.static(masks=masks)),
      ... )
      >>> topology.due(1000), topology.due(1050)
      (True, False)
    """
    if not parts:
        raise ValueError(
            "phases needs at least one pair of a first step and a topology"
        )
    for part in parts:
        if not (
            isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], Rewiring)
        ):
            raise TypeError(
                f"each phase must be a pair of its first step and a topology, got "
                f"{part!r}"
            )
    starts = tuple(integer("a phase's first step", start) for start, _ in parts)
    topologies = tuple(topology for _, topology in parts)
    if starts[0] != 0 or any(a >= b for a, b in itertools.pairwise(starts)):
        raise ValueError(f"phases must begin at 0 and ascend, got steps {starts}")
    if topologies[0].is_handed_on:
        raise ValueError(
            "the first phase has no masks to take over: leave out "
            "masks=so.PREVIOUS_MASKS"
        )
    for number, phase in enumerate(topologies[1:], 2):
        if phase.masks is not None and not phase.is_handed_on:
            raise ValueError(
                f"phase {number} cannot be given masks, only the first phase can: give "
                "it a sparsity, or masks=so.PREVIOUS_MASKS"
            )
    if any(phase.dims != topologies[0].dims for phase in topologies):
        raise ValueError("all phases must have the same dims")
    if any(
        phase.track_explored != topologies[0].track_explored for phase in topologies
    ):
        raise ValueError("all phases must have the same track_explored")
    result = Phases(starts, topologies)
    for number, (phase, span) in enumerate(
        zip(topologies, result._spans(), strict=True), 1
    ):
        _check_updates(number, phase, *span)
    return result


def _check_updates(number: int, topology: Rewiring, begin: int, end: int) -> None:
    """Raise if a phase ends before its final sparsity, or without any update."""
    schedule = topology.schedule
    if schedule is None:
        return
    steps = schedule.steps
    if topology.density is not None:
        if steps[-1] >= end:
            raise ValueError(
                f"phase {number} ({topology.name}) reaches its sparsity with the "
                f"update at step {steps[-1]}, but the next phase begins at step {end}: "
                f"begin that at step {steps[-1] + 1} or later, or lower stop"
            )
    elif not _steps_within(topology, begin, end):
        raise ValueError(
            f"phase {number} ({topology.name}), from step {begin} to {end}, never "
            f"updates its masks: its updates are at steps {steps[0]} to {steps[-1]} "
            f"({schedule}); move start and stop, which count from the start of "
            "training, into the phase"
        )


def _steps_within(topology: Rewiring, begin: int, end: int) -> Sequence[int]:
    """Return the steps of a phase at which its topology is due."""
    if topology.schedule is None:
        return ()
    steps = topology.schedule.steps
    return steps[bisect.bisect_left(steps, begin) : bisect.bisect_left(steps, end)]


def _any(flags: Any) -> Any:
    found = False
    for flag in flags:
        found = found | flag
    return found

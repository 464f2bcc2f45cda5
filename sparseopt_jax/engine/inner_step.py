"""The step of the inner optimizer, which sees the weights through a mask storage."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from sparseopt_jax.engine.inner_losses import masked_losses
from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.engine.inner_state import hold, nothing_where
from sparseopt_jax.engine.step_counters import advancing
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.storage import MaskStorage, Stored
from sparseopt_jax.topologies.base import Topology


@dataclasses.dataclass(frozen=True)
class InnerStep:
    """One step, traced once.

    Attributes:
      topology: the topology of the masks.
      storage: decides what the optimizer sees of the weights.
      program: ``program(view, fan_ins, grads, inner_state, params)``.
      taken: the updates and the new state, if the step has already been taken.
    """

    topology: Topology
    storage: MaskStorage
    program: InnerProgram
    taken: tuple[Any, Any] | None = None

    @classmethod
    def of(
        cls,
        inner: optax.GradientTransformationExtraArgs,
        topology: Topology,
        storage: MaskStorage,
        args: tuple[Any, ...],
        extra_args: dict[str, Any],
    ) -> "InnerStep":
        """Trace a step.

        Args:
          inner: the optimizer.
          topology: the topology of the masks.
          storage: how the masks are stored.
          args: a view of the masks, fan-ins, gradients, state of ``inner``, weights.
          extra_args: the caller's keyword arguments.

        Returns:
          The step, to take with arguments like these.
        """
        named = environment.named_by(inner)

        def step(view, fan_ins, grads, inner_state, params):
            values = environment.of_view(storage, view, fan_ins, topology.dims)
            grads = storage.gradient(view, grads, params)
            seen = (grads, inner_state, storage.weights(view, params))
            passed = masked_losses(storage, view, extra_args)
            updates, new = environment.run(inner, named, values, *seen, **passed)
            return storage.moved(view, updates), new

        return cls(topology, storage, InnerProgram.of(step, *args))

    @property
    def frozen(self) -> frozenset[str]:
        """Paths of leaves that the optimizer never changes, so their masks stay."""
        fixed = not self.topology.moves or self.topology.stays_dense
        return frozenset() if fixed else self.program.frozen()

    def taken_if_once(self, args: tuple[Any, ...]) -> "InnerStep":
        """Return the step, already taken if it should be taken only once.

        Requests to the host must not be repeated. A step of dense weights is not
        repeated either, because their masks are updated all the time.
        """
        if self.program.is_repeatable and not self.topology.stays_dense:
            return self
        return dataclasses.replace(self, taken=self.program.run(args))

    def weights_after(
        self, masks: Stored, state: Any, params: Any, grads: Any, inner_state: Any
    ) -> tuple[Any, Any]:
        """Return the weights after the step, and the gradient.

        The step is computed a second time. If its result were passed on instead, the
        weights would be written out at every step, whether an update is due or not.
        """
        view = self.storage.view(masks, state, params)
        if self.taken is None:
            updates = self.program.updates_only(
                view, state.fan_ins, grads, inner_state, params
            )
        else:
            updates, _ = self.taken
        updates = self.storage.to_zero(view, view, updates, params)
        return optax.apply_updates(params, updates), grads

    def take(
        self,
        args: tuple[Any, ...],
        replaced: Any,
        reset: Callable[[Any], Any],
    ) -> tuple[Any, Any]:
        """Take the step and amend its new state.

        Args:
          args: arguments like those that the step was traced with.
          replaced: whether an update of the masks replaces the step, a bool or bool
            scalar: then no weight changes, and only counters of steps advance.
          reset: as ``refresh`` in ``InnerProgram.run``.

        Returns:
          The updates and the state to keep.
        """

        def held(new):
            if replaced is False:
                return new
            advances = advancing(self.program, args, position=3)
            return hold(replaced, advances, args[3], new)

        if self.taken is None:
            updates, inner_state = self.program.run(args, held, reset)
        else:
            updates, inner_state = self.taken
            inner_state = reset(held(inner_state))
        return nothing_where(replaced, updates), inner_state

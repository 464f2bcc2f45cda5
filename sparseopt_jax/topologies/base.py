"""The interface of topologies to the engine, the reports and the checkpoints."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.masks.storage import MaskStorage
from sparseopt_jax.topologies.schedules import FOREVER, UpdateSteps


class TopologyState(NamedTuple):
    """The state of a topology.

    Attributes:
      updated_at: int32 scalar, the step of the last update, -1 before the first.
      explored: bool arrays like the masks, True where a weight has ever been active;
        ``()`` unless the topology tracks it.
      turned: bool arrays like the masks, True where the last update grew or dropped a
        weight; ``()`` unless ``sparsify`` needs it, which stores it here if updates
        follow a gradient step in the same program. Topologies neither read nor write
        it.
      fan_ins: int32 arrays, each neuron's number of active incoming weights, with
        reduction axes of size 1; ``optax.MaskedNode()`` at leaves without neurons.
        Counted at updates, so that no step has to.
      grown: int32 scalars, how many weights the last update grew in each leaf;
        ``optax.MaskedNode()`` at dense leaves.
      memory: float32 arrays like the masks, what growth remembers of earlier
        gradients; ``()`` for a topology without a memory.
    """

    updated_at: jax.Array
    explored: Any
    turned: Any
    fan_ins: Any
    grown: Any
    memory: Any


class Topology(abc.ABC):
    """Base class: which weights are active, and how that is updated.

    All methods are pure functions. ``Rewiring`` composes a topology from a
    distribution, a structure, scores and stages; ``Phases`` runs several in sequence;
    ``ForwardMasks`` masks only the forward pass. Subclass ``Topology`` for a mechanism
    that none of these can express. Make the subclass hashable and comparable by value,
    for example a frozen dataclass.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name in tables and checkpoints."""

    @property
    def dims(self) -> Dims:
        """The axes of kernels, as in ``static``; None for the Flax convention."""
        return None

    @property
    def moves(self) -> bool:
        """Whether the masks are ever updated."""
        return True

    @property
    def replaces_step(self) -> bool | None:
        """Whether an update replaces the optimizer's step (RigL).

        False if it follows the step (SET); None if updates differ, see ``replaces``.
        """
        return False

    def replaces(self, count: Any) -> Any:
        """Return whether an update at ``count`` replaces the step: a bool or array."""
        del count
        return self.replaces_step

    @property
    def keeps_counts(self) -> bool:
        """Whether each layer's number of active weights never changes."""
        return False

    @property
    def crosses_layers(self) -> bool:
        """Whether layers compete for weights: some may lose what others gain."""
        return False

    @property
    def may_empty_layers(self) -> bool:
        """Whether a layer may be left without active weights."""
        return not self.keeps_counts

    @property
    def given_masks(self) -> Any:
        """The masks it was given to start from; None if it makes its own."""
        return None

    @property
    def target_density(self) -> float | None:
        """The target fraction of active weights; None if none is specified."""
        return None

    @property
    def switches_blocks(self) -> bool:
        """Whether all sparse leaves switch whole blocks of weights."""
        return False

    @property
    def updates_blocks(self) -> bool:
        """Whether ``update`` accepts compact parameters.

        Its masks, old and new, are then ``ActiveIndices``, and leaves of blocks hold
        only their active weights. Otherwise it receives dense arrays.
        """
        return False

    @property
    def stays_dense(self) -> bool:
        """Whether only the forward pass is masked, and the weights stay dense."""
        return False

    def storage(self, form: MaskStorage) -> MaskStorage:
        """Return the mask storage to use; ``form`` is the one that was asked for.

        By default ``form`` itself. If only the forward pass is masked, the storage
        shows the optimizer all weights.
        """
        return form

    @property
    def dense_gradients(self) -> float:
        """The fraction of steps that need the dense gradient, until the last update."""
        return 1.0

    @property
    def scores_inactive(self) -> bool:
        """Whether updates read the gradients of inactive weights."""
        return self.dense_gradients > 0

    @property
    def reads_gradients(self) -> bool:
        """Whether updates read gradients, even if only those of active weights."""
        return True

    @property
    def updates(self) -> str:
        """How often the masks are updated, as a sentence; empty if never."""
        return ""

    @abc.abstractmethod
    def leaves(self, params: optax.Params) -> list[LeafPlan]:
        """Decide about each leaf of ``params`` from shapes alone.

        Args:
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

        Returns:
          One entry per leaf, in tree order.

        Raises:
          ValueError: if the topology does not fit the parameters.
        """

    def full_leaves(self, params: Any) -> frozenset[str]:
        """Return the paths of leaves whose weights are all active and stay so."""
        del params
        return frozenset()

    @abc.abstractmethod
    def init(self, key: jax.Array, params: optax.Params) -> tuple[Any, TopologyState]:
        """Make the first masks.

        Args:
          key: typed PRNG key.
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

        Returns:
          Masks in the structure of ``params``, bool arrays at sparse leaves and
          ``optax.MaskedNode()`` at dense ones; and the topology's state.

        Raises:
          ValueError: as ``leaves``.
        """

    def observe(
        self, count: jax.Array, state: TopologyState, grads: optax.Updates
    ) -> TopologyState:
        """Record the dense gradient of a step; called at every step.

        Args:
          count: int32 scalar, the step.
          state: the topology's state.
          grads: the dense gradient.

        Returns:
          The new state; the same state if the topology has no memory.
        """
        del count, grads
        return state

    @abc.abstractmethod
    def due(self, count: Any) -> Any:
        """Return whether masks are updated at step ``count``.

        A bool for an int, otherwise a bool array. A host loop asks this before it calls
        ``update_topology``.
        """

    def next_due(self, count: jax.Array) -> jax.Array:
        """Return the first step from ``count`` on at which masks are updated.

        ``update_topology`` asks this. A topology's ``schedule`` decides, if it has one;
        otherwise the next 65,536 steps are searched.

        Args:
          count: int32 scalar.

        Returns:
          The step, an int32 scalar; ``FOREVER`` if there is none.
        """
        schedule = getattr(self, "schedule", None)
        if isinstance(schedule, UpdateSteps):
            return schedule.next_due(count)
        steps = count + jnp.arange(2**16, dtype=jnp.int32)
        return jnp.min(jnp.where(self.due(steps), steps, FOREVER))

    @abc.abstractmethod
    def update(
        self,
        key: jax.Array,
        count: jax.Array,
        masks: Any,
        state: TopologyState,
        params: optax.Params,
        grads: optax.Updates,
    ) -> tuple[Any, TopologyState]:
        """Update the masks once, whether or not an update is due.

        Args:
          key: typed PRNG key of this step.
          count: int32 scalar, the step.
          masks: the current masks.
          state: the topology's state, after ``observe`` for this step.
          params: tree like the masks, the weights.
          grads: tree like the masks, the dense gradient.

        Returns:
          The new masks and the new state.
        """

"""What a topology is to the engine, the reports and the checkpoints."""

import abc
from typing import Any, NamedTuple

import jax
import optax

from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.masks.storage import MaskStorage


class TopologyState(NamedTuple):
    """What a topology keeps.

    Attributes:
      updated_at: int32 scalar, the step of the last change, -1 before the first.
      explored: bool arrays like the masks, True where a weight has ever been active;
        ``()`` unless the topology tracks it.
      turned: bool arrays like the masks, True where the last change turned a weight on
        or off; ``()`` unless ``sparsify`` needs it, which keeps it here where a change
        follows a gradient step in the same program. No topology reads or writes it.
      fan_ins: int32 arrays, each neuron's number of active incoming weights, the
        reduction axes kept with size 1; ``optax.MaskedNode()`` at leaves without
        neurons. Counted at a change, so that no step has to.
      grown: int32 scalars, how many weights of a leaf the last change turned on;
        ``optax.MaskedNode()`` at dense leaves.
      memory: float32 arrays like the masks, what growth remembers of earlier
        gradients; ``()`` for a topology that remembers none.
    """

    updated_at: jax.Array
    explored: Any
    turned: Any
    fan_ins: Any
    grown: Any
    memory: Any


class Topology(abc.ABC):
    """Which weights are active, and how that changes: pure functions of masks.

    ``Rewiring`` composes one from a distribution, a structure, scores and stages;
    ``Phases`` has one follow another; ``ForwardMasks`` masks the forward pass alone.
    Subclass it for a mechanism that none of these can express. Make a subclass hashable
    and comparable by value, as a frozen dataclass is.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What it is called in tables and checkpoints."""

    @property
    def dims(self) -> Dims:
        """The axes of kernels, as in ``static``; None for the Flax convention."""
        return None

    @property
    def moves(self) -> bool:
        """Whether the masks ever change."""
        return True

    @property
    def replaces_step(self) -> bool | None:
        """Whether an update takes the place of the optimizer's step (RigL).

        False where it follows the step (SET); None where updates differ, see
        ``replaces``.
        """
        return False

    def replaces(self, count: Any) -> Any:
        """Whether an update at step ``count`` replaces the step: a bool or an array."""
        del count
        return self.replaces_step

    @property
    def keeps_counts(self) -> bool:
        """Whether every layer has as many active weights at any time."""
        return False

    @property
    def crosses_layers(self) -> bool:
        """Whether layers compete for weights, so that one may lose what others gain."""
        return False

    @property
    def may_empty_layers(self) -> bool:
        """Whether a layer may be left without an active weight."""
        return not self.keeps_counts

    @property
    def given_masks(self) -> Any:
        """Mask that it was given to start from; None where it makes them itself."""
        return None

    @property
    def target_density(self) -> float | None:
        """The fraction of active weights that it is to have; None if it names none."""
        return None

    @property
    def switches_blocks(self) -> bool:
        """Whether all sparse leaves switch blocks of weights as one."""
        return False

    @property
    def updates_blocks(self) -> bool:
        """Whether ``update`` takes compact parameters as they are.

        Masks are then ``ActiveIndices`` before and after it, and the parameters of
        leaves of blocks the active weights alone. Else it is given dense arrays.
        """
        return False

    @property
    def stays_dense(self) -> bool:
        """Whether masks are of the forward pass alone, and weights behind them stay."""
        return False

    def storage(self, form: MaskStorage) -> MaskStorage:
        """How masks are kept and weights are shown to the optimizer, in a given form.

        Masks of the forward pass alone have the optimizer see all weights.
        """
        return form

    @property
    def dense_gradients(self) -> float:
        """The fraction of steps that need the dense gradient, while masks change."""
        return 1.0

    @property
    def reads_gradients(self) -> bool:
        """Whether updates read any gradients, be it of active weights alone."""
        return True

    @property
    def updates(self) -> str:
        """How often the masks are updated, as a sentence; empty if never."""
        return ""

    @abc.abstractmethod
    def leaves(self, params: optax.Params) -> list[LeafPlan]:
        """Decide about each leaf of ``params``, from shapes alone.

        Args:
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

        Returns:
          One entry per leaf, in tree order.

        Raises:
          ValueError: if the topology does not fit the parameters.
        """

    def full_leaves(self, params: Any) -> frozenset[str]:
        """Paths of leaves whose weights are all active, and will stay so."""
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
          ``optax.MaskedNode()`` at dense ones; and what the topology keeps.

        Raises:
          ValueError: as ``leaves``.
        """

    def observe(
        self, count: jax.Array, state: TopologyState, grads: optax.Updates
    ) -> TopologyState:
        """Take in the dense gradient of a step; called at every step.

        Args:
          count: int32 scalar, the step.
          state: what the topology keeps.
          grads: the dense gradient.

        Returns:
          The new state; the same if nothing is remembered.
        """
        del count, grads
        return state

    @abc.abstractmethod
    def due(self, count: Any) -> Any:
        """Whether the masks change at step ``count``: a bool for an int, else an array.

        What a host loop asks before it calls ``update_topology``.
        """

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
          masks: the present masks.
          state: what the topology keeps, ``observe`` called for this step.
          params: tree like the masks, the weights.
          grads: tree like the masks, the dense gradient.

        Returns:
          The new masks and the new state.
        """

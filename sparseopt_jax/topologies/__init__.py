"""What makes masks and changes them; extend it by ``Rewiring`` or ``Topology``."""

from sparseopt_jax.topologies.base import Topology, TopologyState
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.phases import Phases
from sparseopt_jax.topologies.rewiring import Rewiring

__all__ = ["ForwardMasks", "Phases", "Rewiring", "Topology", "TopologyState"]

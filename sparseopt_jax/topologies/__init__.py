"""Make and update masks; write your own method with ``Rewiring`` or ``Topology``."""

from sparseopt_jax.topologies.base import Topology, TopologyState
from sparseopt_jax.topologies.forward_masks import ForwardMasks, ForwardState
from sparseopt_jax.topologies.global_pruning import PruneGlobally
from sparseopt_jax.topologies.phases import Phases
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.stages import (
    Draft,
    Drop,
    Grow,
    LayerStage,
    NetworkStage,
    Prune,
)

__all__ = [
    "Draft",
    "Drop",
    "ForwardMasks",
    "ForwardState",
    "Grow",
    "LayerStage",
    "NetworkStage",
    "Phases",
    "Prune",
    "PruneGlobally",
    "Rewiring",
    "Topology",
    "TopologyState",
]

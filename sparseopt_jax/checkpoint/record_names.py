"""The names of a topology's settings in a checkpoint's record.

Checkpoints outlive versions of the library: a setting that is renamed in the code keeps
its name here. Classes that are not in this table, such as the stages of one method or a
user's own, are recorded under the names of the class and its fields.
"""

from collections.abc import Mapping

from sparseopt_jax.layers.neuron_dims import NeuronDims
from sparseopt_jax.layers.structures import (
    NM,
    Block,
    Channel,
    ConstantFanIn,
    Unstructured,
)
from sparseopt_jax.topologies.forward_masks import ForwardMasks
from sparseopt_jax.topologies.global_pruning import PruneGlobally
from sparseopt_jax.topologies.memory import GradientMomentum, MeanGradient
from sparseopt_jax.topologies.phases import Phases
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import (
    Alternating,
    Cubic,
    DensitySchedule,
    Followed,
    StepList,
    UpdateSchedule,
)
from sparseopt_jax.topologies.stages import Drop, Grow, Prune

# Class -> its name in the record, and field -> name.
NAMES: Mapping[type, tuple[str, Mapping[str, str]]] = {
    Rewiring: (
        "rewiring",
        {
            "name": "method",
            "sparsity": "sparsity",
            "distribution": "distribution",
            "first": "first",
            "structure": "structure",
            "where": "where",
            "include": "include",
            "masks": "masks",
            "dims": "dims",
            "schedule": "schedule",
            "drop": "drop",
            "grow": "grow",
            "stages": "stages",
            "replaces_step": "replaces_step",
            "density": "density",
            "memory": "memory",
            "min_fan_in": "min_fan_in",
            "track_explored": "track_explored",
        },
    ),
    ForwardMasks: (
        "forward_masks",
        {
            "topology": "used",
            "schedule": "schedule",
            "decay": "decay",
            "trained": "trained",
            "penalty": "penalty",
        },
    ),
    Phases: ("phases", {"starts": "starts", "topologies": "topologies"}),
    UpdateSchedule: (
        "every",
        {
            "every": "every",
            "start": "start",
            "stop": "stop",
            "drop_fraction": "drop_fraction",
            "decay": "decay",
        },
    ),
    StepList: ("steps", {"steps": "steps"}),
    DensitySchedule: (
        "density",
        {
            "initial_sparsity": "initial_sparsity",
            "progress": "progress",
            "by_weights": "by_weights",
        },
    ),
    Cubic: ("cubic", {"start": "start", "last": "last"}),
    Alternating: ("alternating", {"steps": "steps"}),
    Followed: (
        "followed",
        {
            "schedule": "schedule",
            "first": "first",
            "end": "end",
            "start": "start",
            "last": "last",
        },
    ),
    Prune: ("prune", {}),
    PruneGlobally: ("prune_globally", {}),
    Drop: ("drop", {}),
    Grow: ("grow", {"again": "again"}),
    MeanGradient: ("mean_gradient", {"steps": "steps"}),
    GradientMomentum: ("gradient_momentum", {"decay": "decay"}),
    NeuronDims: (
        "neuron_dims",
        {"reduction_axis": "reduction_axis", "output_axis": "output_axis"},
    ),
    Unstructured: ("unstructured", {}),
    ConstantFanIn: ("constant_fan_in", {}),
    NM: ("n_of_m", {"n": "n", "m": "m", "axis": "axis"}),
    Block: ("block", {"shape": "shape"}),
    Channel: ("channel", {"axis": "axis"}),
}

"""Sparse training for JAX: SparseOpt, moving topologies and exact masks in Optax."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from sparseopt_jax import topologies
from sparseopt_jax._version import __version__
from sparseopt_jax.compute.sparse_apply import sparse_apply
from sparseopt_jax.corrections.batch_variance import scale_by_batch_variance
from sparseopt_jax.corrections.norm_links import NormLinks, infer_norm_links
from sparseopt_jax.corrections.sparseopt import scale_by_sparseopt
from sparseopt_jax.engine.compact import compact_gradients
from sparseopt_jax.engine.compact_params import (
    compact_params,
    dense_gradient,
    dense_params,
)
from sparseopt_jax.engine.host_updates import update_topology
from sparseopt_jax.engine.inner_reset import reset_inner
from sparseopt_jax.engine.sparsify import sparsify
from sparseopt_jax.engine.state_conversion import convert_state
from sparseopt_jax.engine.state_sharding import state_sharding
from sparseopt_jax.exporting.export import export
from sparseopt_jax.exporting.load import Loaded, load
from sparseopt_jax.layers import distributions, structures
from sparseopt_jax.layers.distributions import First
from sparseopt_jax.layers.eligibility import Include, Where
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neuron_dims import InferredDims, NeuronDims
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.layers.structures import (
    NM,
    Block,
    Channel,
    ConstantFanIn,
    Unstructured,
)
from sparseopt_jax.masks.state import SparseState, apply_masks, get_masks
from sparseopt_jax.masks.storage import MaskStorage
from sparseopt_jax.masks.zero_weights import apply_updates
from sparseopt_jax.optimizers.adamw import sparse_adamw
from sparseopt_jax.optimizers.ham import HamState, ham
from sparseopt_jax.optimizers.lamb import sparse_lamb
from sparseopt_jax.optimizers.lars import sparse_lars
from sparseopt_jax.optimizers.local_adam import LocalAdamState, scale_by_local_adam
from sparseopt_jax.optimizers.plain_chain import sparseopt
from sparseopt_jax.optimizers.sgd import sparse_sgd
from sparseopt_jax.optimizers.sign_in import SignInState, sign_in
from sparseopt_jax.optimizers.smet import smet
from sparseopt_jax.optimizers.trust_ratio import scale_by_sparse_trust_ratio
from sparseopt_jax.pruning.calibration import Calibration, calibrate
from sparseopt_jax.pruning.dsnot import dsnot
from sparseopt_jax.pruning.input_statistics import Inputs
from sparseopt_jax.pruning.neurons.remove_neurons import remove_neurons
from sparseopt_jax.pruning.neurons.report import LayerNeurons, NeuronReport
from sparseopt_jax.pruning.prune import Pruned, prune
from sparseopt_jax.pruning.sparsegpt import SparseGPT
from sparseopt_jax.reports.metrics import metrics
from sparseopt_jax.reports.optimizer_bytes import optimizer_bytes
from sparseopt_jax.reports.plan import Plan, plan
from sparseopt_jax.reports.summary import Summary, summary
from sparseopt_jax.topologies import schedules, scores
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.topologies.given_masks import masks_of
from sparseopt_jax.topologies.methods.ac_dc import ac_dc
from sparseopt_jax.topologies.methods.gradual_magnitude import gradual_magnitude
from sparseopt_jax.topologies.methods.granet import granet
from sparseopt_jax.topologies.methods.mest import mest
from sparseopt_jax.topologies.methods.one_shot import one_shot
from sparseopt_jax.topologies.methods.rigl import rigl
from sparseopt_jax.topologies.methods.rigl_itop import rigl_itop
from sparseopt_jax.topologies.methods.set_ import set_
from sparseopt_jax.topologies.methods.set_itop import set_itop
from sparseopt_jax.topologies.methods.set_smet import set_smet
from sparseopt_jax.topologies.methods.snfs import snfs
from sparseopt_jax.topologies.methods.sr_ste import sr_ste
from sparseopt_jax.topologies.methods.srigl import srigl
from sparseopt_jax.topologies.methods.static import static
from sparseopt_jax.topologies.methods.ste import ste
from sparseopt_jax.topologies.methods.str_ import SoftThreshold, str_
from sparseopt_jax.topologies.methods.top_kast import top_kast
from sparseopt_jax.topologies.phases import phases
from sparseopt_jax.topologies.previous_masks import PREVIOUS_MASKS
from sparseopt_jax.tracing.infer_dims import infer_dims
from sparseopt_jax.training.sparse_init import sparse_init
from sparseopt_jax.training.train_step import (
    TrainStep,
    make_train_step,
    pmap_train_step,
)

if TYPE_CHECKING:
    from sparseopt_jax import checkpoint, linen, nnx
    from sparseopt_jax.reports import figures as plot  # noqa: F401

__all__ = [
    "NM",
    "PREVIOUS_MASKS",
    "Block",
    "Calibration",
    "Channel",
    "ConstantFanIn",
    "Dims",
    "First",
    "HamState",
    "Include",
    "InferredDims",
    "Inputs",
    "LayerNeurons",
    "LeafPlan",
    "Loaded",
    "LocalAdamState",
    "MaskStorage",
    "NeuronDims",
    "NeuronReport",
    "NormLinks",
    "Plan",
    "Pruned",
    "SignInState",
    "SoftThreshold",
    "SparseGPT",
    "SparseState",
    "Summary",
    "Topology",
    "TrainStep",
    "Unstructured",
    "Where",
    "__version__",
    "ac_dc",
    "apply_masks",
    "apply_updates",
    "calibrate",
    "checkpoint",
    "compact_gradients",
    "compact_params",
    "convert_state",
    "dense_gradient",
    "dense_params",
    "distributions",
    "dsnot",
    "export",
    "get_masks",
    "gradual_magnitude",
    "granet",
    "ham",
    "infer_dims",
    "infer_norm_links",
    "linen",
    "load",
    "make_train_step",
    "masks_of",
    "mest",
    "metrics",
    "nnx",
    "one_shot",
    "optimizer_bytes",
    "phases",
    "plan",
    "pmap_train_step",
    "prune",
    "remove_neurons",
    "reset_inner",
    "rigl",
    "rigl_itop",
    "scale_by_batch_variance",
    "scale_by_local_adam",
    "scale_by_sparse_trust_ratio",
    "scale_by_sparseopt",
    "schedules",
    "scores",
    "set_",
    "set_itop",
    "set_smet",
    "sign_in",
    "smet",
    "snfs",
    "sparse_adamw",
    "sparse_apply",
    "sparse_init",
    "sparse_lamb",
    "sparse_lars",
    "sparse_sgd",
    "sparseopt",
    "sparsify",
    "sr_ste",
    "srigl",
    "state_sharding",
    "static",
    "ste",
    "str_",
    "structures",
    "summary",
    "top_kast",
    "topologies",
    "update_topology",
]


# Flax and Orbax take longer to import than everything else: import them on first use.
# `plot` needs an extra, so it is not in `__all__`, which `import *` would import.
_LATE = {
    "checkpoint": f"{__name__}.checkpoint",
    "linen": f"{__name__}.linen",
    "nnx": f"{__name__}.nnx",
    "plot": f"{__name__}.reports.figures",
}


def __getattr__(name: str):
    if name in _LATE:
        return _import_module(_LATE[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "plot"])

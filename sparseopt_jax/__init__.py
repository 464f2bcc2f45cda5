"""Sparse training for JAX: SparseOpt, moving topologies and exact masks in Optax."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from sparseopt_jax._version import __version__
from sparseopt_jax.batch_variance import scale_by_batch_variance
from sparseopt_jax.calibration import calibrate
from sparseopt_jax.compact import compact_gradients
from sparseopt_jax.dense_to_sparse import ac_dc, gradual_magnitude, granet, one_shot
from sparseopt_jax.dsnot import dsnot
from sparseopt_jax.given_masks import masks_of
from sparseopt_jax.ham import ham
from sparseopt_jax.host_updates import update_topology
from sparseopt_jax.infer_dims import infer_dims
from sparseopt_jax.inner_reset import reset_inner
from sparseopt_jax.itop import rigl_itop, set_itop
from sparseopt_jax.large_batch import (
    scale_by_sparse_trust_ratio,
    sparse_lamb,
    sparse_lars,
)
from sparseopt_jax.masks import SparseState, apply_masks, apply_updates, get_masks
from sparseopt_jax.mest import mest
from sparseopt_jax.methods import rigl, set_, static
from sparseopt_jax.metrics import metrics
from sparseopt_jax.neuron_dims import InferredDims, NeuronDims
from sparseopt_jax.norm_links import infer_norm_links
from sparseopt_jax.optimizer_bytes import optimizer_bytes
from sparseopt_jax.optimizers import sparse_adamw, sparse_sgd
from sparseopt_jax.phases import phases
from sparseopt_jax.prune import prune
from sparseopt_jax.report import plan
from sparseopt_jax.sharding import state_sharding
from sparseopt_jax.sign_in import sign_in
from sparseopt_jax.smet import scale_by_local_adam, set_smet, smet
from sparseopt_jax.snfs import snfs
from sparseopt_jax.soft_threshold import str_
from sparseopt_jax.sparse_init import sparse_init
from sparseopt_jax.sparsegpt import SparseGPT
from sparseopt_jax.sparseopt import scale_by_sparseopt, sparseopt
from sparseopt_jax.sparsify import sparsify
from sparseopt_jax.srigl import srigl
from sparseopt_jax.state_conversion import convert_state
from sparseopt_jax.state_report import summary
from sparseopt_jax.ste import sr_ste, ste
from sparseopt_jax.structures import NM, Block, Channel, ConstantFanIn, Unstructured
from sparseopt_jax.top_kast import top_kast
from sparseopt_jax.topology import Topology
from sparseopt_jax.train_step import make_train_step, pmap_train_step

if TYPE_CHECKING:
    from sparseopt_jax import checkpoint, linen, nnx
    from sparseopt_jax import plot as plot

__all__ = [
    "NM",
    "Block",
    "Channel",
    "ConstantFanIn",
    "InferredDims",
    "NeuronDims",
    "SparseGPT",
    "SparseState",
    "Topology",
    "Unstructured",
    "__version__",
    "ac_dc",
    "apply_masks",
    "apply_updates",
    "calibrate",
    "checkpoint",
    "compact_gradients",
    "convert_state",
    "dsnot",
    "get_masks",
    "gradual_magnitude",
    "granet",
    "ham",
    "infer_dims",
    "infer_norm_links",
    "linen",
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
    "reset_inner",
    "rigl",
    "rigl_itop",
    "scale_by_batch_variance",
    "scale_by_local_adam",
    "scale_by_sparse_trust_ratio",
    "scale_by_sparseopt",
    "set_",
    "set_itop",
    "set_smet",
    "sign_in",
    "smet",
    "snfs",
    "sparse_adamw",
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
    "summary",
    "top_kast",
    "update_topology",
]


def __getattr__(name: str):
    # Flax and Orbax take longer to import than all the rest: only who uses them waits.
    # `plot` needs an extra, so it is not in `__all__`, which `import *` would import.
    if name in ("checkpoint", "linen", "nnx", "plot"):
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

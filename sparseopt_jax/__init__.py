"""Sparse training for JAX: SparseOpt, moving topologies and exact masks in Optax."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from sparseopt_jax._version import __version__
from sparseopt_jax.batch_variance import scale_by_batch_variance
from sparseopt_jax.masks import SparseState, apply_masks, apply_updates, get_masks
from sparseopt_jax.methods import rigl, set_, static
from sparseopt_jax.metrics import metrics
from sparseopt_jax.neurons import NeuronDims
from sparseopt_jax.norm_links import infer_norm_links
from sparseopt_jax.optimizers import sparse_adamw, sparse_sgd
from sparseopt_jax.report import plan, summary
from sparseopt_jax.sharding import state_sharding
from sparseopt_jax.sparseopt import scale_by_sparseopt, sparseopt
from sparseopt_jax.sparsify import sparsify, update_topology
from sparseopt_jax.topology import Topology
from sparseopt_jax.train_step import make_train_step, pmap_train_step

if TYPE_CHECKING:
    from sparseopt_jax import checkpoint, linen, nnx

__all__ = [
    "NeuronDims",
    "SparseState",
    "Topology",
    "__version__",
    "apply_masks",
    "apply_updates",
    "checkpoint",
    "get_masks",
    "infer_norm_links",
    "linen",
    "make_train_step",
    "metrics",
    "nnx",
    "plan",
    "pmap_train_step",
    "rigl",
    "scale_by_batch_variance",
    "scale_by_sparseopt",
    "set_",
    "sparse_adamw",
    "sparse_sgd",
    "sparseopt",
    "sparsify",
    "state_sharding",
    "static",
    "summary",
    "update_topology",
]


def __getattr__(name: str):
    # Flax and Orbax take longer to import than all the rest: only who uses them waits.
    if name in ("checkpoint", "linen", "nnx"):
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

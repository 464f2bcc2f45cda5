"""Scores of the weights of a trained network, for the methods of ``prune``."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sparseopt_jax.arrays.selection import random_scores
from sparseopt_jax.arrays.sharding_types import named_sharding, on_mesh
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.pruning.input_statistics import Inputs
from sparseopt_jax.topologies import scores
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.leaf_keys import leaf_key

_random_scores = jax.jit(random_scores, static_argnames=("shape", "sharding"))


def gradients_by_path(
    grads: Any, leaves: Mapping[str, LeafPlan]
) -> dict[str, jax.Array]:
    """Return the gradients by path, which must include all sparse leaves.

    Raises:
      ValueError: if one is missing, has another shape or is not finite, with the path.
    """
    by_path = dict(paths.flatten_with_paths(grads))
    for path, plan in leaves.items():
        shape = getattr(by_path.get(path), "shape", None)
        if shape != plan.leaf.shape:
            found = "nothing" if shape is None else f"shape {tuple(shape)}"
            raise ValueError(
                f"grads must have the structure of params: at {path!r} with shape "
                f"{tuple(plan.leaf.shape)} they hold {found}"
            )
        grad = by_path[path]
        if not isinstance(grad, Tracer) and not bool(jnp.all(jnp.isfinite(grad))):
            raise ValueError(
                f"grads must be finite, but at {path!r} some are NaN or infinite: take "
                "them from batches with a finite loss"
            )
    return by_path


def weight_scores(
    method: str, key: jax.Array, plan: LeafPlan, inputs: Inputs | None, grad: Any
) -> jax.Array:
    """Return the score of every weight of one kernel; the highest stay.

    Args:
      method: ``"magnitude"``, ``"random"``, ``"saliency"`` or ``"wanda"``.
      key: typed PRNG key for ``"random"``.
      plan: the kernel.
      inputs: statistics of its inputs, for ``"wanda"``.
      grad: its gradient, for ``"saliency"``.

    Returns:
      float32 array of the kernel's shape.
    """
    param = plan.leaf
    if method == "random":
        sharding = named_sharding(param)
        key = on_mesh(leaf_key(key, plan.path), sharding)
        return _random_scores(key, param.shape, sharding)
    unused = jax.random.key(0)  # magnitude and saliency draw no random numbers
    if method == "saliency":
        return scores.saliency(unused, param, grad)
    size = scores.magnitude(unused, param, param)
    return size if inputs is None else size * inputs.per_weight(inputs.norm)

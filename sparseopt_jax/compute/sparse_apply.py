"""Evaluation of an unchanged model with compact kernels."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.compute.dispatch import Dispatch
from sparseopt_jax.compute.model_evaluation import evaluate_model
from sparseopt_jax.masks.compact_kernel import is_compact


def sparse_apply(
    apply_fn: Callable[..., Any],
    *,
    by: str | Mapping[str, str] = "auto",
    measure: bool = False,
) -> Callable[..., Any]:
    """Make a model multiply with the active blocks of compact kernels.

    The model is traced as if its kernels were dense, and evaluated with only the
    blocks: every product of inputs with a compact kernel is computed by block in the
    forward and the backward pass, and everything else is computed unchanged. This works
    for any module library, for attention, 1x1 convolutions, loops over stacked layers
    and rematerialization, with dropout and mutable collections. If all parameters are
    dense, ``apply_fn`` itself is called. ``plan(params, topology, apply_fn=...)`` shows
    in advance which products run by block.

    Args:
      apply_fn: evaluates the model, such as ``model.apply``. Any of its arguments may
        contain compact kernels. Leaves that are not arrays are passed on unchanged.
      by: ``"block"`` for every product; ``"dense"`` to build the dense array within the
        step and multiply with it; ``"auto"`` for the faster of the two, according to a
        table of measurements on CPUs, given the block, the sparsity and the samples. Or
        a mapping from globs over paths to these; kernels without a match use
        ``"auto"``.
      measure: whether ``"auto"`` times both ways at the actual shapes, once each while
        the model is traced, instead of using the table.

    Returns:
      A function with the same arguments and results, for use within ``jax.jit``.
      Compact parameters that it returns are unchanged.

    Raises:
      TypeError: if ``apply_fn`` is not a function.
      ValueError: for an unknown ``by``, or ``measure`` with a fixed ``by``; when it is
        called, if a compact kernel is used for anything but products, with its path,
        the operation and its line.

    Note:
      Products by block can be differentiated in reverse mode, and in forward mode over
      reverse mode, but not in forward mode only. On a mesh, inputs may be sharded along
      their samples, and kernels are replicated.

    Examples:
      >>> import flax.linen as nn
      >>> import jax, jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> model = nn.Dense(64)
      >>> apply_fn = so.sparse_apply(model.apply)
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 32)))
      >>> jax.jit(apply_fn)(variables, jnp.ones((8, 32))).shape
      (8, 64)
    """
    if not callable(apply_fn):
        raise TypeError(
            "apply_fn must be a function such as model.apply, got "
            f"{described(apply_fn)}"
        )
    dispatch = Dispatch(by, measure)

    @functools.wraps(apply_fn)
    def apply(*args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs), is_leaf=is_compact)
        if not any(map(is_compact, leaves)):
            return apply_fn(*args, **kwargs)
        return evaluate_model(apply_fn, dispatch, args, kwargs)

    return apply

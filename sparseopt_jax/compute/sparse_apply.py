"""A model as it is, evaluated with compact kernels."""

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

    The model is traced with dense kernels in mind and evaluated with the blocks alone:
    every product of inputs with a compact kernel is computed by block, forward and
    backward, and everything else as it stands. So it holds for any module library, for
    attention, 1x1 convolutions, loops over stacked layers and rematerialization, with
    dropout and mutable collections. Dense parameters go through ``apply_fn`` itself.
    ``plan(params, topology, apply_fn=...)`` says beforehand what runs by block.

    Args:
      apply_fn: evaluates the model, such as ``model.apply``. Compact kernels may stand
        in any of its arguments. What is no array among these is passed as it is.
      by: ``"block"`` for every product, ``"dense"`` to make the dense array within the
        step and multiply with that, ``"auto"`` for whichever a table of measurements
        on CPUs says is faster, given the block, the sparsity and the samples. Or a
        mapping from globs over paths to these; what it leaves out is ``"auto"``.
      measure: whether ``"auto"`` times both at the very shapes, once each while the
        model is traced, instead of looking them up.

    Returns:
      A function of the same arguments and results, to be used within ``jax.jit``.
      Parameters that it returns are compact as they came.

    Raises:
      TypeError: if ``apply_fn`` is no function.
      ValueError: for another ``by``, and, when it is called, if a compact kernel is
        used for anything but products: with its path, the operation and its line.

    Note:
      Products by block have derivatives in reverse mode, and in forward mode over
      reverse mode, but none in forward mode alone. On a mesh, inputs may be sharded
      along their samples, and kernels are on every device.

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
            f"apply_fn must be a function, as model.apply is, got {described(apply_fn)}"
        )
    dispatch = Dispatch(by, measure)

    @functools.wraps(apply_fn)
    def apply(*args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs), is_leaf=is_compact)
        if not any(map(is_compact, leaves)):
            return apply_fn(*args, **kwargs)
        return evaluate_model(apply_fn, dispatch, args, kwargs)

    return apply

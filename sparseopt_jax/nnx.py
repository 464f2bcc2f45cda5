"""Flax NNX: sparse and compact models, and updates of their masks from the host."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.arguments.requirements import needed_by
from sparseopt_jax.compute.sparse_apply import sparse_apply
from sparseopt_jax.engine.compact_params import compact_params, dense_params
from sparseopt_jax.engine.host_updates import update_topology as _update_topology
from sparseopt_jax.engine.state_conversion import convert_state
from sparseopt_jax.masks.zero_weights import zero_inactive

with needed_by("sparseopt_jax.nnx", "flax"):
    from flax import nnx

__all__ = ["mask_model", "sparse_model", "update_topology"]


def mask_model(model: nnx.Module, optimizer: nnx.Optimizer) -> None:
    """Set a model's inactive weights to zero, in place.

    Call it once after creating the optimizer; ``optimizer.update`` keeps them at zero.
    Weights whose masks apply only to the forward pass, as with ``ste``, are unchanged.

    Args:
      model: the model that the optimizer was made for.
      optimizer: the optimizer, which holds the masks.

    Raises:
      TypeError: for a model that is not an ``nnx.Module``, or an optimizer that is not
        an ``nnx.Optimizer``; also if they are swapped.
      ValueError: if the optimizer holds no masks, or masks of another model.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> from flax import nnx
      >>> model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
      >>> tx = so.sparse_sgd(0.1, so.static(0.75))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> so.nnx.mask_model(model, optimizer)
      >>> int((model.kernel[...] != 0).sum())
      8
    """
    _check(model, optimizer, "mask_model(model, optimizer)")
    params = nnx.as_pure(nnx.state(model, optimizer.wrt))
    nnx.update(model, zero_inactive(params, optimizer))


def update_topology(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    grads: Any | None,
    **extra_args: Any,
) -> None:
    """Call ``sparseopt_jax.update_topology`` on a model and its optimizer, in place.

    For a transformation with ``host_updates=True``; works inside ``nnx.jit``.

    Args:
      model: the model.
      optimizer: its optimizer.
      grads: the dense gradients, as ``nnx.grad`` returns them, or ``dense_gradient``
        for a compact model; None for a topology that does not need them (SET).
      **extra_args: as in ``sparseopt_jax.update_topology``.

    Raises:
      TypeError: as in ``mask_model``.
      ValueError: as in ``sparseopt_jax.update_topology``.
    """
    _check(model, optimizer, "update_topology(model, optimizer, grads)")
    if grads is not None:
        grads = nnx.as_pure(nnx.state(grads, optimizer.wrt))
    opt_state, params = _update_topology(
        optimizer.tx,
        grads,
        nnx.as_pure(optimizer.opt_state),
        nnx.as_pure(nnx.state(model, optimizer.wrt)),
        **extra_args,
    )
    nnx.update(model, params)
    nnx.update(optimizer.opt_state, nnx.state(opt_state))


def compact_model(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    *,
    where: Callable[[str, Any], bool] | None = None,
) -> None:
    """Call ``sparseopt_jax.compact_params`` on a model and its optimizer, in place.

    Call it outside ``nnx.jit``, after ``mask_model`` or in the middle of a run, and
    from then on call ``sparse_model(model)`` instead of the model. ``dense_model``
    reverses it.

    Args:
      model: the model.
      optimizer: its optimizer.
      where: as in ``compact_params``.

    Raises:
      TypeError: as in ``mask_model``.
      ValueError: as in ``compact_params``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> from flax import nnx
      >>> model = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
      >>> topology = so.static(0.75, structure=so.Block((16, 16)))
      >>> tx = so.sparsify(optax.adam(1e-3), topology)
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> so.nnx.mask_model(model, optimizer)
      >>> so.nnx.compact_model(model, optimizer)
      >>> optimizer.opt_state.inner_state[0].mu.kernel.shape
      (2, 256)
    """
    _check(model, optimizer, "compact_model(model, optimizer)")
    params = nnx.as_pure(nnx.state(model, optimizer.wrt))
    opt_state = nnx.as_pure(optimizer.opt_state)
    params, opt_state = compact_params(params, opt_state, where=where)
    nnx.update(model, params)
    _replace_state(model, optimizer, opt_state)


def dense_model(model: nnx.Module, optimizer: nnx.Optimizer) -> None:
    """Make a compact model and its optimizer dense again, in place.

    It calls ``dense_params`` and ``convert_state``.

    Args:
      model: the model.
      optimizer: its optimizer.

    Raises:
      TypeError: as in ``mask_model``.
    """
    _check(model, optimizer, "dense_model(model, optimizer)")
    params = dense_params(nnx.as_pure(nnx.state(model, optimizer.wrt)))
    nnx.update(model, params)
    opt_state = nnx.as_pure(optimizer.opt_state)
    opt_state = convert_state(optimizer.tx, params, opt_state)
    _replace_state(model, optimizer, opt_state)


def _replace_state(model: nnx.Module, optimizer: nnx.Optimizer, opt_state: Any) -> None:
    """Replace the state of an optimizer by one with other arrays."""
    tx: Any = optax.GradientTransformation(
        lambda params: opt_state, optimizer.tx.update
    )
    # A new optimizer puts every array of its state into a variable.
    optimizer.opt_state = nnx.Optimizer(model, tx, wrt=optimizer.wrt).opt_state


def sparse_model(
    model: nnx.Module,
    *,
    by: str | Mapping[str, str] = "auto",
    measure: bool = False,
) -> Callable[..., Any]:
    """Return ``sparseopt_jax.sparse_apply`` for a model with compact kernels.

    ``compact_model`` makes the kernels compact. A call updates the state of the model,
    such as batch statistics and the counts of keys. Inside ``nnx.jit`` and
    ``nnx.grad``, call ``sparse_model`` there, on the model that they pass.

    Args:
      model: the model.
      by: as in ``sparse_apply``.
      measure: as in ``sparse_apply``.

    Returns:
      A function to call instead of the model.

    Raises:
      TypeError: for a model that is not an ``nnx.Module``.
      ValueError: as in ``sparse_apply``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> from flax import nnx
      >>> model = nnx.Linear(32, 64, rngs=nnx.Rngs(0))
      >>> so.nnx.sparse_model(model)(jnp.ones((8, 32))).shape
      (8, 64)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be an nnx.Module, got {described(model)}")

    def call(*args: Any, **kwargs: Any) -> Any:
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def evaluate(params: Any, rest: Any, *args: Any, **kwargs: Any) -> Any:
            inside = nnx.merge(graphdef, params, rest)
            outputs = inside(*args, **kwargs)
            return outputs, nnx.state(inside, nnx.Not(nnx.Param))

        apply_fn = sparse_apply(evaluate, by=by, measure=measure)
        outputs, changed = apply_fn(params, rest, *args, **kwargs)
        nnx.update(model, changed)
        return outputs

    return call


def _check(model: Any, optimizer: Any, call: str) -> None:
    if not isinstance(optimizer, nnx.Optimizer):
        raise TypeError(
            f"optimizer must be an nnx.Optimizer, got {described(optimizer)}: call "
            f"so.nnx.{call}"
        )
    if not isinstance(model, nnx.Module) or isinstance(model, nnx.Optimizer):
        raise TypeError(
            f"model must be the nnx.Module that the optimizer was made for, got "
            f"{described(model)}: call so.nnx.{call}"
        )

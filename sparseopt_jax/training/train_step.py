"""Train steps: one function for a single device, a mesh, ``pmap`` and ``shard_map``."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.masks.state import apply_masks, stays_dense

TrainStep = Callable[[Any, Any], tuple[Any, dict[str, Any]]]
"""A function from a train state and a batch to the new state and metrics."""


def make_train_step(
    loss_fn: Callable[..., Any],
    *,
    axis_name: str | tuple[str, ...] | None = None,
    has_batch_stats: bool = False,
) -> TrainStep:
    """Return a training step: gradient, average over replicas, optimizer.

    The step is pure; compile it as needed:

    - on one device, or on a mesh whose batches are global arrays:
      ``jax.jit(step, donate_argnums=0)`` without ``axis_name``;
    - in ``jax.shard_map`` or ``jax.pmap``, where each replica sees its own part of the
      batch: with the ``axis_name`` of the replicas, over which gradients, metrics and
      batch statistics are averaged before the optimizer sees them, so that every
      replica computes the same masks. ``pmap_train_step`` compiles this case;
    - in ``jax.lax.scan`` over batches: ``step`` is already the body.

    If masks apply only to the forward pass, as with ``ste``, the loss sees the masked
    weights and the optimizer trains the dense ones.

    Args:
      loss_fn: ``loss_fn(params, batch) -> loss`` or ``(loss, metrics)``: a scalar, the
        mean over the batch, and a dictionary of numbers; with
        ``has_batch_stats``, ``loss_fn(params, batch_stats, batch) -> (loss, (metrics,
        batch_stats))``.
      axis_name: the mapped axis, or axes, of the replicas, whose batches must have the
        same size.
      has_batch_stats: whether the network has running statistics of Batch
        Normalization. The optimizer receives the new ones as ``batch_stats=``.

    Returns:
      ``step(state, batch) -> (state, metrics)``. The state is a
      ``sparseopt_jax.linen.TrainState``, or anything with ``params``,
      ``apply_gradients(grads=...)`` and, if needed, ``batch_stats``. The metrics are
      those of ``loss_fn`` and ``"loss"``.

    Raises:
      TypeError: if ``loss_fn`` is not a function.
      ValueError: at the first step, if ``loss_fn`` returns anything else.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch @ params["kernel"]) ** 2)
      >>> step = jax.jit(so.make_train_step(loss_fn), donate_argnums=0)
      >>> state = so.linen.TrainState.create(
      ...     apply_fn=None,
      ...     params={"kernel": jnp.ones((4, 8))},
      ...     tx=so.sparse_sgd(0.1, so.static(0.75)),
      ... )
      >>> state, metrics = step(state, jnp.ones((2, 4)))
      >>> int(state.step), list(metrics)
      (1, ['loss'])
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function, got {described(loss_fn)}")

    def step(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        if not hasattr(state, "apply_gradients"):
            raise TypeError(
                f"state must be a so.linen.TrainState, or have params and "
                f"apply_gradients, got {described(state)}: call step(state, batch)"
            )

        def loss_and_rest(params):
            if has_batch_stats:
                result = loss_fn(params, state.batch_stats, batch)
            else:
                result = loss_fn(params, batch)
            return _unpack(result, has_batch_stats)

        if has_batch_stats and getattr(state, "batch_stats", None) is None:
            raise ValueError(
                "has_batch_stats needs a state with batch_stats: "
                "TrainState.create(..., batch_stats=variables['batch_stats'])"
            )
        params = state.params
        if stays_dense(getattr(state, "opt_state", None)):
            # Outside the differentiated function: gradients pass straight through.
            params = apply_masks(params, state.opt_state)
        if axis_name is not None:
            params = _as_own(params, axis_name)
        gradient = jax.value_and_grad(loss_and_rest, has_aux=True)
        (loss, (metrics, new_fields)), grads = gradient(params)
        results = (grads, {"loss": loss, **metrics}, new_fields)
        if axis_name is not None:
            results = jax.lax.pmean(results, axis_name)
        grads, metrics, new_fields = results
        return state.apply_gradients(grads=grads, **new_fields), metrics

    return step


def pmap_train_step(
    loss_fn: Callable[..., Any],
    *,
    axis_name: str = "batch",
    has_batch_stats: bool = False,
    devices: Sequence[Any] | None = None,
) -> TrainStep:
    """Return ``make_train_step``, compiled by ``jax.pmap``; the state is donated.

    Args:
      loss_fn: as in ``make_train_step``; sees one replica's part of the batch.
      axis_name: name of the replicas' axis.
      has_batch_stats: as in ``make_train_step``.
      devices: the devices; all by default.

    Returns:
      ``step(state, batch) -> (state, metrics)``, where the first axis of every array
      runs along the replicas: a state from ``flax.jax_utils.replicate``, batches of
      shape ``(devices, batch // devices, ...)``.

    Raises:
      TypeError: if ``loss_fn`` is not a function.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> from flax import jax_utils
      >>> state = so.linen.TrainState.create(
      ...     apply_fn=None,
      ...     params={"kernel": jnp.ones((4, 8))},
      ...     tx=so.sparse_sgd(0.1, so.static(0.75)),
      ... )
      >>> state = jax_utils.replicate(state)
      >>> step = so.pmap_train_step(lambda p, x: jnp.mean((x @ p["kernel"]) ** 2))
      >>> state, metrics = step(state, jnp.ones((jax.local_device_count(), 2, 4)))
      >>> metrics["loss"].shape == (jax.local_device_count(),)
      True
    """
    step = make_train_step(
        loss_fn, axis_name=axis_name, has_batch_stats=has_batch_stats
    )
    compiled = jax.pmap(step, axis_name, devices=devices, donate_argnums=0)
    if jax.process_count() > 1:
        return compiled

    # `replicate` and the step give the axis of the state different names: without this
    # transfer the second step would be compiled again.
    own_devices = np.asarray(jax.local_devices() if devices is None else devices)
    mesh = Mesh(own_devices, (axis_name,), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(axis_name))

    def run(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        return compiled(jax.device_put(state, sharding), batch)

    return run


def _unpack(result: Any, has_batch_stats: bool) -> tuple[Any, tuple[dict, dict]]:
    """Return the loss, and (metrics, new fields of the state)."""
    if has_batch_stats:
        match result:
            case (loss, (dict() as metrics, batch_stats)):
                return loss, (metrics, {"batch_stats": batch_stats})
        expected = "(loss, (metrics, batch_stats)), with a dictionary of metrics"
    else:
        match result:
            case (loss, dict() as metrics):
                return loss, (metrics, {})
            case tuple() | dict() | None:
                expected = "loss or (loss, metrics), with a dictionary of metrics"
            case loss:
                return loss, ({}, {})
    raise ValueError(f"loss_fn must return {expected}; got {result!r}")


def _as_own(params: Any, axis_name: str | tuple[str, ...]) -> Any:
    """Mark the parameters as varying over replicas, so that their gradients vary too.

    For values that ``shard_map`` knows to be the same on all replicas, JAX returns the
    gradient summed over the replicas.
    """
    return jax.tree.map(lambda p: jax.lax.pcast(p, axis_name, to="varying"), params)

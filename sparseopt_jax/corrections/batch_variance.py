"""The correction from measured variances instead of fan-ins."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.corrections.sparseopt import scale
from sparseopt_jax.layers.neurons import Axes, Dims, check_dims, resolve_axes
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.active_weights import at_active
from sparseopt_jax.tracing.running_statistics import variance_of
from sparseopt_jax.trees import paths


def scale_by_batch_variance(
    links: Mapping[str, str], *, eps: float = 1e-5, dims: Dims = None
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each neuron's gradient by the deviation that Batch Normalization measures.

    .. math::
      u_i = \frac{\sqrt{\mathrm{var}_i + \epsilon}}
                 {\sqrt{\mathrm{mean}_j\, \mathrm{var}_j + \epsilon}}\, g_i

    with the running variances of the normalisation that follows the kernel. If they are
    proportional to the neurons' densities, this is ``scale_by_sparseopt``; if
    initialisation or training has compensated for sparsity, it does not over-correct.

    Args:
      links: mapping from a kernel's path to the path of its normalisation in
        ``batch_stats``, such as ``{"Block_0/Conv_0/kernel": "Block_0/BatchNorm_0"}``;
        ``infer_norm_links`` finds them.
      eps: the normalisation's own epsilon (Flax: 1e-5).
      dims: the axes of kernels that do not follow the Flax convention, as in
        ``static``; None takes the topology's inside ``sparsify``.

    Returns:
      A stateless transformation; ``update`` needs ``batch_stats=`` as an extra
      argument: the statistics as Flax holds them (a linen collection or an
      ``nnx.State``), or the state of a Haiku or Equinox model. Kernels without a link,
      and kernels that are dense inside ``sparsify``, are left unscaled.

    Raises:
      ValueError: if links are empty or name a missing kernel (at ``init``), name a
        missing normalisation or one of a different width (at ``update``); without
        ``batch_stats``; if ``eps`` is below 0.
      TypeError: if links are not a mapping of strings.

    Note:
      Requested by users of Flax; the SparseOpt paper does not describe it. Running
      variances lag: after an update of the masks they take about 1 / (1 - momentum)
      steps (100 at Flax's default 0.99) to follow, and they are 1 at initialisation, so
      the factor is 1 until they have warmed up. Position matters as for
      ``scale_by_sparseopt``: after ``optax.scale_by_adam``, not before. With
      ``optax.inject_hyperparams`` name ``links`` and ``dims`` in ``static_args``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> tx = so.scale_by_batch_variance({"Dense_0/kernel": "BatchNorm_0"}, eps=0.0)
      >>> grads = {"Dense_0": {"kernel": jnp.ones((3, 2))}}
      >>> stats = {"BatchNorm_0": {"mean": jnp.zeros(2), "var": jnp.array([1.0, 7.0])}}
      >>> updates, _ = tx.update(grads, tx.init(grads), grads, batch_stats=stats)
      >>> print(updates["Dense_0"]["kernel"][0])
      [0.5       1.3228756]
    """
    if not isinstance(links, Mapping) or not all(
        isinstance(text, str) for pair in links.items() for text in pair
    ):
        raise TypeError(
            "links must be a mapping from kernel paths to normalisation paths, got "
            f"{links!r}"
        )
    if not links:
        raise ValueError("links must name at least one kernel, got none")
    if isinstance(eps, float) and not eps >= 0.0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    check_dims(dims)

    def init_fn(params):
        leaves = paths.flatten_with_paths(params)
        if leaves:
            _check_kernels(links, dict(leaves))
        return optax.EmptyState()

    def update_fn(updates, state, params=None, **extra_args):
        del params
        values = environment.values(extra_args)
        batch_stats = values.get("batch_stats")
        if batch_stats is None:
            raise ValueError(
                "scale_by_batch_variance needs the running variances: call "
                "tx.update(grads, opt_state, params, batch_stats=batch_stats)"
            )
        if batch_stats is environment.UNKNOWN:
            return updates, state
        statistics = {
            path: jnp.asarray(leaf)
            for path, leaf in paths.flatten_with_paths(batch_stats)
        }
        by_path = dict(paths.flatten_with_paths(values.get("masks")))
        axes_of = values.get("neuron_dims") if dims is None else dims

        def at_leaf(path, update):
            # Without masks, the kernel itself has the shape.
            leaf = by_path.get(path, update)
            if path not in links or paths.is_hole(leaf) or paths.is_hole(update):
                return update
            axes = resolve_axes(axes_of, path, leaf)
            variance = _variance(statistics, path, links[path])
            factor = _factor(variance, path, leaf, axes, eps)
            return scale(update, at_active(leaf, factor))

        return paths.map_with_paths(at_leaf, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_kernels(links: Mapping[str, str], leaves: dict[str, Any]) -> None:
    for kernel in links:
        if kernel not in leaves:
            raise ValueError(
                f"links name the kernel {kernel!r}, which is not a parameter; the "
                f"parameters are {', '.join(leaves)}"
            )


def _variance(statistics: dict[str, jax.Array], kernel: str, norm: str) -> jax.Array:
    variance = variance_of(statistics, norm)
    if variance is None:
        path = f"{norm}/var" if norm else "var"
        known = sorted({p.rpartition("/")[0] for p in statistics})
        raise ValueError(
            f"links give {kernel!r} the normalisation {norm!r}, but batch_stats has no "
            f"{path!r}; its normalisations are {', '.join(known) or '(none)'}"
        )
    return variance


def _factor(
    variance: jax.Array, kernel: str, leaf: Any, axes: Axes | None, eps: Any
) -> jax.Array:
    """Return the factor in a shape that broadcasts against the kernel."""
    if axes is None:
        raise ValueError(
            f"links name {kernel!r} of shape {tuple(leaf.shape)}, which has no neurons"
        )
    # A stack of layers has one variance per layer, in the order of the kernel's axes.
    kept = tuple(sorted((*axes.batch, *axes.output)))
    shape = tuple(leaf.shape[a] for a in kept)
    if variance.size != math.prod(shape):
        raise ValueError(
            f"the normalisation of {kernel!r} has variances of shape "
            f"{tuple(variance.shape)}, but the kernel of shape {tuple(leaf.shape)} "
            f"has neurons of shape {shape}: specify input and output axes with dims=, "
            "such as NeuronDims(1, 2) for a stack of dense layers"
        )
    full = [n if a in kept else 1 for a, n in enumerate(leaf.shape)]
    variance = variance.astype(jnp.float32).reshape(full)
    mean = jnp.mean(variance, axis=axes.output, keepdims=True)
    scale_of_mean = jnp.sqrt(mean + eps)
    return jnp.where(
        scale_of_mean > 0, jnp.sqrt(variance + eps) / scale_of_mean, jnp.float32(0)
    )

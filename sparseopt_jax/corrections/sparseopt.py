"""SparseOpt: undo the effect of Batch Normalization on sparse neurons' gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.layers.neurons import (
    Dims,
    NeuronDims,
    check_dims,
    correction_factor,
    fan_in,
    resolve_axes,
)
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.active_weights import at_active, whole_mask
from sparseopt_jax.masks.state import map_masked_with_path
from sparseopt_jax.trees import paths


def scale_by_sparseopt(*, dims: Dims = None) -> optax.GradientTransformationExtraArgs:
    r"""Scale each neuron's gradient by its fan-in, inside ``sparsify``.

    Batch Normalization divides by the standard deviation of a neuron's
    pre-activations, which shrinks with its fan-in, so the gradient of a sparse neuron
    grows by :math:`(1 - s_i)^{-1/2}`. The rule undoes this and keeps the layer's
    expected gradient norm:

    .. math::
      u_i = \frac{\sqrt{1 - s_i}}{\sqrt{1 - s_\mathrm{avg}}}\, g_i, \qquad
      s_i = 1 - \frac{\mathrm{fan\text{-}in}_i}{\mathrm{fan\text{-}in}_\mathrm{dense}}

    Position matters: before Adam it has no effect, because Adam divides a constant
    scale out; put it after ``optax.scale_by_adam``. ``sparse_sgd``,
    ``sparse_adamw``, ``sparse_lars`` and ``sparse_lamb`` put it there with
    ``sparseopt=True``.

    Args:
      dims: the axes of kernels that do not follow the Flax convention, as in
        ``static``; None takes the topology's.

    Returns:
      A stateless transformation. ``update`` takes a tree of updates of any floating
      dtype, which it keeps; the factor is computed in float32. Dense leaves are left
      unscaled.

    Raises:
      ValueError: at ``update`` outside ``sparsify``; at ``init`` or ``update`` if
        ``dims`` do not fit the parameters.

    Note:
      The paper does not say whether layers without a following normalisation are
      corrected; here every sparse kernel is. ``optax.masked`` limits it to some.
      With RigL, give the topology ``min_fan_in=2``: neurons with few inputs, whose
      gradients this shrinks, would lose them all (docs/when_it_helps.md).

    References:
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541): equation 11 and the rule.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> mask = jnp.array([[True, True], [True, False], [True, False], [True, False]])
      >>> tx = so.sparsify(so.scale_by_sparseopt(), so.static(masks={"kernel": mask}))
      >>> params = {"kernel": jnp.where(mask, 1.0, 0.0)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(updates["kernel"][0])  # fan-ins 4 and 1: sqrt(4 / 2.5), sqrt(1 / 2.5)
      [1.264911  0.6324555]
    """
    check_dims(dims)

    def init_fn(params):
        for path, leaf in paths.flatten_with_paths(params):
            if not paths.is_hole(leaf):
                # A glob may match leaves that will be dense: `update` knows which.
                is_kernel = isinstance(dims, NeuronDims)
                resolve_axes(dims, path, leaf, is_sparse=is_kernel)
        return optax.EmptyState()

    def update_fn(updates, state, params=None, **extra_args):
        del params
        values = environment.values(extra_args)
        masks = values.get("masks")
        if masks is None:
            raise ValueError(
                "scale_by_sparseopt found no masks: put it inside "
                "sparsify(optax.chain(scale_by_sparseopt(), ...), topology), or use "
                "sparseopt(topology) as the first link of a plain chain"
            )
        axes_of = values.get("neuron_dims") if dims is None else dims
        counted: dict[str, Any] = {}
        if dims is None:
            counted = dict(paths.flatten_with_paths(values.get("fan_ins")))

        def at_leaf(path, mask, update):
            axes = resolve_axes(axes_of, path, mask)
            if axes is None:
                return update
            counts = counted.get(path)
            if counts is None:
                counts = fan_in(whole_mask(mask), axes)
            return scale(update, at_active(mask, correction_factor(counts, axes)))

        return map_masked_with_path(at_leaf, masks, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale(update: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply in at least float32; return the dtype of ``update``."""
    wide = jnp.promote_types(update.dtype, jnp.float32)
    return (update.astype(wide) * factor).astype(update.dtype)

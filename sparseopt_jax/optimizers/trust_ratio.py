"""The trust ratio of LARS and LAMB, taken over the active weights of each layer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import check_choice, chosen
from sparseopt_jax.corrections.sparseopt import scale
from sparseopt_jax.layers.eligibility import Where, is_decayed
from sparseopt_jax.layers.neurons import (
    Axes,
    Dims,
    NeuronDims,
    check_dims,
    one_neuron,
    resolve_axes,
)
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.active_weights import ActiveWeights
from sparseopt_jax.trees import paths


def scale_by_sparse_trust_ratio(
    *,
    trust_coefficient: jax.typing.ArrayLike = 1.0,
    eps: jax.typing.ArrayLike = 0.0,
    where: Where | None = None,
    dims: Dims = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each layer's update by the norm of its active weights.

    .. math::
      u \leftarrow c\, \frac{\lVert \theta \rVert}{\lVert u \rVert + \epsilon}\, u

    Both norms are taken over the weights that are active and not zero. A newly grown
    weight is exactly zero, and its first update is large, because its state holds only
    one gradient. It would count in :math:`\lVert u \rVert` but not in
    :math:`\lVert \theta \rVert`, and slow the whole layer down at every update of the
    masks. The ratio is 1, without :math:`c`, if either norm is 0, as for a layer that
    starts at zero.

    Inside ``sparsify`` it reads the masks; dense leaves, and everything outside
    ``sparsify``, count as fully active. If no weight is zero it is
    ``optax.scale_by_trust_ratio``.

    Args:
      trust_coefficient: c; 1 for LAMB, usually 0.001 for LARS.
      eps: added to the norm of the update.
      where: ``where(path, leaf) -> bool``; False leaves a leaf unscaled. None leaves
        vectors, biases and normalisation scales unscaled.
      dims: the axes of kernels that do not follow the Flax convention, as in
        ``static``; None takes the topology's. Each layer of a stack has its own ratio.

    Returns:
      A stateless transformation. ``update`` needs ``params`` and takes a tree of
      updates of any floating dtype, which it keeps; norms are taken in float32.

    Raises:
      TypeError: if ``where`` is not a function.
      ValueError: at ``init`` or ``update`` if ``dims`` do not fit the parameters; at
        ``update`` without ``params``.

    Note:
      The papers cover dense networks only: leaving out zeros is our choice, and so is
      leaving out vectors, which published implementations make optional.

      From its second step on, a grown weight counts like any other. Adam corrects the
      moments of all weights for the steps of the run, not those of the weight, so
      updates of grown weights stay large, and their layer's ratio small, for about
      1 / (1 - b2) steps. ``scale_by_local_adam`` avoids this.

      With masks in the forward pass only, as with ``ste``, all weights are scaled by
      the ratio of those that the forward pass uses.

      With ``optax.inject_hyperparams`` name ``where`` and ``dims`` in
      ``static_args``.

    References:
      You et al., Large batch training of convolutional networks, 2017
      (arXiv 1708.03888), algorithm 1; You et al., Large batch optimization for deep
      learning: training BERT in 76 minutes, 2020 (arXiv 1904.00962), algorithms 1
      and 2, with the identity for their :math:`\phi`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> mask = jnp.array([[True, True, True, False]])  # the third has just been grown
      >>> params = {"kernel": jnp.array([[3.0, 4.0, 0.0, 0.0]])}
      >>> grads = {"kernel": jnp.array([[0.6, 0.8, 9.0, 9.0]])}
      >>> ratio = so.scale_by_sparse_trust_ratio()
      >>> tx = so.sparsify(ratio, so.static(masks={"kernel": mask}))
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(updates["kernel"][mask])  # norms of (3, 4) and (0.6, 0.8): ratio 5
      [ 3.  4. 45.]
    """
    check_choice("where", where)
    check_dims(dims)

    def passes(path, leaf):
        if paths.is_hole(leaf):
            return True
        if where is None:
            return not is_decayed(path, leaf)
        return not chosen("where", where, path, leaf)

    def init_fn(params):
        for path, leaf in paths.flatten_with_paths(params):
            if not passes(path, leaf):
                # A glob may match leaves that will be dense: `update` knows which.
                is_kernel = isinstance(dims, NeuronDims)
                resolve_axes(dims, path, leaf, is_sparse=is_kernel)
        return optax.EmptyState()

    def update_fn(updates, state, params=None, **extra_args):
        values = environment.values(extra_args)
        if params is None:
            raise ValueError(
                "params are needed for their norms: call "
                "tx.update(grads, opt_state, params)"
            )
        axes_of = values.get("neuron_dims") if dims is None else dims
        active = paths.leaves_by_path(values.get("masks"))

        def at_leaf(path, update, param):
            if passes(path, param):
                return update
            mask = active.get(path)
            whole = param if mask is None else mask
            axes = resolve_axes(axes_of, path, whole, is_sparse=mask is not None)
            axes = axes or one_neuron(whole)
            sizes = _norms(mask, update, param, axes)
            return scale(update, _trust_ratio(*sizes, trust_coefficient, eps))

        return paths.map_with_paths(at_leaf, updates, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _norms(
    mask: Any, update: jax.Array, param: jax.Array, axes: Axes
) -> tuple[jax.Array, jax.Array]:
    """Return the norms of each layer's weights and of their updates.

    Args:
      mask: bool array, True = active, or ``ActiveWeights``, of which ``update`` and
        ``param`` are; None for a dense leaf.
      update: array like the leaf.
      param: the weights.
      axes: the leaf's axes.

    Returns:
      float32 (float64 for such weights), with the axes of a layer kept with size 1.
    """
    counts, layer = param != 0, axes.layer
    if isinstance(mask, ActiveWeights):
        # All of them are active; the axes that separate layers may have moved.
        origins = enumerate(mask.layout.origins)
        layer = tuple(a for a, origin in origins if origin not in axes.batch)
    elif mask is not None:
        counts &= mask
    weights, updates = (
        jnp.sqrt(jnp.sum(_square(counts, x), layer, keepdims=True))
        for x in (param, update)
    )
    return weights, updates


def _square(counts: jax.Array, x: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.square(jnp.abs(jnp.where(counts, x, 0).astype(wide)))


def _trust_ratio(
    weights: jax.Array,
    updates: jax.Array,
    trust_coefficient: jax.typing.ArrayLike,
    eps: jax.typing.ArrayLike,
) -> jax.Array:
    """Return LARS's and LAMB's ratio of two norms, 1 where either is 0."""
    either_is_zero = (weights == 0) | (updates == 0)
    ratio = trust_coefficient * weights / jnp.where(either_is_zero, 1, updates + eps)
    return jnp.where(either_is_zero, 1, ratio)

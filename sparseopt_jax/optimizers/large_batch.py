"""LAMB and LARS: each layer's step in proportion to its active weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import check_choice, check_rate, chosen
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.corrections.sparseopt import scale, scale_by_sparseopt
from sparseopt_jax.engine.sparsify import sparsify
from sparseopt_jax.engine.straight_through import AnyTopology
from sparseopt_jax.layers.eligibility import Where, decay_mask, is_decayed
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
    exclude: Where | None = None,
    dims: Dims = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales each layer's update by the size of its active weights.

    .. math::
      u \leftarrow c\, \frac{\lVert \theta \rVert}{\lVert u \rVert + \epsilon}\, u

    Both norms are taken over the weights that are active and not zero. A weight that
    has just been grown is exactly zero, and its first update is large, since it knows
    of one gradient only: in :math:`\lVert u \rVert` it would count, in
    :math:`\lVert \theta \rVert` it cannot, and the whole layer would slow down when
    its topology changes. The ratio is 1, without :math:`c`, where either norm is 0, as
    for a layer that starts at zero.

    Inside ``sparsify`` it reads the masks; dense leaves, and everything outside of
    ``sparsify``, count as active throughout. Where no weight is zero it is
    ``optax.scale_by_trust_ratio``.

    Args:
      trust_coefficient: c, 1 for LAMB, by custom 0.001 for LARS.
      eps: added to the norm of the update.
      exclude: ``exclude(path, leaf) -> bool``, True for leaves that pass unscaled;
        None for vectors, biases and normalisation scales.
      dims: the axes of kernels that do not follow the Flax convention, as in
        ``static``; None takes the topology's. Each layer of a stack has a ratio of its
        own.

    Returns:
      A stateless transformation. ``update`` needs ``params`` and takes a tree of
      updates, of any floating type, which is kept; norms are taken in float32.

    Raises:
      TypeError: if ``exclude`` is no function.
      ValueError: at ``init`` or ``update`` if ``dims`` do not fit the parameters; at
        ``update`` without ``params``.

    Note:
      The papers know dense networks only: leaving out what is zero is our choice, and
      so is leaving out vectors, which published implementations make an option.

      From its second step on a grown weight counts like any other. Adam corrects the
      moments of all weights for the steps that the run has taken, not for those that
      the weight has, so that updates of grown weights stay large, and the ratio of
      their layer small, for about 1 / (1 - b2) steps. An Adam that counts steps weight
      by weight is without that.

      A weight whose mask is the forward pass's alone, as with ``ste``, is scaled by the
      ratio of those that the forward pass uses.

      With ``optax.inject_hyperparams`` name ``exclude`` and ``dims`` in
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
    check_choice("exclude", exclude)
    check_dims(dims)

    def passes(path, leaf):
        if paths.is_hole(leaf):
            return True
        if exclude is None:
            return not is_decayed(path, leaf)
        return chosen("exclude", exclude, path, leaf)

    def init_fn(params):
        for path, leaf in paths.flatten_with_paths(params):
            if not passes(path, leaf):
                # A glob may match leaves that will be dense: `update` knows which.
                is_kernel = isinstance(dims, NeuronDims)
                resolve_axes(dims, path, leaf, is_sparse=is_kernel)
        return optax.EmptyState()

    def update_fn(updates, state, params=None, **extra_args):
        told = environment.told(extra_args)
        if params is None:
            raise ValueError(
                "params are needed for their norms: call "
                "tx.update(grads, opt_state, params)"
            )
        axes_of = told.get("neuron_dims") if dims is None else dims
        active = paths.leaves_by_path(told.get("masks"))

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


def sparse_lars(
    learning_rate: optax.ScalarOrSchedule,
    topology: AnyTopology,
    *,
    momentum: jax.typing.ArrayLike = 0.9,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    sparseopt: bool = False,
    key: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""LARS on a sparse network: SGD whose layers move in proportion to their size.

    .. math::
      u = c\, \frac{\lVert \theta \rVert}
        {\lVert D g + \lambda \theta \rVert + \epsilon}\, (D g + \lambda \theta),
      \qquad v \leftarrow \mu v - \eta u, \qquad \theta \leftarrow \theta + v

    per layer, with the norms of ``scale_by_sparse_trust_ratio`` and D the correction of
    ``scale_by_sparseopt``. Of D only the differences between neurons matter: what is
    common to a layer the ratio divides out, up to :math:`\lambda` and
    :math:`\epsilon`.

    Args:
      learning_rate: a number or a schedule.
      topology: which weights are active, from ``static``, ``set_``, ``rigl`` or any
        other method.
      momentum: decay of the momentum, which follows the learning rate.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: coefficient of the L2 term, added to the corrected gradient before
        the ratio; biases and normalisations are not decayed.
      trust_coefficient: c; biases and normalisations are scaled neither by it nor by
        the ratio.
      eps: added to the norm in the denominator.
      sparseopt: whether to correct the gradient per neuron, by ``scale_by_sparseopt``.
        Off by default, which is our choice: docs/when_it_helps.md says why.
      key: seed or PRNG key of the topology, as in ``sparsify``.

    Returns:
      The transformation; ``update`` needs ``params``.

    Raises:
      ValueError: as ``sparsify``.

    Note:
      As in ``optax.lars``, which it equals where no weight is zero: the denominator is
      the norm of the sum, where the paper has the sum of the two norms. With
      ``optax.inject_hyperparams`` name ``topology``, ``nesterov`` and ``sparseopt`` in
      ``static_args``.

    References:
      You et al., Large batch training of convolutional networks, 2017
      (arXiv 1708.03888), algorithm 1; Adnan et al., SparseOpt, 2026
      (arXiv 2605.27541), which does not mention LARS: the place of D is our choice.

    Examples:
      >>> import sparseopt_jax as so
      >>> tx = so.sparse_lars(
      ...     8.0, so.rigl(0.9, every=100, stop=7_500), weight_decay=1e-4
      ... )
    """
    check_static(nesterov=nesterov, sparseopt=sparseopt)
    check_rate("learning_rate", learning_rate, "sparse_lars(learning_rate, topology)")
    check_rate("weight_decay", weight_decay, "sparse_lars(..., weight_decay=1e-4)")
    inner = optax.chain(
        scale_by_sparseopt() if sparseopt else optax.identity(),
        optax.add_decayed_weights(weight_decay, decay_mask),
        scale_by_sparse_trust_ratio(trust_coefficient=trust_coefficient, eps=eps),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(decay=momentum, nesterov=nesterov),
    )
    return sparsify(inner, topology, key=key)


def sparse_lamb(
    learning_rate: optax.ScalarOrSchedule,
    topology: AnyTopology,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    sparseopt: bool = False,
    key: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""LAMB on a sparse network: AdamW whose layers move in proportion to their size.

    .. math::
      u = D\, \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda \theta, \qquad
      \theta \leftarrow \theta
        - \eta\, \frac{\lVert \theta \rVert}{\lVert u \rVert}\, u

    per layer, with Adam's moments, the norms of ``scale_by_sparse_trust_ratio`` and D
    the correction of ``scale_by_sparseopt``, behind Adam's normalisation and before the
    ratio: in front of Adam it would have no effect. Of D only the differences between
    neurons matter: what is common to a layer the ratio divides out, up to
    :math:`\lambda`.

    Args:
      learning_rate: a number or a schedule.
      topology: which weights are active, from ``static``, ``set_``, ``rigl`` or any
        other method.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay, added before the ratio; biases and
        normalisations are not decayed.
      sparseopt: whether to correct the update per neuron, by ``scale_by_sparseopt``.
        Off by default, which is our choice: docs/when_it_helps.md says why.
      key: seed or PRNG key of the topology, as in ``sparsify``.

    Returns:
      The transformation; ``update`` needs ``params``.

    Raises:
      ValueError: as ``sparsify``.

    Note:
      As ``optax.lamb``, which it equals where no weight is zero, except for biases and
      normalisations: those are Adam's, as the ratio of LARS leaves them out. With
      ``optax.inject_hyperparams`` name ``topology`` and ``sparseopt`` in
      ``static_args``.

    References:
      You et al., Large batch optimization for deep learning: training BERT in 76
      minutes, 2020 (arXiv 1904.00962), algorithm 2; Adnan et al., SparseOpt, 2026
      (arXiv 2605.27541), which does not mention LAMB: the place of D is our choice.

    Examples:
      >>> import sparseopt_jax as so
      >>> tx = so.sparse_lamb(
      ...     0.01, so.rigl(0.9, every=100, stop=7_500), weight_decay=0.01
      ... )
    """
    check_static(sparseopt=sparseopt)
    check_rate("learning_rate", learning_rate, "sparse_lamb(learning_rate, topology)")
    check_rate("weight_decay", weight_decay, "sparse_lamb(..., weight_decay=1e-4)")
    inner = optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        scale_by_sparseopt() if sparseopt else optax.identity(),
        optax.add_decayed_weights(weight_decay, decay_mask),
        scale_by_sparse_trust_ratio(),
        optax.scale_by_learning_rate(learning_rate),
    )
    return sparsify(inner, topology, key=key)


def _norms(
    mask: Any, update: jax.Array, param: jax.Array, axes: Axes
) -> tuple[jax.Array, jax.Array]:
    """The norms of each layer's weights and of their updates.

    Args:
      mask: bool array, True = active, or ``ActiveWeights``, of which ``update`` and
        ``param`` are; None for a dense leaf.
      update: array like the leaf.
      param: the weights.
      axes: the leaf's axes.

    Returns:
      float32 (float64 of such weights), the axes of a layer kept with size 1.
    """
    counts, layer = param != 0, axes.layer
    if isinstance(mask, ActiveWeights):
        # All of them are active; the axes that tell layers apart may have moved.
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
    """LARS's and LAMB's ratio of two norms, 1 where either is 0."""
    either_is_zero = (weights == 0) | (updates == 0)
    ratio = trust_coefficient * weights / jnp.where(either_is_zero, 1, updates + eps)
    return jnp.where(either_is_zero, 1, ratio)

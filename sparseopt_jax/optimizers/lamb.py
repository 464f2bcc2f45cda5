"""LAMB on a sparse network: AdamW with a trust ratio of the active weights."""

import jax
import optax

from sparseopt_jax.arguments.checks import check_rate
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.corrections.sparseopt import scale_by_sparseopt
from sparseopt_jax.engine.sparsify import sparsify
from sparseopt_jax.layers.eligibility import decay_mask
from sparseopt_jax.optimizers.trust_ratio import scale_by_sparse_trust_ratio
from sparseopt_jax.topologies.base import Topology


def sparse_lamb(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    sparseopt: bool = False,
    key: jax.typing.ArrayLike = 0,
    host_updates: bool = False,
    packed: bool = False,
    compact: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Train a sparse network by LAMB: AdamW with a trust ratio per layer.

    .. math::
      u = D\, \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda \theta, \qquad
      \theta \leftarrow \theta
        - \eta\, \frac{\lVert \theta \rVert}{\lVert u \rVert}\, u

    per layer, with Adam's moments, the norms of ``scale_by_sparse_trust_ratio`` and D
    the correction of ``scale_by_sparseopt``, after Adam's normalisation, since before
    Adam it would have no effect, and before the ratio. Only the differences between
    neurons in D matter: the ratio divides out what a layer has in common, up to
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
        Off by default, which is our choice; docs/when_it_helps.md explains it.
      key: seed or PRNG key of the topology, as in ``sparsify``.
      host_updates: True leaves the topology's updates to ``update_topology``, as in
        ``sparsify``.
      packed: True keeps masks as bits, as in ``sparsify``.
      compact: True keeps optimizer state for active weights only, as in
        ``sparsify``.

    Returns:
      The transformation; ``update`` needs ``params``.

    Raises:
      ValueError: as ``sparsify``.

    Note:
      Equal to ``optax.lamb`` where no weight is zero, except that biases and
      normalisations take Adam's step without a ratio, as in LARS. With
      ``optax.inject_hyperparams`` name ``topology``, ``sparseopt`` and, where they are
      given, ``host_updates``, ``packed`` and ``compact`` in ``static_args``.

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
    return sparsify(
        inner,
        topology,
        key=key,
        host_updates=host_updates,
        packed=packed,
        compact=compact,
    )

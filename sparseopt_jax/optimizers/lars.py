"""LARS on a sparse network: SGD with a trust ratio of the active weights."""

import jax
import optax

from sparseopt_jax.arguments.checks import check_rate
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.corrections.sparseopt import scale_by_sparseopt
from sparseopt_jax.engine.sparsify import sparsify
from sparseopt_jax.layers.eligibility import decay_mask
from sparseopt_jax.optimizers.trust_ratio import scale_by_sparse_trust_ratio
from sparseopt_jax.topologies.base import Topology


def sparse_lars(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    *,
    momentum: jax.typing.ArrayLike = 0.9,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    sparseopt: bool = False,
    key: jax.typing.ArrayLike = 0,
    host_updates: bool = False,
    packed: bool = False,
    compact: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Train a sparse network by LARS: SGD with a trust ratio per layer.

    .. math::
      u = c\, \frac{\lVert \theta \rVert}
        {\lVert D g + \lambda \theta \rVert + \epsilon}\, (D g + \lambda \theta),
      \qquad v \leftarrow \mu v - \eta u, \qquad \theta \leftarrow \theta + v

    per layer, with the norms of ``scale_by_sparse_trust_ratio`` and D the correction of
    ``scale_by_sparseopt``. Only the differences between neurons in D matter: the ratio
    divides out what a layer has in common, up to :math:`\lambda` and
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
      Equal to ``optax.lars`` where no weight is zero: as there, the denominator is the
      norm of the sum, where the paper has the sum of the two norms. With
      ``optax.inject_hyperparams`` name ``topology``, ``nesterov``, ``sparseopt`` and,
      where they are given, ``host_updates``, ``packed`` and ``compact`` in
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
    return sparsify(
        inner,
        topology,
        key=key,
        host_updates=host_updates,
        packed=packed,
        compact=compact,
    )

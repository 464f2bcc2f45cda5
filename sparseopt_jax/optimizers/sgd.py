"""SGD on a sparse network, with each transformation in its place."""

import jax
import optax

from sparseopt_jax.arguments.checks import check_rate
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.corrections.sparseopt import scale_by_sparseopt
from sparseopt_jax.engine.sparsify import sparsify
from sparseopt_jax.layers.eligibility import decay_mask
from sparseopt_jax.topologies.base import Topology


def sparse_sgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    *,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    sparseopt: bool = False,
    key: jax.typing.ArrayLike = 0,
    host_updates: bool = False,
    packed: bool = False,
    compact: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train a sparse network by SGD: correction, coupled L2, momentum, learning rate.

    With ``sparseopt=True`` it is ``sparsify(chain(scale_by_sparseopt(),
    add_decayed_weights(...), sgd(...)), topology)``.

    Args:
      learning_rate: a number or a schedule.
      topology: which weights are active, from ``static``, ``set_``, ``rigl`` or any
        other method.
      momentum: decay of the momentum; None for none (the papers use 0.9).
      nesterov: whether the momentum is Nesterov's.
      weight_decay: coefficient of the L2 term, added to the corrected gradient before
        the momentum; biases and normalisations are not decayed.
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
      With ``optax.inject_hyperparams`` name ``topology``, ``nesterov``, ``sparseopt``
      and, where they are given, ``host_updates``, ``packed`` and ``compact`` in
      ``static_args``.

    References:
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541), whose SGD this is; adding the
      L2 term after the correction is our choice.

    Examples:
      >>> import sparseopt_jax as so
      >>> tx = so.sparse_sgd(
      ...     0.1,
      ...     so.rigl(0.9, every=100, stop=75_000),
      ...     momentum=0.9,
      ...     weight_decay=5e-4,
      ...     sparseopt=True,
      ... )
    """
    check_static(nesterov=nesterov, sparseopt=sparseopt)
    check_rate("learning_rate", learning_rate, "sparse_sgd(learning_rate, topology)")
    check_rate("weight_decay", weight_decay, "sparse_sgd(..., weight_decay=1e-4)")
    inner = optax.chain(
        scale_by_sparseopt() if sparseopt else optax.identity(),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )
    return sparsify(
        inner,
        topology,
        key=key,
        host_updates=host_updates,
        packed=packed,
        compact=compact,
    )

"""AdamW on a sparse network, with each transformation in its place."""

import jax
import optax

from sparseopt_jax.arguments.checks import check_rate
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.corrections.sparseopt import scale_by_sparseopt
from sparseopt_jax.engine.sparsify import sparsify
from sparseopt_jax.layers.eligibility import decay_mask
from sparseopt_jax.topologies.base import Topology


def sparse_adamw(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    sparseopt: bool = False,
    key: jax.typing.ArrayLike = 0,
    host_updates: bool = False,
    packed: bool = False,
    compact: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train a sparse network by AdamW, with any correction after Adam's normalisation.

    Before it, a constant scale per neuron would be divided out.

    Args:
      learning_rate: a number or a schedule.
      topology: which weights are active, from ``static``, ``set_``, ``rigl`` or any
        other method.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay; biases and normalisations are not decayed.
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
      The paper names Adam as a base optimizer but does not say where the scale
      belongs; after ``scale_by_adam`` is our choice, for the reason above. With
      ``optax.inject_hyperparams`` name ``topology``, ``sparseopt`` and, where they are
      given, ``host_updates``, ``packed`` and ``compact`` in ``static_args``.

    References:
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541); Loshchilov and Hutter,
      Decoupled weight decay regularization, 2019 (arXiv 1711.05101).

    Examples:
      >>> import sparseopt_jax as so
      >>> tx = so.sparse_adamw(1e-3, so.set_(0.9, every=100, stop=75_000))
    """
    check_static(sparseopt=sparseopt)
    check_rate("learning_rate", learning_rate, "sparse_adamw(learning_rate, topology)")
    check_rate("weight_decay", weight_decay, "sparse_adamw(..., weight_decay=1e-4)")
    inner = optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        scale_by_sparseopt() if sparseopt else optax.identity(),
        optax.add_decayed_weights(weight_decay, decay_mask),
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

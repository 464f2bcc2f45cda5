"""Masks and SparseOpt as a link of a plain chain, before any optimizer."""

import jax
import optax

from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.corrections.sparseopt import scale_by_sparseopt
from sparseopt_jax.engine.make_owner import make_owner
from sparseopt_jax.layers.neurons import Dims
from sparseopt_jax.masks.bit_storage import BitStorage
from sparseopt_jax.masks.byte_storage import ByteStorage
from sparseopt_jax.topologies.base import Topology


def sparseopt(
    topology: Topology,
    *,
    key: jax.typing.ArrayLike = 0,
    dims: Dims = None,
    host_updates: bool = False,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Apply masks and SparseOpt as the first link of a plain ``optax.chain``.

    It updates the masks when due, masks the gradient and scales it per neuron. The
    optimizer that follows does not know the masks, so it differs from ``sparsify`` in
    three ways. Prefer ``sparsify`` unless you need a plain chain.

    - Inactive weights are set to zero by ``apply_updates(params, updates, opt_state)``
      of this package, not by optax's function.
    - A grown weight starts with whatever its momentum has decayed to, and where RigL
      replaces the gradient step, the optimizer sees zero gradients, so momentum still
      moves weights.
    - SET updates the masks before the step, because the weights after it are unknown
      here, unless the host updates them.

    There is no ``compact``: the optimizer keeps state for all weights.

    With Adam, use ``sparse_adamw`` instead: before Adam the scale has no effect.

    Args:
      topology: which weights are active, from ``static``, ``set_``, ``rigl`` or any
        other method.
      key: as in ``sparsify``.
      dims: as in ``scale_by_sparseopt``.
      host_updates: True leaves the topology's updates to ``update_topology``, as in
        ``sparsify``; for a topology that follows the step, call it after
        ``apply_updates``.
      packed: True keeps masks as bits, as in ``sparsify``.

    Returns:
      The transformation; its state is a ``SparseState``, and ``update`` needs
      ``params``.

    Raises:
      ValueError: as ``sparsify``.

    Note:
      With ``optax.inject_hyperparams`` name ``topology`` and, where they are given,
      ``dims``, ``host_updates`` and ``packed`` in ``static_args``.

    References:
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541).

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> tx = optax.chain(
      ...     so.sparseopt(so.rigl(0.75, every=100, stop=1000)),
      ...     optax.sgd(0.1, momentum=0.9),
      ... )
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> state = tx.init(params)
      >>> params = so.apply_masks(params, state)
      >>> updates, state = tx.update(params, state, params)
      >>> params = so.apply_updates(params, updates, state)
    """
    check_static(host_updates=host_updates, packed=packed)
    return make_owner(
        scale_by_sparseopt(dims=dims),
        topology,
        BitStorage() if packed else ByteStorage(),
        key=key,
        host_updates=host_updates,
        is_link=True,
    )

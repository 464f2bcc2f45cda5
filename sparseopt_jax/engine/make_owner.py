"""The transformation of an owner of masks, which ``sparsify`` returns."""

import jax
import optax

from sparseopt_jax.engine.compact import check_compact
from sparseopt_jax.engine.compact_step import CompactStep, check_dense
from sparseopt_jax.engine.owner import MaskOwner
from sparseopt_jax.engine.transformations import checked_inner
from sparseopt_jax.masks.compact_kernel import holds_compact
from sparseopt_jax.masks.storage import MaskStorage
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.trees.evened_boxes import evened
from sparseopt_jax.trees.prng_keys import check_key


def make_owner(
    inner: optax.GradientTransformation,
    topology: Topology,
    storage: MaskStorage,
    *,
    key: jax.typing.ArrayLike,
    host_updates: bool = False,
    is_link: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation of a ``MaskOwner``.

    Args:
      inner: as in ``sparsify``.
      topology: as in ``sparsify``.
      storage: how the masks are stored.
      key: as in ``sparsify``.
      host_updates: as in ``sparsify``.
      is_link: as in ``MaskOwner``.

    Returns:
      The transformation.

    Raises:
      TypeError: as ``sparsify``; for a link, if the topology keeps weights dense.
      ValueError: as ``sparsify``.
    """
    check_key(key)
    if not isinstance(topology, Topology):
        raise TypeError(
            f"topology must be a Topology, such as so.static(0.9), got {topology!r}"
        )
    if is_link and topology.stays_dense:
        raise TypeError(
            f"{topology.name} keeps the weights behind its masks dense, which needs "
            "sparsify, because sparseopt sets them to zero: call "
            "so.sparsify(inner, topology)"
        )
    if host_updates and topology.replaces_step is None:
        raise ValueError(
            "host_updates needs phases that all replace the gradient step, or all "
            "follow it"
        )
    inner = checked_inner(inner)
    if storage.is_compact:
        check_compact(inner, topology)
    owner = MaskOwner(
        inner=inner,
        topology=topology,
        storage=topology.storage(storage),
        key=key,
        host_updates=host_updates,
        is_link=is_link,
    )
    return optax.GradientTransformationExtraArgs(owner.init, update_of(owner))


def update_of(owner: MaskOwner) -> optax.TransformUpdateExtraArgsFn:
    """Return the update of an owner, for dense and compact parameters.

    Args:
      owner: the owner. Other code finds it through ``tx.init``, one of its methods.
    """
    compact, dense = CompactStep(owner), evened(owner.update)

    def update(updates, state, params=None, **extra_args):
        if holds_compact(params):
            return compact.update(updates, state, params, extra_args)
        if params is not None:
            check_dense(owner.storage, updates, state)
        return dense(updates, state, params, **extra_args)

    return update

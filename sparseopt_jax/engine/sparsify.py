"""``sparsify``: masks around any optimizer."""

import jax
import optax

from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.engine.make_owner import make_owner
from sparseopt_jax.engine.placement import check_placement
from sparseopt_jax.masks.bit_storage import BitStorage
from sparseopt_jax.masks.byte_storage import ByteStorage
from sparseopt_jax.masks.compact_storage import CompactStorage
from sparseopt_jax.topologies.base import Topology


def sparsify(
    inner: optax.GradientTransformation,
    topology: Topology,
    *,
    key: jax.typing.ArrayLike = 0,
    host_updates: bool = False,
    packed: bool = False,
    compact: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Train sparse with any optimizer.

    Each step the masked gradient goes through ``inner``, once, and the resulting update
    makes inactive weights exactly zero:

    .. math::
      u = \begin{cases} \mathrm{inner}(m \odot g) & m = 1 \\ -w & m = 0 \end{cases}

    so that ``optax.apply_updates`` is all that follows. When the topology is due, its
    masks change within the step. Whatever ``inner`` keeps for an inactive weight has
    the value that ``inner.init`` gives, so that a newly grown weight starts at zero
    with a fresh state, and a weight that is dropped and regrown at once keeps its own.

    The package's transformations read the masks inside of it. One of your own receives
    them if its ``update`` names them, ``def update(updates, state, params=None, *,
    masks, **extra_args)``; all others see only the arguments that you pass.

    Leaves that ``inner`` never moves, as ``optax.partition`` with ``set_to_zero`` has
    them, keep their masks, and a warning at ``init`` names them where a topology has
    chosen those masks.

    Put it outermost, except for ``optax.MultiSteps``, ``optax.apply_if_finite`` and
    the like around it: nothing may scale or narrow the update afterwards.

    Args:
      inner: any transformation, ready with its learning rate, say
        ``optax.chain(scale_by_sparseopt(), optax.sgd(0.1))``. A correction before a
        transformation that normalises the gradient, such as Adam, is divided out
        again: that is warned of.
      topology: which weights are active, from ``static``, ``set_``, ``rigl`` or any
        other method.
      key: seed or PRNG key, the same on every replica: any integer that
        ``jax.random.key`` takes, a typed key, or its uint32 data.
      host_updates: leave the topology's changes to ``update_topology``, called from
        the host; the step then contains no condition.
      packed: keep the masks as one bit a weight instead of one byte. The results are
        the same, to the last bit; ``get_masks`` gives bool arrays in any case. In the
        state they are ``PackedMask`` nodes, which ``optax.tree.map_params`` cannot map
        together with trees of the parameters.
      compact: let ``inner`` see and keep active weights alone, side by side in an array
        of their number, so that moments take memory in proportion to the density. It
        needs a topology that keeps the number of active weights. The results are those
        of ``compact=False``, up to the rounding of sums over a layer, such as norms.
        In the state masks are the places of active units, int32; ``masks=`` that a
        transformation inside reads are ``ActiveWeights``. A leaf that is split over
        devices may be split along axes only that its active weights do not cross: for
        ``ConstantFanIn`` and ``NM`` the neurons'.

    Returns:
      The transformation; its state is a ``SparseState``. ``update`` needs ``params``
      and hands further keyword arguments down to ``inner``.

    Raises:
      TypeError: if ``topology`` is no topology, or ``inner`` no transformation.
      ValueError: if ``inner`` holds ``optax.MultiSteps``, which belongs outside, or
        ``optax.contrib.sam`` without its opaque mode; for ``packed`` with ``compact``;
        with ``compact``, if ``inner`` gives a weight something else when it
        sees the active ones alone (Muon, Adafactor), named in the message, or if the
        topology changes numbers of active weights; at ``init``, where the topology
        does not fit the parameters; at ``update``, without ``params``, with ``masks``
        from outside, or with gradients of other shapes than the parameters.

    Note:
      With ``optax.inject_hyperparams`` name ``inner``, ``topology``, ``host_updates``,
      ``packed`` and ``compact`` in ``static_args``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> tx = so.sparsify(optax.adam(1e-3), so.rigl(0.75, every=100, stop=1000))
      >>> state = tx.init(params)
      >>> params = so.apply_masks(params, state)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> int((params["kernel"] != 0).sum())
      8
    """
    check_static(host_updates=host_updates, packed=packed, compact=compact)
    check_placement(inner)
    if compact and packed:
        raise ValueError(
            "packed and compact are two ways to keep masks: with compact=True they are "
            "the places of active weights already; leave one of both out"
        )
    storage = CompactStorage() if compact else BitStorage() if packed else ByteStorage()
    return make_owner(inner, topology, storage, key=key, host_updates=host_updates)

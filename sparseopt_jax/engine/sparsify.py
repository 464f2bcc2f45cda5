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

    In each step the masked gradient passes through ``inner`` once, and the resulting
    update makes inactive weights exactly zero:

    .. math::
      u = \begin{cases} \mathrm{inner}(m \odot g) & m = 1 \\ -w & m = 0 \end{cases}

    so that only ``optax.apply_updates`` follows. If an update of the masks is due, it
    happens within the step. The state that ``inner`` keeps for an inactive weight has
    its initial value from ``inner.init``: a newly grown weight starts at zero with a
    fresh state, and a weight that is dropped and regrown at once keeps its state.

    The package's transformations inside ``sparsify`` read the masks. Your own
    transformation receives them if its ``update`` names them, ``def update(updates,
    state, params=None, *, masks, **extra_args)``; all others see only the arguments
    that you pass.

    Leaves that ``inner`` never changes, as with ``set_to_zero`` in
    ``optax.partition``, keep their masks; ``init`` warns of those whose masks were
    chosen by a topology.

    Put it outermost, except for wrappers such as ``optax.MultiSteps`` and
    ``optax.apply_if_finite``: nothing may scale the update or lower its precision
    afterwards, or combine the weights of several steps, as ``schedule_free`` and
    ``mechanize`` do. Around it, ``optax.lookahead`` needs ``so.apply_updates``.

    Args:
      inner: any transformation, including its learning rate, such as
        ``optax.chain(scale_by_sparseopt(), optax.sgd(0.1))``. A transformation that
        normalises the gradient, such as Adam, cancels a correction before it, which
        causes a warning.
      topology: decides which weights are active: ``static``, ``set_``, ``rigl`` or any
        other method.
      key: seed or PRNG key, the same on every replica: any integer that
        ``jax.random.key`` takes, a typed key, or its uint32 data.
      host_updates: leave updates of the masks to ``update_topology``, called from the
        host; the step then contains no conditional.
      packed: store the masks with one bit per weight instead of one byte. The results
        are identical bit for bit, and ``get_masks`` always returns bool arrays. The
        state holds ``PackedMask`` nodes, which ``optax.tree.map_params`` cannot map
        together with trees of the parameters.
      compact: show ``inner`` only the active weights, side by side in an array of their
        number, so that moments take memory in proportion to the density. It needs a
        topology that keeps the number of active weights. The results equal those of
        ``compact=False``, up to rounding in sums over a layer, such as norms. The state
        holds masks as int32 indices of active units; the ``masks`` that an inner
        transformation reads are ``ActiveWeights``. A leaf may be split over devices
        only along axes that its active weights do not cross: for ``ConstantFanIn`` and
        ``NM``, the axis of the neurons.

    Returns:
      The transformation; its state is a ``SparseState``. ``update`` needs ``params``
      and passes further keyword arguments on to ``inner``. A ``grad_fn`` (SAM) or
      ``obj_fn`` (Sophia) among them is evaluated with zeros at inactive weights, and
      its gradient is masked.

    Raises:
      TypeError: if ``topology`` is not a topology, or ``inner`` not a transformation.
      ValueError: if ``inner`` contains ``optax.MultiSteps``, which belongs outside, or
        ``optax.contrib.sam`` without its opaque mode; for ``packed`` with ``compact``;
        with ``compact``, if ``inner`` would give weights different updates when it sees
        only the active ones (Muon, Adafactor; the message names it), or if the topology
        changes the number of active weights; at ``init``, if the topology does not fit
        the parameters; at ``update``, without ``params``, with ``masks`` from the
        caller, or with gradients that differ in shape from the parameters.

    Note:
      With ``optax.inject_hyperparams``, name ``inner``, ``topology``, ``host_updates``,
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
            "packed and compact are two ways to store masks, and compact=True stores "
            "only the indices of active weights: omit one of the two"
        )
    storage = CompactStorage() if compact else BitStorage() if packed else ByteStorage()
    return make_owner(inner, topology, storage, key=key, host_updates=host_updates)

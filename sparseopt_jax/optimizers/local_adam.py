"""Adam that counts the steps of each weight, for moving topologies."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from sparseopt_jax.arguments.checks import integer, number
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.masks import environment
from sparseopt_jax.trees import paths


class LocalAdamState(NamedTuple):
    """State of ``scale_by_local_adam``.

    Attributes:
      count: int32 array of one entry, the number of steps that moved weights. It is an
        array, as the counts of weights are, so that it stays unchanged where an update
        of the masks replaces a step.
      local_count: int32 arrays like the parameters, steps since a weight was grown;
        with ``shared_axis``, of size 1 along it; ``optax.MaskedNode()`` at leaves that
        are not ``counted``.
      mu: first moments, like the parameters.
      nu: second moments, like the parameters.
    """

    count: jax.Array
    local_count: Any
    mu: Any
    nu: Any


def scale_by_local_adam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    warmup_steps: int = 0,
    *,
    shared_axis: int | None = None,
    counted: Collection[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale by Adam with a bias correction that counts each weight's own steps.

    A grown weight begins with moments of zero. If bias correction counts the steps of
    the run, it no longer corrects them, and the first update is
    :math:`(1 - b_1) / \sqrt{1 - b_2}`, 3.16 learning rates for the usual decays. With
    :math:`t_i` steps since weight i was grown, the update

    .. math::
      u_i = \min\left(\frac{t_i}{W}, 1\right)
            \frac{m_i / (1 - b_1^{t_i})}{\sqrt{v_i / (1 - b_2^{t_i})} + \epsilon}

    begins at one learning rate, or rises to it over W steps of warm-up. Weights that
    were never dropped have no warm-up: with frozen masks this is
    ``optax.scale_by_adam``.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      warmup_steps: W, the steps over which the update of a grown weight rises
        linearly; 0 for no warm-up.
      shared_axis: axis along which weights share one count. In a compact ``sparsify``
        with ``Block``, the last axis is a block, and -1 keeps one count per block.
      counted: paths of the leaves with counts of their own; all others, the dense ones,
        share the count of the run. None counts all leaves.

    Returns:
      The transformation; put it inside ``sparsify``, which resets the counts of grown
      weights.

    Raises:
      ValueError: if ``warmup_steps`` is below 0, or a decay outside [0, 1).
      TypeError: if ``warmup_steps`` is not an integer.

    Note:
      Not warming up weights that are active from the start is our choice: the learning
      rate's schedule covers the start of a run. With masks in the forward pass only, as
      with ``ste``, all trained weights count their steps, whether the forward pass uses
      them or not. With ``jax_enable_x64`` the bias correction of float32 weights is
      still float32; Optax then computes it in float64. With
      ``optax.inject_hyperparams`` name ``warmup_steps``, ``shared_axis`` and
      ``counted`` in ``static_args``.

    References:
      Xiao et al., SMET, 2026 (arXiv 2606.00888): local steps and warm-up.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_local_adam(warmup_steps=100)
      >>> params = {"kernel": jnp.ones((2, 3))}
      >>> tx.init(params).local_count["kernel"].dtype
      dtype('int32')
    """
    check_static(warmup_steps=warmup_steps, shared_axis=shared_axis)
    warmup_steps = integer("warmup_steps", warmup_steps, 0)
    for name, value in (("b1", b1), ("b2", b2)):
        if not isinstance(value, Tracer):
            number(name, value, 0, below=1)

    def init_fn(params):
        def no_steps(path, param):
            if paths.is_hole(param) or not (counted is None or path in counted):
                return optax.MaskedNode()
            shape = list(jnp.shape(param))
            if shared_axis is not None and shape:
                shape[shared_axis] = 1
            return jnp.zeros(shape, jnp.int32)

        return LocalAdamState(
            count=jnp.zeros(1, jnp.int32),
            local_count=paths.map_with_paths(no_steps, params),
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del params
        trained = environment.values(extra_args).get("trained_masks")
        count = jnp.asarray(optax.safe_increment(state.count))
        local_count = _counted(state.local_count, trained)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        nu = optax.tree.cast_like(nu, state.nu)

        def at_leaf(path, m, v, steps):
            if paths.is_hole(m):
                return m
            steps = count[0] if paths.is_hole(steps) else steps
            taken = jnp.maximum(steps, 1)
            m = m / (1 - _power(b1, taken, m.dtype)).astype(m.dtype)
            v = v / (1 - _power(b2, taken, v.dtype)).astype(v.dtype)
            update = m / (jnp.sqrt(v) + eps)
            if not warmup_steps:
                return update
            warm = jnp.minimum(taken.astype(jnp.float32) / warmup_steps, 1.0)
            warm = jnp.where(steps == count[0], 1.0, warm)
            return update * warm.astype(update.dtype)

        updates = paths.map_with_paths(at_leaf, mu, nu, local_count)
        return updates, LocalAdamState(count, local_count, mu, nu)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _counted(local_count: optax.Params, trained: optax.Params | None) -> optax.Params:
    """Count one step more for every weight that takes it.

    Args:
      local_count: the counts.
      trained: masks of the weights that are trained; all are at leaves without one.
    """
    by_path = dict(paths.flatten_with_paths(trained))

    def at_leaf(path, steps):
        mask = by_path.get(path)
        if paths.is_hole(steps):
            return steps
        new = optax.safe_increment(steps)
        # An inactive weight takes no step, and must have none when it is grown.
        if isinstance(mask, jax.Array) and mask.shape == steps.shape:
            new = jnp.where(mask, new, steps)
        return new

    return paths.map_with_paths(at_leaf, local_count)


def _power(decay: Any, steps: jax.Array, dtype: Any) -> jax.Array:
    """Return ``decay ** steps`` in at least float32, without promotion."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.asarray(decay, wide) ** steps.astype(wide)

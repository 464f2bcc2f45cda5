"""HAM: a multiplicative step after each step of an optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from sparseopt_jax.arguments.checks import check_rate, number
from sparseopt_jax.engine.transformations import checked_transformation
from sparseopt_jax.layers.eligibility import is_matrix
from sparseopt_jax.optimizers.learning_rates import check_learning_rate

# A step multiplies a weight by e^5 at most.
_LARGEST = 5.0


class HamState(NamedTuple):
    """State of ``ham``.

    Attributes:
      count: int32 scalar, steps taken.
      inner_state: state of the inner transformation.
    """

    count: jax.Array
    inner_state: Any


def ham(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    alpha: jax.typing.ArrayLike = 200.0,
    beta: jax.typing.ArrayLike = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the multiplicative step of hyperbolic aware minimization to an optimizer.

    The inner transformation takes its step u, and a multiplicative step follows:

    .. math::
      \theta_{1/2} &= \theta + u \\
      \theta' &= \theta_{1/2} \exp\big(-\eta\,
        (\alpha\,\mathrm{sign}(\theta_{1/2})\, g + \beta)\big)

    with the exponent clipped to [-5, 5]. Around gradient descent in small steps, it is
    :math:`\dot\theta = -(1 + \alpha |\theta|)\, g - \beta \theta`: the larger a weight,
    the faster it moves, while near zero it moves as before and may change sign. The
    multiplicative step alone never changes a sign.

    For a neuron :math:`a\, \mathrm{relu}(\gamma \hat x + \beta)` after a normalisation,
    gradient flow conserves :math:`a^2 - \gamma^2 - \beta^2`, whatever is masked or
    rescaled before it, so from a balanced start the sign of :math:`a` cannot change.
    With HAM on :math:`a` it can.

    g is the gradient that arrives here, whatever the inner optimizer makes of it, so a
    correction comes first: ``chain(scale_by_sparseopt(), ham(sgd(lr), lr))``. Adam
    divides a scale out of its own step; inside ``ham``, give it another
    ``scale_by_sparseopt()`` after ``scale_by_adam``. Put all of it into ``sparsify``.

    Args:
      inner: any transformation, including its learning rate.
      learning_rate: eta, the learning rate of ``inner``: a number, or a schedule that
        is called with the number of steps taken.
      alpha: strength of the multiplicative step.
      beta: decay; without a gradient, a weight shrinks by ``exp(-eta * beta)``.

    Returns:
      The transformation; its state is a ``HamState``. ``update`` needs ``params`` and
      passes further keyword arguments to ``inner``. Vectors, scalars and leaves that
      are not real floating-point arrays take the inner step only; weights that are zero
      after it stay zero. Computed in at least float32; updates have the wider dtype of
      the inner updates and the parameters.

    Raises:
      TypeError: if ``inner`` is not a transformation, ``learning_rate`` is neither a
        number nor a function, or ``alpha`` or ``beta`` is not a number.
      ValueError: if a number is negative, infinite or NaN; if ``inner`` uses a
        different learning rate, where that can be read from optax's chains; at
        ``update``, without ``params``.

    Note:
      As in the published code, any leaf of two or more dimensions is a weight, whatever
      its name: embeddings and the scales of stacked layers are included. Use
      ``optax.masked`` or ``optax.partition`` to limit it. Where RigL's update replaces
      a step, it replaces this one too. With ``optax.inject_hyperparams`` name ``inner``
      in ``static_args``.

    References:
      Jacobs et al., Hyperbolic aware minimization: implicit bias for sparsity, 2026
      (arXiv 2506.02630). The balance of a neuron: Adnan et al., SparseOpt, 2026 (arXiv
      2605.27541), appendix A.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> tx = so.sparsify(
      ...     optax.chain(so.scale_by_sparseopt(), so.ham(optax.sgd(0.1), 0.1)),
      ...     so.rigl(0.75, every=100, stop=1000),
      ... )
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> state = tx.init(params)
      >>> params = so.apply_masks(params, state)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
    """
    inner = checked_transformation(inner)
    check_rate("learning_rate", learning_rate, "ham(inner, learning_rate)")
    factors = {"alpha": alpha, "beta": beta}
    if not callable(learning_rate):
        factors["learning_rate"] = learning_rate
    for name, value in factors.items():
        if not isinstance(value, Tracer):
            number(name, value, 0)
    check_learning_rate(learning_rate, inner)

    def init_fn(params):
        return HamState(jnp.zeros([], jnp.int32), inner.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "ham multiplies the weights, so it needs them: call "
                "tx.update(grads, opt_state, params)"
            )
        eta = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def at_leaf(grad, step, param):
            if not is_matrix(param):
                return step
            dtype = jnp.result_type(step, param)
            wide = jnp.promote_types(dtype, jnp.float32)
            grad, step, param = (x.astype(wide) for x in (grad, step, param))
            half = param + step
            rate, strength, decay = (jnp.asarray(x, wide) for x in (eta, alpha, beta))
            exponent = rate * (strength * jnp.sign(half) * grad + decay)
            exponent = jnp.clip(exponent, -_LARGEST, _LARGEST)
            # expm1, because small differences vanish in the rounding of the weight.
            grown = jnp.where(half == 0, 0, half * jnp.expm1(-exponent))
            return (step + grown).astype(dtype)

        steps, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        updates = jax.tree.map(at_leaf, updates, steps, params)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, HamState(count, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

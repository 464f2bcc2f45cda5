"""Sign-In: every weight a product of two factors that are trained in its place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import integer
from sparseopt_jax.arguments.static import check_static
from sparseopt_jax.engine.transformations import checked_transformation
from sparseopt_jax.layers.eligibility import is_matrix
from sparseopt_jax.layers.neurons import Dims, NeuronDims, chosen_dims
from sparseopt_jax.masks import environment


class Factors(NamedTuple):
    """What the inner transformation of ``sign_in`` sees in place of the parameters.

    Each field is a tree like the parameters, with ``optax.MaskedNode()`` at the leaves
    that are in the others.

    Attributes:
      m: the first factors of kernels.
      w: the second ones.
      rest: all other parameters.
    """

    m: Any
    w: Any
    rest: Any


class SignInState(NamedTuple):
    """State of ``sign_in``.

    Attributes:
      steps: float32 scalar, steps since m and w were balanced, or ``every`` and more
        where they are to be balanced next. Where RigL's change replaces a step, it is
        held with the factors, as an integer would not be.
      m: arrays of at least float32, ``optax.MaskedNode()`` at leaves that have no
        factors.
      w: the same; m * w is the parameter.
      inner_state: state of the inner transformation.
    """

    steps: jax.Array
    m: Any
    w: Any
    inner_state: Any


def sign_in(
    inner: optax.GradientTransformation, *, every: int
) -> optax.GradientTransformationExtraArgs:
    r"""Sign-In: trains the factors of every weight, theta = m * w.

    The parameters, and with them checkpoints and the model, are theta as ever. The
    factors are in the state; ``inner`` trains them by their gradients,

    .. math::
      \nabla_m = w \odot g, \qquad \nabla_w = m \odot g, \qquad u = m' w' - m w

    and every ``every`` steps, and at first, they are balanced again without a change of
    theta:

    .. math::
      m^2 - w^2 = 1: \qquad m = \sqrt{\tfrac12 \big(1 + \sqrt{1 + 4 \theta^2}\big)},
      \qquad w = \theta / m

    A small step of gradient descent then moves theta by :math:`\sqrt{1 + 4 \theta^2}`
    times as much as without factors, and w takes it through zero.

    In ``sparsify`` an inactive weight has m = 1 and w = 0, and so has one just grown.
    A correction goes in front, ``chain(scale_by_sparseopt(), sign_in(...))``, since it
    is theta's gradient that normalisation amplifies; with Adam inside of ``inner``,
    behind ``scale_by_adam``, where it scales the steps of both factors.

    Args:
      inner: any transformation, ready with its learning rate. It sees ``Factors`` in
        place of the parameters: masks or labels by leaf must be functions of that tree,
        and weight decay is that of m and of w.
      every: steps from one balancing to the next; the authors' p epochs.

    Returns:
      The transformation; its state is a ``SignInState``. ``update`` needs ``params``
      and hands further keyword arguments down to ``inner``, those of ``sparsify`` in
      the form of ``Factors``. Factors and their gradients are at least float32; updates
      have the type of the gradients, or the parameters' where that is wider.

    Raises:
      TypeError: if ``inner`` is no transformation, or ``every`` no integer.
      ValueError: for ``every`` below 1; at ``update``, without ``params``.

    Note:
      That leaves of two dimensions or more have factors, whatever they are called, is
      our choice; ``optax.masked`` or ``optax.partition`` limits it to some. So is that
      what ``inner`` keeps, such as momentum, stays as it is when factors are balanced.
      They are balanced from the parameters as they then are: weights that were changed
      from outside are taken in, and training resumes from theta alone. With
      ``optax.inject_hyperparams`` name ``inner`` and ``every`` in ``static_args``.

    References:
      Gadhikar et al., Sign-In to the lottery, 2025 (arXiv 2504.12801). The closed form
      follows from m * w = theta and m^2 - w^2 = 1.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> tx = so.sparsify(
      ...     optax.chain(
      ...         so.scale_by_sparseopt(), so.sign_in(optax.sgd(0.1), every=500)
      ...     ),
      ...     so.static(0.75),
      ... )
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> state = tx.init(params)
      >>> params = so.apply_masks(params, state)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
    """
    inner = checked_transformation(inner)
    check_static(every=every)
    every = integer("every", every, unit="steps")
    if every < 1:
        raise ValueError(f"every must be at least 1 step, got {every}")
    period = float(every)
    named = environment.named_by(inner)

    def init_fn(params):
        return SignInState(
            steps=jnp.full([], period, jnp.float32),
            m=_at_kernels(_m, params),
            w=_at_kernels(_w, params),
            # Arrays of its own: a donated state must not hold one buffer twice.
            inner_state=inner.init(_factors(params)),
        )

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "sign_in makes the factors of the weights, so it needs them: call "
                "tx.update(grads, opt_state, params)"
            )
        due = state.steps >= period
        # Those of the environment are handed on in the form of factors.
        told = _for_factors(environment.told(extra_args))
        extra_args = {k: told.get(k, x) for k, x in extra_args.items()}
        m, w = _balanced_if(due, params, state.m, state.w)

        stepped: Any
        stepped, inner_state = environment.run(
            inner,
            named,
            told,
            _gradients(params, updates, m, w),
            state.inner_state,
            Factors(m, w, _rest(params, params)),
            **extra_args,
        )

        new_m = _at_kernels(_moved, params, m, stepped.m)
        new_w = _at_kernels(_moved, params, w, stepped.w)
        updates = jax.tree.map(_update, params, updates, w, new_m, *stepped)
        # Balanced now, so that after a period the state is that of `init`, and once
        # more when the next step begins, in case the parameters have been changed.
        steps = jnp.where(due, 1.0, state.steps + 1.0)
        moved_params = optax.apply_updates(params, updates)
        new_m, new_w = _balanced_if(steps >= period, moved_params, new_m, new_w)
        return updates, SignInState(steps, new_m, new_w, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _m(theta: Any) -> jax.Array:
    """The first factor of a weight, in at least float32: m * w = theta, m² - w² = 1."""
    return jnp.sqrt((1 + jnp.sqrt(1 + 4 * _wide(theta) ** 2)) / 2)


def _w(theta: Any) -> jax.Array:
    """The second factor."""
    return _wide(theta) / _m(theta)


def _wide(theta: Any) -> jax.Array:
    if isinstance(theta, jax.ShapeDtypeStruct):
        theta = jnp.zeros_like(theta)
    return theta.astype(jnp.promote_types(theta.dtype, jnp.float32))


def _factors(params: optax.Params) -> Factors:
    """The balanced factors of the kernels, and the other leaves."""
    return Factors(
        m=_at_kernels(_m, params),
        w=_at_kernels(_w, params),
        rest=_rest(params, params),
    )


def _gradients(
    params: optax.Params, grads: optax.Updates, m: optax.Params, w: optax.Params
) -> Factors:
    """The gradients of the factors, by the chain rule."""

    def times(param, grad, other):
        del param
        return other * grad.astype(other.dtype)

    return Factors(
        m=_at_kernels(times, params, grads, w),
        w=_at_kernels(times, params, grads, m),
        rest=_rest(params, grads),
    )


def _moved(param: jax.Array, factor: jax.Array, step: jax.Array) -> jax.Array:
    del param
    return (factor + step).astype(factor.dtype)


def _update(
    param: jax.Array, grad: jax.Array, w: Any, new_m: Any, dm: Any, dw: Any, rest: Any
) -> jax.Array:
    """The update of a leaf, from the steps of its factors where it has any."""
    if not is_matrix(param):
        return rest
    # m' w' - m w, without the rounding of two products that are nearly equal.
    difference = dm * w + new_m * dw
    return difference.astype(jnp.result_type(grad, param))


def _balanced_if(due: jax.Array, params: Any, m: Any, w: Any) -> tuple[Any, Any]:
    """The balanced factors where due, else those given."""

    def at_kernel(balanced):
        return lambda theta, factor: jnp.where(due, balanced(theta), factor)

    return _at_kernels(at_kernel(_m), params, m), _at_kernels(at_kernel(_w), params, w)


def _at_kernels(function: Callable[..., Any], params: Any, *trees: Any) -> Any:
    """Maps over kernels, with holes at all other leaves."""

    def at_leaf(param, *leaves):
        return function(param, *leaves) if is_matrix(param) else optax.MaskedNode()

    return jax.tree.map(at_leaf, params, *trees)


def _rest(params: Any, tree: Any) -> Any:
    """A tree like the parameters, with holes at kernels."""
    return jax.tree.map(
        lambda param, leaf: optax.MaskedNode() if is_matrix(param) else leaf,
        params,
        tree,
    )


def _for_factors(told: dict[str, Any]) -> dict[str, Any]:
    """What ``sparsify`` tells, by the paths of ``Factors``."""
    found = {}
    for name in ("masks", "fan_ins"):
        if told.get(name) is not None:
            found[name] = Factors(*[told[name]] * len(Factors._fields))
    if "neuron_dims" in told:
        found["neuron_dims"] = _dims_of_factors(told["neuron_dims"])
    return found


def _dims_of_factors(dims: Dims) -> Dims:
    if dims is None or isinstance(dims, NeuronDims):
        return dims

    def at_path(path, leaf):
        return chosen_dims(dims, path.partition("/")[2], leaf)[0]

    return at_path

"""Sign-In: train two factors in place of every weight."""

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
    """The parameters as the inner transformation of ``sign_in`` sees them.

    Each field is a tree like the parameters, with ``optax.MaskedNode()`` at the leaves
    that belong to other fields.

    Attributes:
      m: the first factors of kernels.
      w: the second factors of kernels.
      rest: all other parameters.
    """

    m: Any
    w: Any
    rest: Any


class SignInState(NamedTuple):
    """State of ``sign_in``.

    Attributes:
      steps: float32 scalar, steps since m and w were balanced; ``every`` or more if
        they are to be balanced next. A float is held, like the factors, where RigL's
        update replaces a step; with an integer, which the factors depend on, the
        schedules of ``inner`` would be held too.
      m: arrays of at least float32, ``optax.MaskedNode()`` at leaves without factors.
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
    r"""Train the factors of every weight, theta = m * w, by Sign-In.

    The parameters, and so the model and checkpoints, remain theta. The factors are in
    the state; ``inner`` trains them by their gradients,

    .. math::
      \nabla_m = w \odot g, \qquad \nabla_w = m \odot g, \qquad u = m' w' - m w

    and every ``every`` steps, beginning at once, they are balanced; theta is unchanged:

    .. math::
      m^2 - w^2 = 1: \qquad m = \sqrt{\tfrac12 \big(1 + \sqrt{1 + 4 \theta^2}\big)},
      \qquad w = \theta / m

    A small gradient step then moves theta by :math:`\sqrt{1 + 4 \theta^2}` times as
    much as without factors, and w can carry it through zero.

    Inside ``sparsify``, inactive and newly grown weights have m = 1 and w = 0. A
    correction goes before, ``chain(scale_by_sparseopt(), sign_in(...))``, because
    normalisation amplifies the gradient of theta; with Adam in ``inner``, it goes after
    ``scale_by_adam``, where it scales the steps of both factors.

    Args:
      inner: any transformation, including its learning rate. It sees ``Factors`` in
        place of the parameters: masks or labels per leaf must be functions of that
        tree, and weight decay applies to m and w.
      every: steps between balancings; p epochs in the paper.

    Returns:
      The transformation; its state is a ``SignInState``. ``update`` needs ``params``
      and passes further keyword arguments to ``inner``, those of ``sparsify`` in the
      form of ``Factors``. Factors and their gradients are at least float32; updates
      have the wider dtype of the gradients and the parameters.

    Raises:
      TypeError: if ``inner`` is not a transformation, or ``every`` not an integer.
      ValueError: if ``every`` is below 1; at ``update``, without ``params``.

    Note:
      Factorising every leaf of two or more dimensions, whatever its name, is our
      choice; use ``optax.masked`` or ``optax.partition`` to limit it. So is leaving the
      state of ``inner``, such as momentum, unchanged when factors are balanced. They
      are balanced from the current parameters: weights changed from outside are picked
      up, and training can resume from theta alone. With ``optax.inject_hyperparams``
      name ``inner`` and ``every`` in ``static_args``.

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
            # Separate arrays: a donated state must not hold one buffer twice.
            inner_state=inner.init(_factors(params)),
        )

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "sign_in factorises the weights, so it needs them: call "
                "tx.update(grads, opt_state, params)"
            )
        due = state.steps >= period
        # Pass the environment on in the form of factors.
        values = _for_factors(environment.values(extra_args))
        extra_args = {k: values.get(k, x) for k, x in extra_args.items()}
        m, w = _balanced_if(due, params, state.m, state.w)

        stepped: Any
        stepped, inner_state = environment.run(
            inner,
            named,
            values,
            _gradients(params, updates, m, w),
            state.inner_state,
            Factors(m, w, _rest(params, params)),
            **extra_args,
        )

        new_m = _at_kernels(_moved, params, m, stepped.m)
        new_w = _at_kernels(_moved, params, w, stepped.w)
        updates = jax.tree.map(_update, params, updates, w, new_m, *stepped)
        # Balanced now, so that after a period the state equals that of `init`, and
        # again when the next step begins, in case the parameters were changed.
        steps = jnp.where(due, 1.0, state.steps + 1.0)
        moved_params = optax.apply_updates(params, updates)
        new_m, new_w = _balanced_if(steps >= period, moved_params, new_m, new_w)
        return updates, SignInState(steps, new_m, new_w, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _m(theta: Any) -> jax.Array:
    """Return the first factor, in at least float32: m * w = theta, m² - w² = 1."""
    return jnp.sqrt((1 + jnp.sqrt(1 + 4 * _wide(theta) ** 2)) / 2)


def _w(theta: Any) -> jax.Array:
    """Return the second factor."""
    return _wide(theta) / _m(theta)


def _wide(theta: Any) -> jax.Array:
    if isinstance(theta, jax.ShapeDtypeStruct):
        theta = jnp.zeros_like(theta)
    return theta.astype(jnp.promote_types(theta.dtype, jnp.float32))


def _factors(params: optax.Params) -> Factors:
    """Return the balanced factors of the kernels, and the other leaves."""
    return Factors(
        m=_at_kernels(_m, params),
        w=_at_kernels(_w, params),
        rest=_rest(params, params),
    )


def _gradients(
    params: optax.Params, grads: optax.Updates, m: optax.Params, w: optax.Params
) -> Factors:
    """Return the gradients of the factors, by the chain rule."""

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
    """Return the update of a leaf, from the steps of its factors if it has any."""
    if not is_matrix(param):
        return rest
    # m' w' - m w, without the rounding of two nearly equal products.
    difference = dm * w + new_m * dw
    return difference.astype(jnp.result_type(grad, param))


def _balanced_if(due: jax.Array, params: Any, m: Any, w: Any) -> tuple[Any, Any]:
    """Return balanced factors if due, the given ones otherwise."""

    def at_kernel(balanced):
        return lambda theta, factor: jnp.where(due, balanced(theta), factor)

    return _at_kernels(at_kernel(_m), params, m), _at_kernels(at_kernel(_w), params, w)


def _at_kernels(function: Callable[..., Any], params: Any, *trees: Any) -> Any:
    """Map over kernels, with holes at all other leaves."""

    def at_leaf(param, *leaves):
        return function(param, *leaves) if is_matrix(param) else optax.MaskedNode()

    return jax.tree.map(at_leaf, params, *trees)


def _rest(params: Any, tree: Any) -> Any:
    """Return a tree like the parameters, with holes at kernels."""
    return jax.tree.map(
        lambda param, leaf: optax.MaskedNode() if is_matrix(param) else leaf,
        params,
        tree,
    )


def _for_factors(values: dict[str, Any]) -> dict[str, Any]:
    """Return what ``sparsify`` passes on, under the paths of ``Factors``."""
    found = {}
    for name in ("masks", "trained_masks", "fan_ins"):
        if values.get(name) is not None:
            found[name] = Factors(*[values[name]] * len(Factors._fields))
    if "neuron_dims" in values:
        found["neuron_dims"] = _dims_of_factors(values["neuron_dims"])
    return found


def _dims_of_factors(dims: Dims) -> Dims:
    if dims is None or isinstance(dims, NeuronDims):
        return dims

    def at_path(path, leaf):
        return chosen_dims(dims, path.partition("/")[2], leaf)[0]

    return at_path

"""What an inner optimizer keeps, seen from outside: found and amended generically."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from sparseopt_jax import paths
from sparseopt_jax.masks import zero_masked


def map_weight_state(
    function: Callable[[jax.Array, Any, Any], Any], masks: Any, state: Any, other: Any
) -> Any:
    """Maps ``function(mask, leaf, other)`` over what a state keeps per sparse weight.

    A leaf belongs to a parameter if its path ends in the parameter's path and it has
    the mask's shape: momentum, second moments, copies of the weights, accumulated
    gradients. It holds for every optax optimizer and wrapper, since all of them keep
    such things in trees like the parameters.

    Args:
      function: called at those leaves only.
      masks: tree of masks.
      state: an optimizer state.
      other: a tree of the structure of ``state``.

    Returns:
      A tree like ``state``.
    """
    by_parts = {
        paths.path_parts(key_path): mask
        for key_path, mask in paths.leaves_with_path(masks, is_leaf=paths.is_hole)
    }

    def at_leaf(key_path, leaf, other_leaf):
        mask = paths.longest_ending(paths.path_parts(key_path), by_parts)
        if mask is None or paths.is_hole(mask) or jnp.shape(leaf) != mask.shape:
            return leaf
        return function(mask, leaf, other_leaf)

    return paths.map_with_key_paths(at_leaf, state, other)


def refresh(
    inner: optax.GradientTransformation, masks: Any, inner_state: Any, params: Any
) -> Any:
    """The inner state, with what ``inner.init`` gives for inactive weights.

    Kept so at every step, it is there when a weight is grown, and costs nothing: the
    mask is at hand, and initial states are constants to the compiler.
    """
    fresh = inner.init(zero_masked(masks, params))
    return map_weight_state(
        lambda m, new, fresh: jnp.where(m, new, fresh).astype(new.dtype),
        masks,
        inner_state,
        fresh,
    )


def hold(condition: Any, old: Any, new: Any) -> Any:
    """The old state where the condition holds, but for counters of the run's steps.

    What is counted for each weight is held as its moments are.
    """

    def at_leaf(old, new):
        # Some optimizers keep a plain bool where others keep an array.
        dtype = jnp.result_type(new)
        if not jnp.issubdtype(dtype, jnp.inexact) and not jnp.ndim(new):
            return new
        return jnp.where(condition, old, new).astype(dtype)

    return jax.tree.map(at_leaf, old, new)


def update_through(
    step: Callable[[], tuple[Any, Any]],
    hold: Callable[[Any], Any],
    refresh: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """Runs an optimizer's step and amends its new state, for the price of the step.

    The values are those of ``updates, state = step(); state = refresh(hold(state))``
    wherever the updates are used. Written like that, however, the compiler finds the
    raw state in the updates and the amended one in the result, and computes the step
    twice, from a copy of the old state that it can no longer overwrite: three times the
    cost of the dense step on CPU. So the updates are computed from the amended state.

    Args:
      step: returns updates and the new state.
      hold: from the new state to what is kept of it; may change anything where the
        updates are then discarded.
      refresh: from that to the state to keep; may change what belongs to weights whose
        updates are discarded. An optimizer that mixes weights (by a norm, a matrix
        product) would see it in the updates of others: its step is computed from the
        state before.

    Returns:
      The updates and the amended state.
    """
    closed, shapes = jax.make_jaxpr(step, return_shape=True)()
    program = closed.jaxpr
    updates_tree, state_tree = (jax.tree.structure(part) for part in shapes)
    _, raw = _split(core.jaxpr_as_fun(closed)(), updates_tree.num_leaves)
    held = hold(jax.tree.unflatten(state_tree, raw))
    state = refresh(held)

    _, variables = _split(program.outvars, updates_tree.num_leaves)
    kept = {var for var in variables if isinstance(var, core.Var)}
    seen = state if is_elementwise(program, kept) else held

    # The same program again, the variables that held the new state given as constants.
    computed = {var for equation in program.eqns for var in equation.outvars}
    given = {
        var: value
        for var, value in zip(variables, jax.tree.leaves(seen), strict=True)
        if isinstance(var, core.Var) and var in computed
    }
    program = program.replace(
        constvars=[*program.constvars, *given],
        eqns=[
            equation.replace(
                outvars=[
                    core.Var(var.aval) if var in given else var
                    for var in equation.outvars
                ]
            )
            for equation in program.eqns
        ],
    )
    closed = core.ClosedJaxpr(program, [*closed.consts, *given.values()])
    updates, _ = _split(core.jaxpr_as_fun(closed)(), updates_tree.num_leaves)
    return jax.tree.unflatten(updates_tree, updates), state


# Primitives whose every output entry depends on the input entries at its place alone.
# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "add", "and", "cbrt", "ceil", "clamp", "convert_element_type", "copy",
    "copy_p", "cos", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge",
    "gt", "imag", "integer_pow", "is_finite", "le", "log", "log1p", "logistic",
    "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "real",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "sharding_constraint",
    "sign", "sin", "sqrt", "square", "stop_gradient", "sub", "tanh", "xor",
})
# fmt: on
_CALLS = frozenset({"closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit"})


def is_elementwise(program: core.Jaxpr, state: set[Any]) -> bool:
    """Whether no weight's result depends on another weight's part of the state.

    Args:
      program: a jaxpr.
      state: its variables that hold the state; receives all that depend on them.
    """
    for equation in program.eqns:
        inputs = [
            var
            for var in equation.invars
            if isinstance(var, core.Var) and var in state and _shape(var)
        ]
        if not inputs:
            continue
        name = equation.primitive.name
        if name in _CALLS:
            inner: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            inner = getattr(inner, "jaxpr", inner)
            inner_state = {
                own
                for own, var in zip(inner.invars, equation.invars, strict=True)
                if isinstance(var, core.Var) and var in state
            }
            if not is_elementwise(inner, inner_state):
                return False
        elif name not in _ELEMENTWISE or any(
            _shape(var) != _shape(result)
            for var in inputs
            for result in equation.outvars
        ):
            return False
        state.update(equation.outvars)
    return True


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _split(items: Sequence[Any], size: int) -> tuple[Sequence[Any], Sequence[Any]]:
    return items[:size], items[size:]

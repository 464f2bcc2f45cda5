"""What an inner optimizer keeps, seen from outside: found and amended generically."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from sparseopt_jax import paths


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
        for key_path, mask in jax.tree_util.tree_leaves_with_path(
            masks, is_leaf=paths.is_hole
        )
    }

    def at_leaf(key_path, leaf, other_leaf):
        mask = _mask_of(paths.path_parts(key_path), leaf, by_parts)
        return leaf if mask is None else function(mask, leaf, other_leaf)

    return jax.tree_util.tree_map_with_path(at_leaf, state, other)


def update_through(
    step: Callable[[], tuple[Any, Any]], amend: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Runs an optimizer's step, its updates computed from the amended state.

    ``amend`` may only change what does not matter to the updates that are used: here,
    the state of inactive weights, or all of it where the updates are discarded. The
    values are then those of ``updates, state = step(); state = amend(state)``.

    Written like that, however, the compiler finds the raw state in the updates and the
    amended one in the result, and computes the step twice, from a copy of the old
    state that it can no longer overwrite: three times the cost of the dense step on
    CPU. With the updates taken from the amended state there is one state.

    Args:
      step: returns updates and the new state.
      amend: from the new state to the one to keep, of the same structure and types.

    Returns:
      The updates and the amended state.
    """
    closed, shapes = jax.make_jaxpr(step, return_shape=True)()
    program = closed.jaxpr
    updates_tree, state_tree = (jax.tree.structure(part) for part in shapes)
    _, new = _split(core.jaxpr_as_fun(closed)(), updates_tree.num_leaves)
    state = amend(jax.tree.unflatten(state_tree, new))

    # The same program again, the variables that held the new state given as constants.
    _, variables = _split(program.outvars, updates_tree.num_leaves)
    computed = {var for equation in program.eqns for var in equation.outvars}
    given = {
        var: value
        for var, value in zip(variables, jax.tree.leaves(state), strict=True)
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


def _split(items: Sequence[Any], size: int) -> tuple[Sequence[Any], Sequence[Any]]:
    return items[:size], items[size:]


def _mask_of(
    parts: tuple[str, ...], leaf: Any, by_parts: dict[tuple[str, ...], Any]
) -> jax.Array | None:
    # The longest ending decides: "a/kernel" is not mistaken for a top-level "kernel".
    for start in range(len(parts) + 1):
        mask = by_parts.get(parts[start:])
        if mask is None:
            continue
        if paths.is_hole(mask) or leaf.shape != mask.shape:
            return None
        return mask
    return None

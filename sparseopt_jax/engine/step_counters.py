"""Counters of steps in an optimizer's state, which a replaced step advances."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.trees import paths

Parts = tuple[str, ...]


def advancing(
    program: InnerProgram, args: tuple[Any, ...], position: int
) -> list[bool]:
    """Tell which leaves of the state advance if an update of the masks replaces a step.

    Counters of steps advance, so that schedules do not lag, and all else is held. A
    counter is an integer scalar. If anything else in the node that holds it depends on
    it, the whole node is held, with its counters and with all nodes inside: one half of
    a state machine must not move without the other. Adam's moments do not depend on
    its counter, but ``reduce_on_plateau`` lowers its scale when a counter reaches
    ``patience``, and L-BFGS has no pair to store before its second step. A state inside
    a wrapper's does not count: ``apply_if_finite`` only gates it.

    Args:
      program: the step of the optimizer.
      args: its arguments.
      position: that of the state among the arguments.

    Returns:
      A bool for each leaf of the state.
    """
    state = args[position]
    leaves = [
        (paths.path_parts(key_path), _is_counter(x))
        for key_path, x in paths.leaves_with_path(state)
    ]
    nodes = {parts[:-1] for parts, is_counter in leaves if is_counter}
    bits = {node: 1 << i for i, node in enumerate(nodes)}
    labels = [jax.tree.map(lambda _: 0, arg) for arg in args]
    labels[position] = jax.tree.structure(state).unflatten(
        bits[parts[:-1]] if is_counter else 0 for parts, is_counter in leaves
    )
    reached = program.state_labels(args, tuple(labels))
    states = [*_states_inside(state)]

    def is_own(parts, node):
        depth = max((len(s) for s in states if _is_inside(parts, s)), default=0)
        return _is_inside(parts, node) and depth <= len(node)

    held = {
        node
        for (parts, is_counter), label in zip(leaves, reached, strict=True)
        for node, bit in bits.items()
        if label & bit and not is_counter and is_own(parts, node)
    }
    return [
        is_counter and not any(_is_inside(parts, node) for node in held)
        for parts, is_counter in leaves
    ]


def _states_inside(tree: Any, at: Parts = ()) -> Iterator[Parts]:
    """Yield the paths of all NamedTuples in a tree: the states of transformations."""

    def is_state(x):
        return x is not tree and hasattr(x, "_fields")

    for key_path, x in paths.leaves_with_path(tree, is_leaf=is_state):
        if is_state(x):
            path = (*at, *paths.path_parts(key_path))
            yield path
            yield from _states_inside(x, path)


def _is_counter(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.integer) and not jnp.ndim(x)


def _is_inside(parts: Parts, node: Parts) -> bool:
    return parts[: len(node)] == node

"""Counters of steps in an optimizer's state, which a replaced step advances."""

from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.trees import paths


def advancing(
    program: InnerProgram, args: tuple[Any, ...], position: int
) -> list[bool]:
    """Tell which leaves of the state advance if an update of the masks replaces a step.

    Counters of steps advance, so that schedules do not lag, and all else is held. A
    counter is an integer scalar. If anything else in the node that holds it depends on
    it, the whole node is held, with its counters and with all nodes inside: one half of
    a state machine must not move without the other. Adam's moments do not depend on
    its counter, but ``reduce_on_plateau`` lowers its scale when a counter reaches
    ``patience``, and L-BFGS has no pair to store before its second step.

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
    held = {
        node
        for (parts, is_counter), label in zip(leaves, reached, strict=True)
        for node, bit in bits.items()
        if label & bit and not is_counter and _is_inside(parts, node)
    }
    return [
        is_counter and not any(_is_inside(parts, node) for node in held)
        for parts, is_counter in leaves
    ]


def _is_counter(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.integer) and not jnp.ndim(x)


def _is_inside(parts: tuple[str, ...], node: tuple[str, ...]) -> bool:
    return parts[: len(node)] == node

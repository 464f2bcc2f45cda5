"""Leaves that the inner optimizer never moves: their masks are left as they are."""

import warnings
from typing import Any

import optax

from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.owners import are_recorded
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.trees import paths


def frozen_leaves(
    inner: optax.GradientTransformationExtraArgs,
    told: dict[str, Any],
    inner_state: Any,
    params: Any,
) -> frozenset[str]:
    """Paths of the leaves that an optimizer gives an update of zero in any case.

    Told from its update as it would be traced, as for ``optax.set_to_zero`` inside of
    ``partition`` or ``masked``.

    Args:
      inner: the transformation.
      told: what it is told, as in ``environment.run``.
      inner_state: its state.
      params: the weights, or what stands for their shapes.

    Returns:
      The paths; none for an optimizer that cannot be traced without arguments that only
      a real step has, such as the loss of a line search.
    """
    named = environment.named_by(inner)

    def step(told, *args):
        return environment.run(inner, named, told, *args)

    try:
        # Any numbers will do for the gradients: those of the weights fit.
        program = InnerProgram.of(step, told, params, inner_state, params)
    except Exception:
        return frozenset()
    return program.frozen()


def warn_of_frozen(
    inner: optax.GradientTransformationExtraArgs,
    topology: Topology,
    told: dict[str, Any],
    inner_state: Any,
    params: Any,
) -> None:
    """Warn of frozen leaves whose masks a topology that moves has chosen.

    Args:
      inner: the transformation.
      topology: what made the masks.
      told: as in ``frozen_leaves``.
      inner_state: the state of ``inner``.
      params: as in ``frozen_leaves``.
    """
    if not topology.moves or topology.stays_dense or are_recorded():
        return
    sparse = paths.leaves_by_path(told["masks"])
    if not sparse or topology.given_masks is not None:
        return
    frozen = frozen_leaves(inner, told, inner_state, params)
    listed = ", ".join(path for path in sparse if path in frozen)
    if listed:
        warnings.warn(
            f"the inner optimizer never moves {listed}: what is inactive there at "
            "first stays so, and the masks are left as they are. To keep such leaves "
            "dense, exclude them by where=lambda path, leaf: ...; to keep masks that "
            "they have, give masks=",
            stacklevel=3,
        )

"""Leaves that the inner optimizer never changes: their masks are not updated."""

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
    values: dict[str, Any],
    inner_state: Any,
    params: Any,
) -> frozenset[str]:
    """Return the paths of the leaves whose update by an optimizer is always zero.

    They are found by tracing the update, as with ``optax.set_to_zero`` inside
    ``partition`` or ``masked``.

    Args:
      inner: the transformation.
      values: the environment, as in ``environment.run``.
      inner_state: its state.
      params: the weights, or their shapes.

    Returns:
      The paths; none if the optimizer cannot be traced without arguments that only a
      real step has, such as the loss of a line search.
    """
    named = environment.named_by(inner)

    def step(values, *args):
        return environment.run(inner, named, values, *args)

    try:
        # Gradients may have any values, so the weights take their place.
        program = InnerProgram.of(step, values, params, inner_state, params)
    except Exception:
        return frozenset()
    return program.frozen()


def warn_of_frozen(
    inner: optax.GradientTransformationExtraArgs,
    topology: Topology,
    values: dict[str, Any],
    inner_state: Any,
    params: Any,
) -> None:
    """Warn of frozen leaves whose masks were chosen by a topology with updates.

    Args:
      inner: the transformation.
      topology: the topology that made the masks.
      values: as in ``frozen_leaves``.
      inner_state: the state of ``inner``.
      params: as in ``frozen_leaves``.
    """
    if not topology.moves or topology.stays_dense or are_recorded():
        return
    sparse = paths.leaves_by_path(values["masks"])
    if not sparse or topology.given_masks is not None:
        return
    frozen = frozen_leaves(inner, values, inner_state, params)
    listed = ", ".join(path for path in sparse if path in frozen)
    if listed:
        warnings.warn(
            f"the inner optimizer never changes {listed}: the masks of these leaves "
            "are not updated, and weights that start inactive stay inactive. To keep "
            "the leaves dense, exclude them with where=lambda path, leaf: ...; to keep "
            "existing masks, pass masks=",
            stacklevel=3,
        )

"""Leaves that the inner optimizer never changes: their masks are not updated."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.engine.inner_program import InnerProgram
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.owners import are_recorded
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.tracing import transformation_links
from sparseopt_jax.tracing.transformation_links import Link
from sparseopt_jax.trees import paths


def frozen_leaves(
    inner: optax.GradientTransformationExtraArgs,
    values: dict[str, Any],
    inner_state: Any,
    params: Any,
    extra_args: Mapping[str, Any],
) -> frozenset[str]:
    """Return the paths of the leaves whose update by an optimizer is always zero.

    They are found by tracing the update, as with ``optax.set_to_zero`` inside
    ``partition`` or ``masked``.

    Args:
      inner: the transformation.
      values: the environment, as in ``environment.run``.
      inner_state: its state.
      params: the weights, or their shapes.
      extra_args: keyword arguments of its update. Those that transformations of Optax
        and of this package ask for, such as the loss of a line search, may be missing.

    Returns:
      The paths.

    Raises:
      ValueError: if the update needs other arguments.
    """
    named = environment.named_by(inner)

    def step(values, grads, state, params, extra_args, loss):
        accepted = _accepted(transformation_links.read(inner))
        stand_ins = _stand_ins(loss, grads)
        given = {name: x for name, x in stand_ins.items() if name in accepted}
        with environment.using({"batch_stats": environment.UNKNOWN}):
            return environment.run(
                inner, named, values, grads, state, params, **(given | extra_args)
            )

    try:
        # Gradients may have any values, so the weights take their place.
        program = InnerProgram.of(
            step, values, params, inner_state, params, dict(extra_args), jnp.float32(1)
        )
    # A user's function may raise anything without the arguments of a real step.
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(
            "which leaves the inner optimizer never changes is unknown without the "
            "arguments of its update: pass to so.update_topology the keyword arguments "
            f"that you pass to tx.update ({said})"
        ) from error
    return program.frozen()


def _accepted(link: Link) -> frozenset[str]:
    """Return the names of the arguments of all updates inside a transformation."""
    names = frozenset(inspect.signature(link.update).parameters)
    return names.union(*map(_accepted, link.parts))


def _stand_ins(loss: jax.Array, grads: Any) -> dict[str, Any]:
    """Return arguments that Optax's transformations ask for, of any loss."""

    def value_fn(params):
        squares = (jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))
        return sum((x.astype(loss.dtype) for x in squares), loss) * loss

    def grad_fn(params, index):
        del index
        return jax.tree.map(lambda x: x * loss.astype(x.dtype), params)

    return {
        "value": loss,
        "grad": grads,
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "grad_fn": grad_fn,
    }


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
    try:
        frozen = frozen_leaves(inner, values, inner_state, params, {})
    except ValueError:
        return  # unknown before the first step
    listed = ", ".join(path for path in sparse if path in frozen)
    if listed:
        warnings.warn(
            f"the inner optimizer never changes {listed}: the masks of these leaves "
            "are not updated, and weights that start inactive stay inactive. To keep "
            "the leaves dense, exclude them with where=lambda path, leaf: ...; to keep "
            "existing masks, pass masks=",
            stacklevel=3,
        )

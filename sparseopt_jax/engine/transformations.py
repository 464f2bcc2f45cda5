"""What is passed for an optax transformation."""

from collections.abc import Iterator
from typing import Any

import optax

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.tracing import transformation_links
from sparseopt_jax.tracing.transformation_links import Link


def checked_transformation(inner: Any) -> optax.GradientTransformationExtraArgs:
    """``inner`` with support for extra arguments.

    Args:
      inner: anything with an ``init`` and an ``update``, as optax makes them.

    Returns:
      The transformation.

    Raises:
      TypeError: if it is none.

    Examples:
      >>> import optax
      >>> checked_transformation(optax.sgd)
      Traceback (most recent call last):
      ...
      TypeError: inner must be a transformation such as optax.sgd(0.1), got <function...
    """
    is_topology = isinstance(inner, Topology)
    has_both = all(callable(getattr(inner, name, None)) for name in ("init", "update"))
    if is_topology or not has_both:
        remedy = ": call so.sparsify(inner, topology)" if is_topology else ""
        raise TypeError(
            f"inner must be a transformation such as optax.sgd(0.1), got "
            f"{described(inner)}{remedy}"
        )
    if isinstance(inner, optax.MultiSteps):
        inner = inner.gradient_transformation()
    return optax.with_extra_args_support(inner)


def checked_inner(inner: Any) -> optax.GradientTransformationExtraArgs:
    """As ``checked_transformation``, for what ``sparsify`` is put around.

    Raises:
      TypeError: if it is no transformation.
      ValueError: for ``optax.MultiSteps``, or ``optax.contrib.sam`` outside of its
        opaque mode, anywhere inside.

    Examples:
      >>> import optax
      >>> checked_inner(optax.MultiSteps(optax.sgd(0.1), 2))
      Traceback (most recent call last):
      ...
      ValueError: inner holds optax.MultiSteps: put it outside, ...
    """
    checked = checked_transformation(inner)
    for link in _nested(transformation_links.read(checked)):
        if link.name == "MultiSteps":
            raise ValueError(
                "inner holds optax.MultiSteps: put it outside, optax.MultiSteps("
                "so.sparsify(inner, topology), k), so that the masks are updated by "
                "the accumulated gradient, once for each step of the weights"
            )
        if getattr(link.update, "__name__", "") == "transparent_update_fn":
            raise ValueError(
                "inner holds optax.contrib.sam, which moves the weights away and back "
                "in turns, where sparsify takes every update for a step: use "
                "sam(..., opaque_mode=True), which makes both moves in one update"
            )
    return checked


def _nested(link: Link) -> Iterator[Link]:
    yield link
    for part in link.parts:
        yield from _nested(part)

"""Checks of arguments that must be optax transformations."""

from collections.abc import Iterator
from typing import Any

import optax

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.tracing import transformation_links
from sparseopt_jax.tracing.transformation_links import Link


def checked_transformation(inner: Any) -> optax.GradientTransformationExtraArgs:
    """Return ``inner`` with support for extra arguments.

    Args:
      inner: anything with an ``init`` and an ``update``, as in optax.

    Returns:
      The transformation.

    Raises:
      TypeError: if ``inner`` is not a transformation.

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
    """Return ``inner`` like ``checked_transformation``, if ``sparsify`` supports it.

    Raises:
      TypeError: if ``inner`` is not a transformation.
      ValueError: if it contains ``optax.MultiSteps``, or ``optax.contrib.sam`` without
        its opaque mode.

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
                "so.sparsify(inner, topology), k), so that the masks are updated with "
                "the accumulated gradient, once per step of the weights"
            )
        if getattr(link.update, "__name__", "") == "transparent_update_fn":
            raise ValueError(
                "inner holds optax.contrib.sam, which alternately moves the weights "
                "away and back, but sparsify treats every update as a step: use "
                "sam(..., opaque_mode=True), which makes both moves in one update"
            )
    return checked


def _nested(link: Link) -> Iterator[Link]:
    yield link
    for part in link.parts:
        yield from _nested(part)

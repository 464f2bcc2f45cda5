"""What is passed for an optax transformation."""

from typing import Any

import optax

from sparseopt_jax.arguments import described


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
    is_topology = hasattr(inner, "due") and hasattr(inner, "leaves")
    has_both = all(callable(getattr(inner, name, None)) for name in ("init", "update"))
    if is_topology or not has_both:
        remedy = ": call so.sparsify(inner, topology)" if is_topology else ""
        raise TypeError(
            f"inner must be a transformation such as optax.sgd(0.1), got "
            f"{described(inner)}{remedy}"
        )
    return optax.with_extra_args_support(inner)

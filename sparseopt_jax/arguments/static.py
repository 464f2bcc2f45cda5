"""Arguments that decide what is built and therefore cannot be traced."""

from typing import Any

from jax.core import Tracer


def check_static(**arguments: Any) -> None:
    """Raise if an argument is traced, as ``optax.inject_hyperparams`` does to numbers.

    Args:
      **arguments: by name, values that must be known when a transformation is built.

    Raises:
      TypeError: with the argument's name and the remedy.
    """
    for name, value in arguments.items():
        if isinstance(value, Tracer):
            raise TypeError(
                f"{name} decides how the optimizer is built, but is traced, got "
                f"{value}: with optax.inject_hyperparams name {name!r} in static_args"
            )

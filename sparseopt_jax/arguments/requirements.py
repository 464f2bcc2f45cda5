"""Packages that only some parts of the library import: what to do without them."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed_by(module: str, package: str, extra: str | None = None) -> Iterator[None]:
    """Turns the failure of an import into an error that says what to install.

    Args:
      module: what cannot be used without the package.
      package: the package's name on the index.
      extra: the extra of this library that brings it; None if plain
        ``pip install sparseopt_jax`` does.

    Raises:
      ImportError: if an import in the ``with`` block finds no such module.

    Examples:
      >>> with needed_by("sparseopt_jax.walk", "no-such-package"):
      ...     import no_such_package
      Traceback (most recent call last):
      ImportError: sparseopt_jax.walk needs no-such-package: pip install
      no-such-package, or pip install sparseopt_jax, which brings it
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # Not installed, or what it needs itself is not.
        brings = f"sparseopt_jax[{extra}]" if extra else "sparseopt_jax"
        raise ImportError(
            f"{module} needs {package}: pip install {package}, or pip install "
            f"{repr(brings) if extra else brings}, which brings it",
            name=error.name,
        ) from error

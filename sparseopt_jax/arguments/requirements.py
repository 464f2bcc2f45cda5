"""Optional packages, and what to install if one is missing."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed_by(module: str, package: str, extra: str | None = None) -> Iterator[None]:
    """Convert a failed import into an error that says what to install.

    Args:
      module: the module that needs the package.
      package: the package's name on the index.
      extra: the extra of this library that installs it; None if plain
        ``pip install sparseopt_jax`` does.

    Raises:
      ImportError: if an import in the ``with`` block finds no such module.

    Examples:
      >>> with needed_by("sparseopt_jax.walk", "no-such-package"):
      ...     import no_such_package
      Traceback (most recent call last):
      ImportError: sparseopt_jax.walk needs no-such-package: pip install
      no-such-package, or pip install sparseopt_jax, which includes it
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # The package or one of its dependencies is not installed.
        brings = f"sparseopt_jax[{extra}]" if extra else "sparseopt_jax"
        raise ImportError(
            f"{module} needs {package}: pip install {package}, or pip install "
            f"{repr(brings) if extra else brings}, which includes it",
            name=error.name,
        ) from error

"""Names on disk: of the directory, its steps, and the leaves in a step."""

import os
import urllib.parse
from typing import Any

from sparseopt_jax.arguments.checks import integer

# Orbax finds the parts of a checkpoint with patterns that begin with the folder.
_PATTERNS = "[*?\\"


def directory_of(directory: str | os.PathLike[str]) -> str:
    """Return the absolute path of a directory, or the address of a bucket.

    Args:
      directory: a path, which may be relative or begin with ``~``, a ``file://``
        address, or the address of a bucket.

    Returns:
      The absolute path in the file system, or the bucket's address unchanged.

    Raises:
      TypeError: if it is neither a string nor a path.
      ValueError: if no directory can be there, or Orbax would look elsewhere.

    Examples:
      >>> directory_of("file:///data/first%20run")
      '/data/first run'
    """
    name = os.fspath(directory)
    if not isinstance(name, str):
        raise TypeError(f"directory must be a string or a path, got {directory!r}")
    if not name.strip():
        raise ValueError(f"directory must name a folder, got {name!r}")
    if name.startswith("file://"):
        name = _local(name)
    if "://" not in name:
        expanded = os.path.expanduser(name)
        if name.startswith("~") and expanded == name:
            raise ValueError(
                f"directory {name!r} is in the home of an unknown user; write "
                f"./{name} for a folder of that name"
            )
        name = os.path.abspath(expanded)
        _check_parents(name)
    odd = [x for x in _PATTERNS if x in name and x != os.sep]
    if odd:
        raise ValueError(
            f"directory must not contain {' or '.join(odd)}, which Orbax reads as a "
            f"pattern, got {name!r}; choose another name"
        )
    return name


def _local(address: str) -> str:
    host, slash, path = address.removeprefix("file://").partition("/")
    if host not in ("", "localhost") or not slash:
        raise ValueError(
            f"directory {address!r} names the host {host!r}; a folder of this machine "
            "is file:///..., with three slashes"
        )
    return slash + urllib.parse.unquote(path)


def _check_parents(path: str) -> None:
    """Raise if the path leads through a file instead of a folder."""
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.islink(above) and not os.path.exists(above):
        raise ValueError(
            f"{above} is a link to {os.readlink(above)}, which does not exist; create "
            "that folder, or remove the link"
        )
    if not os.path.isdir(above):
        raise ValueError(f"{above} is not a directory")


def step_of(step: Any) -> int:
    """Return the number of a step, which is the name of its folder.

    Raises:
      TypeError: if it is not an integer.
      ValueError: if it is negative.

    Examples:
      >>> step_of(2.0)
      Traceback (most recent call last):
      TypeError: step must be an integer, got 2.0: pass 2
    """
    return integer("step", step, 0)


def is_step(name: str) -> bool:
    """Tell whether the name of a folder is a step's.

    >>> [is_step(name) for name in ("0", "12", "007", "latest")]
    [True, True, False, False]
    """
    return name.isascii() and name.isdigit() and str(int(name)) == name


def leaf_on_disk(path: str) -> str:
    """Return a leaf's path in the form in which it is written.

    Orbax joins the parts of a path with dots. Dots within a part are escaped, so that
    ``a.b`` and ``b`` below ``a`` are two leaves.

    >>> leaf_on_disk("layer.1/kernel"), leaf_on_disk("a//100%")
    ('layer%2E1/kernel', 'a/%/100%25')
    """
    parts = path.split("/")
    return "/".join(
        part.replace("%", "%25").replace(".", "%2E") if part else "%" for part in parts
    )

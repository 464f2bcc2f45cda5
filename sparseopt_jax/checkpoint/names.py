"""Names on disk: of the directory, of its steps, and of the leaves in a step."""

import os
import urllib.parse
from typing import Any

from sparseopt_jax.arguments.checks import integer

# Orbax looks for the parts of a checkpoint by patterns that begin with the folder.
_PATTERNS = "[*?\\"


def directory_of(directory: str | os.PathLike[str]) -> str:
    """The absolute path of a directory, or its address.

    Args:
      directory: a path, relative or beginning with ``~``, a ``file://`` address, or
        that of a bucket.

    Returns:
      The path, as others in the file system know it; an address as it is.

    Raises:
      TypeError: if it is no string and no path.
      ValueError: if nothing can lie there, or Orbax would look elsewhere.

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
                f"directory {name!r} is in the home of a user that is not known here; "
                f"write ./{name} for a folder of that name"
            )
        name = os.path.abspath(expanded)
        _check_parents(name)
    odd = [x for x in _PATTERNS if x in name and x != os.sep]
    if odd:
        raise ValueError(
            f"directory must not contain {' or '.join(odd)}, which Orbax takes for a "
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
    """Raises if the path leads through a file in place of a folder."""
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.islink(above) and not os.path.exists(above):
        raise ValueError(
            f"{above} is a link to {os.readlink(above)}, which does not exist; make "
            "that folder, or remove the link"
        )
    if not os.path.isdir(above):
        raise ValueError(f"{above} is no directory")


def step_of(step: Any) -> int:
    """The number of a step, as its folder is called.

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
    """Whether a folder's name is that of a step.

    >>> [is_step(name) for name in ("0", "12", "007", "latest")]
    [True, True, False, False]
    """
    return name.isascii() and name.isdigit() and str(int(name)) == name


def leaf_on_disk(path: str) -> str:
    """A leaf's path as it is written.

    Orbax joins the parts of a path by dots: those in a part are escaped, so that
    ``a.b`` and ``b`` below ``a`` are two leaves.

    >>> leaf_on_disk("layer.1/kernel"), leaf_on_disk("a//100%")
    ('layer%2E1/kernel', 'a/%/100%25')
    """
    parts = path.split("/")
    return "/".join(
        part.replace("%", "%25").replace(".", "%2E") if part else "%" for part in parts
    )

"""Files that appear completely or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import BinaryIO

from sparseopt_jax.files.flush import flush_folder

_LONGEST = 200  # bytes of a name, so that the temporary one is not too long


def check_free(path: str, overwrite: bool) -> None:
    """Raise unless a file can be written to a path.

    Args:
      path: the path of the file.
      overwrite: whether an existing file is replaced.

    Raises:
      ValueError: if the path exists and is not to be replaced, is not the path of a
        file, or there is no folder to write to.
    """
    folder = os.path.dirname(_target(path, overwrite))
    if not os.path.isdir(folder):
        raise ValueError(
            f"path {path!r} is in {folder!r}, which is not a folder: create it first"
        )
    if os.path.isdir(path):
        raise ValueError(f"path {path!r} is a folder: pass the path of a file in it")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(
            f"path {path!r} is a device or a pipe: pass the path of a file"
        )


@contextlib.contextmanager
def written_whole(path: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield a file to write to, which gets its name once it is complete.

    It is written beside ``path`` under another name, flushed to the disk, then renamed.
    If anything fails before that, such as an exception or a full disk, ``path`` is
    unchanged and nothing is left behind. A replaced file keeps its permissions, and a
    symbolic link still points to the file, which need not have existed.

    Args:
      path: the path of the file.
      overwrite: whether an existing file is replaced.

    Yields:
      The file, open for writing.

    Raises:
      ValueError: if another process has written the file in the meantime, and
        ``overwrite`` is False.
      OSError: if the file cannot be written.
    """
    target = _target(path, overwrite)
    folder, name = os.path.split(target)
    # A character that the cut splits is omitted.
    start = os.fsencode(name)[:_LONGEST].decode(errors="ignore")
    temporary = os.path.join(folder, f".{start}.{secrets.token_hex(8)}.temporary")
    try:
        with open(temporary, "xb") as file:
            # Before anything is written, so that nobody else can read it meanwhile.
            with contextlib.suppress(OSError):  # a new file, or no permissions here
                shutil.copymode(target, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_to_new(temporary, target)
    finally:
        # After renaming, the temporary file no longer exists.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    flush_folder(folder)


def _target(path: str, overwrite: bool) -> str:
    """Return the path of the file to write: where links point, if it is replaced."""
    # Not `abspath`, which would take "link/.." for the folder that holds the link.
    folder, name = os.path.split(path)
    target = os.path.join(os.path.realpath(folder), name)
    target = os.path.realpath(target) if overwrite else target
    if overwrite and os.path.islink(target):
        raise ValueError(f"path {path!r} is a symbolic link that leads to itself")
    return target


def _rename_to_new(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)  # unlike renaming, fails if the path exists
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without hard links
        check_free(path, overwrite=False)
        os.replace(temporary, path)


def _exists(path: str) -> ValueError:
    return ValueError(
        f"path {path!r} exists: pass overwrite=True to replace it, or another path"
    )

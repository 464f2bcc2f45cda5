"""Files that appear completely or not at all."""

import contextlib
import os
import secrets
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
      ValueError: if the path exists and is not to be replaced, or there is no folder to
        write to.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(
            f"path {path!r} is in {folder!r}, which is not a folder: create it first"
        )
    if os.path.isdir(path):
        raise ValueError(f"path {path!r} is a folder: pass the path of a file in it")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)


@contextlib.contextmanager
def written_whole(path: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield a file to write to, which gets its name once it is complete.

    It is written beside ``path`` under another name, flushed to the disk, then renamed.
    If anything fails before that, such as an exception or a full disk, ``path`` is
    unchanged and nothing is left behind.

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
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(
        folder, f".{name[:_LONGEST]}.{secrets.token_hex(8)}.temporary"
    )
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_to_new(temporary, path)
    finally:
        # After renaming, the temporary file no longer exists.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    flush_folder(folder)


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

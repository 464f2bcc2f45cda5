"""Files that are there whole, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

from sparseopt_jax.files.flush import flush_folder

_LONGEST = 200  # bytes of a name, so that the temporary one is not too long


def check_free(path: str, overwrite: bool) -> None:
    """Raise unless a file may be written at a path.

    Args:
      path: where it is to be.
      overwrite: whether a file that is there is replaced.

    Raises:
      ValueError: if something is there that is not to be replaced, or there is no
        folder to write to.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(
            f"path {path!r} lies in {folder!r}, which is not a folder: make it first"
        )
    if os.path.isdir(path):
        raise ValueError(f"path {path!r} is a folder: give the path of a file in it")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)


@contextlib.contextmanager
def written_whole(path: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Give a file to write to, which gets its name once it is complete.

    It is written beside ``path`` under another name, flushed to the disk, then renamed.
    Whatever fails before, an exception or a full disk, leaves what was at ``path`` as
    it was, and nothing else behind.

    Args:
      path: where the file is to be.
      overwrite: whether a file that is there is replaced.

    Yields:
      The file, open for writing.

    Raises:
      ValueError: if another process has written the file in the meantime, and it is
        not to be replaced.
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
        # Renamed, it is not there any more.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    flush_folder(folder)


def _rename_to_new(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)  # which fails if the path exists, as no renaming does
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without hard links
        check_free(path, overwrite=False)
        os.replace(temporary, path)


def _exists(path: str) -> ValueError:
    return ValueError(
        f"path {path!r} exists: pass overwrite=True to replace it, or another path"
    )

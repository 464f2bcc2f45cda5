"""Flushes files and folders to the disk, where a power failure leaves them.

A file that was written is in the memory of the system for half a minute, and so is the
name that it was given. A file system may write the name first: after a power failure
the file then has its name and no content.
"""

import contextlib
import errno
import os
import pathlib

Path = str | os.PathLike[str]

# What systems say of a folder when they flush files alone.
_NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}


def flush_tree(folder: Path) -> None:
    """Flushes every file in a folder, then the folders, the given one last.

    Args:
      folder: what was written; nothing in it changes meanwhile.

    Raises:
      OSError: if the disk does not take them.
    """
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            # Windows flushes what may be written to.
            _flush(os.path.join(place, name), os.O_RDWR)
        flush_folder(place)


def flush_folder(folder: Path) -> None:
    """Flushes the names in a folder: what was made, renamed and removed there.

    Nothing is done where folders cannot be flushed, or not be opened: on Windows, on
    some network file systems, and in a folder that may not be read.

    Args:
      folder: an existing one.

    Raises:
      OSError: if the disk does not take them.
    """
    with contextlib.suppress(PermissionError):
        try:
            _flush(folder, os.O_RDONLY)
        except OSError as error:
            if error.errno not in _NOT_FLUSHED:
                raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and flushes their names.

    Args:
      folder: where it is to be; may be there.

    Raises:
      OSError: if it cannot be made.
    """
    path = pathlib.Path(folder)
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        flush_folder(place.parent)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

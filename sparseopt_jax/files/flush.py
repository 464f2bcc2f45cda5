"""Flushes of files and folders to the disk, so that they survive a power failure.

The system may keep a written file and its name in memory for half a minute. A file
system may write the name first: after a power failure the file then has a name but no
content.
"""

import contextlib
import errno
import os
import pathlib

Path = str | os.PathLike[str]

# The errors of systems that can flush files but not folders.
_NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}


def flush_tree(folder: Path) -> None:
    """Flush every file in a folder, then the folders, the given one last.

    Args:
      folder: the folder; nothing in it may change meanwhile.

    Raises:
      OSError: if they cannot be written to the disk.
    """
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            # Windows flushes only files that are open for writing.
            _flush(os.path.join(place, name), os.O_RDWR)
        flush_folder(place)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder: files created, renamed and removed there.

    Does nothing if folders cannot be flushed or opened: on Windows, on some network
    file systems, and for a folder without read permission.

    Args:
      folder: an existing folder.

    Raises:
      OSError: if they cannot be written to the disk.
    """
    with contextlib.suppress(PermissionError):
        try:
            _flush(folder, os.O_RDONLY)
        except OSError as error:
            if error.errno not in _NOT_FLUSHED:
                raise


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, and flush their names.

    Args:
      folder: the path of the folder; may exist.

    Raises:
      OSError: if it cannot be created.
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

"""A lock that keeps other writers out of a directory and ends with its process."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import weakref
from collections.abc import Callable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".writer"

# A process can lock a file any number of times, and loses its lock when it closes the
# file once: its locks must be known before the file is opened again.
_held: set[tuple[int, int]] = set()
_looking = threading.RLock()


class WriterLock:
    """A lock on a directory, held until it is released or its process ends in any way.

    It is a kernel lock on a file in the directory: a killed process leaves nothing but
    the file, which the next writer takes over, on this host or another that mounts the
    directory. Forked children do not hold it.

    Args:
      directory: the directory to lock; must exist.

    Raises:
      ValueError: if another writer holds it, with its process and host.

    Note:
      If the file system or the operating system (Windows) has no locks, other writers
      are not kept out.

    Examples:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> lock = WriterLock(directory)
      >>> WriterLock(directory)
      Traceback (most recent call last):
      ValueError: ... is being written to by other Checkpoints of this process ...
      >>> lock.release()
      >>> WriterLock(directory).release()
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._path = pathlib.Path(directory) / NAME
        self._release = _locked(self._path)
        weakref.finalize(self, self._release)

    def release(self) -> None:
        """Let others write; further calls do nothing."""
        self._release()


def _locked(path: pathlib.Path) -> Callable[[], None]:
    """Lock the file; return the function that releases it."""
    if fcntl is None:
        return _nothing
    with _looking:
        while True:
            if _identity_at(path) in _held:
                raise ValueError(
                    f"{path.parent} is being written to by other Checkpoints of this "
                    f"process ({os.getpid()} on {socket.gethostname()}): close them "
                    "first, with close() or a `with` block"
                )
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                os.close(file)
                raise _taken(path) from None
            except OSError:  # a file system without locks
                os.close(file)
                return _nothing
            identity = _identity(os.fstat(file))
            if _identity_at(path) == identity:
                break
            os.close(file)  # the previous writer has just removed it
        _held.add(identity)
    writer = {"process": os.getpid(), "host": socket.gethostname()}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(writer).encode(), 0)
    return _Release(path, file, identity)


class _Release:
    def __init__(self, path: pathlib.Path, file: int, identity: tuple[int, int]):
        self._path, self._file, self._identity = path, file, identity
        self._process = os.getpid()
        self._done = False

    def __call__(self) -> None:
        # A forked child has a copy of this object, but no lock.
        if self._done or os.getpid() != self._process:
            return
        self._done = True
        with _looking:
            if _identity_at(self._path) == self._identity:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            _held.discard(self._identity)
            os.close(self._file)


def _nothing() -> None:
    """Release nothing: no lock is held."""


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _identity_at(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        return _identity(os.stat(path))
    except OSError:
        return None


def _taken(path: pathlib.Path) -> ValueError:
    try:
        writer = json.loads(path.read_text())
        who = f"process {writer['process']} on {writer['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return ValueError(
        f"{path.parent} is being written to by {who}: wait until it has ended, or give "
        "this run another directory; to read while it is running, do not call save"
    )

"""Record what is flushed to disk, and whether that happened before its renaming."""

import os
import stat


class Disk:
    """The contents of the disk, as far as ``os.fsync`` has written them.

    Attributes:
      events: flushes and renames, in order, as ``("flush", path)`` and
        ``("rename", path, new path)``.
      unflushed: by new path, files that were renamed before they were flushed.
    """

    def __init__(self, monkeypatch):
        self.events, self.unflushed = [], {}
        self._flushed = {}
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._flush)
        for name in ("rename", "replace", "link"):
            monkeypatch.setattr(os, name, self._renaming(getattr(os, name)))

    def _flush(self, descriptor):
        self._fsync(descriptor)
        status = os.fstat(descriptor)
        self._flushed[status.st_ino] = _content(status)
        self.events.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))

    def _renaming(self, rename):
        def renaming(old, new, *args, **kwargs):
            old, new = os.fspath(old), os.fspath(new)
            self.unflushed[new] = [path for path in _all(old) if not self._is_on(path)]
            rename(old, new, *args, **kwargs)
            self.events.append(("rename", old, new))

        return renaming

    def _is_on(self, path):
        status = os.stat(path)
        return self._flushed.get(status.st_ino) == _content(status)


def _all(path):
    """Return a file, or a folder with everything in it."""
    yield path
    for place, folders, files in os.walk(path):
        yield from (os.path.join(place, name) for name in (*folders, *files))


def _content(status):
    """Return what changes with a file's content, or with the names in a folder."""
    # A new name of a file changes neither.
    size = None if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mtime_ns, size

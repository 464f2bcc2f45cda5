"""Records what is flushed to the disk, and whether it was when it got its name."""

import os
import stat


class Disk:
    """What is on the disk, as far as ``os.fsync`` has put it there.

    Attributes:
      events: what was flushed or renamed, in order, as ``("flush", path)`` and
        ``("rename", path, new path)``.
      unflushed: by new path, what a rename has named that was not on the disk.
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
    """A file, or a folder with all that is in it."""
    yield path
    for place, folders, files in os.walk(path):
        yield from (os.path.join(place, name) for name in (*folders, *files))


def _content(status):
    """What changes with a file's content, or with the names in a folder."""
    # Another name for a file changes neither.
    size = None if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mtime_ns, size

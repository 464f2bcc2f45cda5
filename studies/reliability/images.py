"""File systems of their own, which can be filled and cut off: for root, on Linux."""

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Of Linux, for ext4: what is not on the disk by now is lost, the journal included.
_SHUTDOWN, _WITHOUT_FLUSHING = 0x8004587D, 2


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


class Image:
    """An ext4 file system in a file.

    Attributes:
      place: where it is mounted.
    """

    def __init__(self, folder: Path, megabytes: int):
        """Makes it, empty; nothing is mounted yet."""
        self._file, self.place = folder / "image", folder / "mounted"
        self.place.mkdir(parents=True, exist_ok=True)
        with self._file.open("wb") as file:
            file.truncate(megabytes * 2**20)
        # Nothing is reserved for root: a full disk is full.
        _run("mkfs.ext4", "-q", "-F", "-m", "0", self._file)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mounts it within the block."""
        self.mount()
        try:
            yield self.place
        finally:
            _run("umount", self.place)

    def mount(self) -> None:
        """Mounts it; what is written reaches the disk late, unless it is flushed."""
        _run("mount", "-o", "loop,commit=300", self._file, self.place)

    def cut(self) -> None:
        """Takes the disk away, as a power failure does."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSHING))
        finally:
            os.close(folder)

    def mount_again(self) -> None:
        """Mounts it after a cut, as the next start of the machine does."""
        _run("umount", self.place)
        self.mount()


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)

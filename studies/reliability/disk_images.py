"""ext4 file systems in a file, to be filled or shut down: for root, on Linux."""

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Linux's ioctl that shuts ext4 down; with this flag not even the journal is flushed.
_SHUTDOWN, _WITHOUT_FLUSHING = 0x8004587D, 2


def can_mount() -> bool:
    """Return whether this process may mount file systems."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


class DiskImage:
    """An ext4 file system in a file.

    Args:
      folder: where to keep the file and the mount point.
      megabytes: size of the file system.

    Attributes:
      mount_point: folder at which it is mounted.
    """

    def __init__(self, folder: Path, megabytes: int):
        """Make an empty file system; mount nothing yet."""
        self._file, self.mount_point = folder / "image", folder / "mounted"
        self.mount_point.mkdir(parents=True, exist_ok=True)
        if self.mount_point.is_mount():
            self._unmount()  # left by a study that was killed
        with self._file.open("wb") as file:
            file.truncate(megabytes * 2**20)
        # No blocks are reserved for root, so that a full disk is full for root too.
        _run("mkfs.ext4", "-q", "-F", "-m", "0", self._file)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Keep the file system mounted during the block."""
        self._mount()
        try:
            yield self.mount_point
        finally:
            self._unmount()

    def cut_power(self) -> None:
        """Shut the file system down: whatever was not flushed is lost."""
        folder = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSHING))
        finally:
            os.close(folder)

    def restart(self) -> None:
        """Mount the file system again after a power failure, as a reboot does."""
        self._unmount()
        self._mount()

    def _mount(self) -> None:
        # The journal is committed every 300 seconds, unless something is flushed.
        _run("mount", "-o", "loop,commit=300", self._file, self.mount_point)

    def _unmount(self) -> None:
        _run("umount", self.mount_point)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)

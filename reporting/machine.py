"""The code and the machine behind the numbers."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def working_tree(root: Path) -> tuple[str | None, bool]:
    """Return the checked-out commit, if any, and whether files differ from it.

    Stored records do not count: one benchmark's record must not block the next.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD")
    changes = git("status", "--porcelain", "--", ".", ":(exclude,glob)*/results/**")
    return commit, commit is None or changes != ""


def machine() -> dict[str, Any]:
    """Return what the numbers depend on, without anything that identifies the owner."""
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_gib": _memory(),
        "load": round(os.getloadavg()[0], 1),
        "os": _system(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **installed}


def _cpu() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> float:
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return round(size / 2**30, 1)


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.release()}"

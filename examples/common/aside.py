"""Files that are written under another name first."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``path`` once complete.

    Args:
      path: the file to write or replace. If writing fails, it is unchanged, and nothing
        is left behind.
    """
    # With the process id: several processes may be writing the same file.
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise

"""The tutorials of ``docs/tutorials.md``, and their output."""

import functools
import os
import subprocess
import sys
from pathlib import Path

from reporting.stored import ROOT

OUTPUTS = ROOT / "docs" / "outputs"


def script(name: str) -> Path:
    """Return the path of a tutorial's program."""
    return ROOT / "examples" / "quickstart" / f"{name}.py"


def run(name: str) -> str:
    """Return the output of a tutorial on a terminal of 100 columns."""
    done = subprocess.run(
        [sys.executable, str(script(name))],
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def run_all() -> None:
    """Run the tutorials and store their output."""
    for name in PAGE:
        (OUTPUTS / f"{name}.txt").write_text(run(name), encoding="utf-8")


def shown(name: str) -> str:
    """Return a tutorial and its output, as Markdown."""
    output = (OUTPUTS / f"{name}.txt").read_text(encoding="utf-8")
    code = script(name).read_text(encoding="utf-8")
    return (
        f"```python\n{code}```\n\n`python -m examples.quickstart.{name}` prints:\n\n"
        f"```text\n{output}```\n"
    )


PAGE = {
    name: functools.partial(shown, name)
    for name in ("linen", "resume", "prune_trained")
}

"""Check the properties that the tests check, with many more examples.

    python -m studies.reliability.invariants

These are the repository's own tests; an environment variable asks Hypothesis for more
examples of each. They check what holds after every step for any weights, gradients and
masks (numbers of active weights, exact zeros, fresh optimizer state of grown weights),
exact selection, and the groups of structures.
"""

import os
import re
import subprocess
import sys
import time

from reporting import harness
from reporting.stored import ROOT
from studies.reliability.options import Notes, Options

EXAMPLES = 10_000
FILES = (
    "tests/engine/test_invariants.py",
    "tests/arrays/test_selection.py",
    "tests/layers/test_structures.py",
)


def main(options: Options) -> None:
    """Run the program."""
    report = harness.Report("studies.reliability.invariants", options)
    notes = Notes(report, options)
    examples = options.count_or(EXAMPLES)
    chosen = properties()
    for name in chosen[:1] if options.quick else chosen:
        if not notes.select(property=name, examples=examples):
            notes.add({"property": name, "examples": examples, **_try(name, examples)})
    rows = notes.select(examples=examples)
    report.listing("Properties", rows, kind="invariants")
    failed = sum(row["failed"] for row in rows)
    report.claim("properties that failed", failed, at_most=0, kind="failed")
    report.store()


def properties() -> list[str]:
    """Return the ids of the tests that draw examples with Hypothesis."""
    said = _pytest("--collect-only", "-q", *FILES).stdout
    ids = [line for line in said.splitlines() if "::" in line]
    drawn = {name for file in FILES for name in _drawn((ROOT / file).read_text())}
    return [name for name in ids if re.split(r"::|\[", name)[1] in drawn]


def _drawn(source: str) -> list[str]:
    """Return the names of the functions decorated with ``given``."""
    return re.findall(r"^@given\((?:.|\n)*?^def (\w+)", source, re.MULTILINE)


def _try(name: str, examples: int) -> dict[str, float | bool]:
    begun = time.monotonic()
    done = _pytest("-q", name, HYPOTHESIS_MAX_EXAMPLES=str(examples))
    if done.returncode:
        print(done.stdout)
    return {
        "failed": done.returncode != 0,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _pytest(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # Include slow tests, which the repository's settings leave out.
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "", *args],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


if __name__ == "__main__":
    harness.start(main, __doc__, Options)

"""Write the golden record, or compare this code with another revision bit for bit.

If results were changed on purpose, rewrite the record and look at its diff::

    python -m tests.golden_record --update

While refactoring, compare with another revision, floats bit for bit::

    python -m tests.golden_record --against main

or with another checkout or interpreter, which runs its half itself::

    python -m tests.golden_record --write /tmp/before.json
    python -m tests.golden_record --write /tmp/after.json
    python -m tests.golden_record --compare /tmp/before.json /tmp/after.json

``--only REGEX`` selects variants, ``--parts masks params`` parts of the comparison.

Everything but the tests runs without fused multiply-add: with it, the last bit depends
on which operations XLA fuses, and so on the position of a line in the program.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sparseopt_jax
from tests.golden_record.record import bits, differences, record, store
from tests.golden_record.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    args = _arguments()
    if args.compare:
        return _compare(*args.compare, args.only, args.parts)
    if args.against:
        return _against(args.against, args.only, args.parts)
    # Read when the first device is requested, which happens later.
    os.environ |= {"XLA_FLAGS": _flags(), "JAX_PLATFORMS": "cpu"}
    if args.update:
        store(_of_each(record, args.only))
    else:
        args.write.write_text(json.dumps(_of_each(bits, args.only), indent=1))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden_record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--update", action="store_true", help="write the stored record")
    what.add_argument("--write", type=Path, metavar="FILE", help="write all bits")
    what.add_argument("--compare", type=Path, nargs=2, metavar="FILE")
    what.add_argument("--against", metavar="REVISION", help="compare with a revision")
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--parts", nargs="+", default=[""], metavar="PART")
    return parser.parse_args()


def _flags() -> str:
    quick = [sys.executable, ROOT / ".ci" / "quick_code.py"]
    found = subprocess.run(quick, check=True, capture_output=True, text=True)
    return f"--xla_cpu_max_isa=AVX {found.stdout}"


def _of_each(of: Callable[[str], Any], only: str) -> dict[str, Any]:
    package = Path(sparseopt_jax.__file__)
    if ROOT not in package.parents:
        raise SystemExit(f"{package} is of another checkout than {ROOT}: run it there")
    found = {}
    for name in VARIANTS:
        if re.search(only, name):
            print(name, file=sys.stderr, flush=True)
            found[name] = of(name)
    return found


def _compare(before: Path, after: Path, only: str, parts: list[str]) -> int:
    expected, actual = (
        {
            name: {
                path: v for path, v in entry.items() if path.startswith(tuple(parts))
            }
            for name, entry in json.loads(file.read_text()).items()
            if re.search(only, name)
        }
        for file in (before, after)
    )
    lines = differences(expected, actual)
    print(*lines, sep="\n", end="\n" if lines else "")
    count = len(expected.keys() & actual.keys())
    print(f"{count} variants compared, {len(lines)} differences")
    return 1 if lines or not count else 0


def _against(revision: str, only: str, parts: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        other, before, after = (Path(folder, name) for name in ("tree", "old", "new"))
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", other, revision], check=True)
        try:
            for tree, file in ((other, before), (ROOT, after)):
                command = [sys.executable, "-m", "tests.golden_record"]
                subprocess.run(
                    [*command, "--write", file, "--only", only],
                    check=True,
                    cwd=tree,
                    env={**os.environ, "PYTHONPATH": str(tree)},
                )
        finally:
            subprocess.run([*git, "remove", "--force", other], check=True)
        return _compare(before, after, only, parts)


if __name__ == "__main__":
    sys.exit(main())

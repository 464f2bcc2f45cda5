"""Measure on an accelerator what fits into a few minutes, most important first.

    python -m benchmarks.gpu --minutes 9 --output DIR

Needs jax, flax, optax, orbax, numpy, rich and scikit-learn, and no network. It runs
from the checkout, without installing the package. Parts, in this order:

  optimizers        selection, updates of the masks, the optimizer's step
  resnet50          a training step of ResNet-50, time and memory
  seeds             ResNet-20 with RigL, with and without corrections, five seeds
  language_model    a training step of LLaMA-130M, Adam against SMET, time, memory
  compact_kernels   training steps on active blocks only

Each part runs in a separate process for its share of the remaining time, and rewrites
DIR/<part>.json with every result: a part that fails or is stopped leaves its results so
far and the reason. Compiled programs are cached in DIR/cache for the next call; --cache
names another folder. docs/gpu.md shows the records in benchmarks/results/gpu, the
default of --output: python -m reporting.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reporting import stored

# Most important first; a part gets this fraction of the remaining time.
SHARES = {
    "optimizers": 0.24,
    "resnet50": 0.36,
    "seeds": 0.45,
    "language_model": 0.5,
    "compact_kernels": 1.0,
}
# Seconds to start and end a part, and the least for which a part is started.
GRACE, LEAST = 20.0, 15.0
NO_ACCELERATOR = 3  # exit code of a part's process without an accelerator


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with ``args``, or with the arguments of the command line."""
    begin = time.perf_counter()
    options = _parser().parse_args(args)
    if options.seconds is not None:
        _measure(options)
        return 0
    if options.output is None:
        if options.quick:
            raise SystemExit("error: a quick run needs --output, a folder to write to")
        options.output = stored.path_of("benchmarks.gpu.part").parent
        options.cache = options.cache or stored.ROOT / "runs" / "gpu"
    options.cache = options.cache or options.output / "cache"
    options.output.mkdir(parents=True, exist_ok=True)
    end = begin + 60 * options.minutes
    failed = []
    for number, name in enumerate(options.parts):
        left = end - time.perf_counter()
        last = number == len(options.parts) - 1
        seconds = left if last else SHARES[name] * left
        if left < LEAST:
            why = "no time was left"
        else:
            why = _run(options, name, seconds - GRACE / 2, left)
        record = _finished(options.output / f"{name}.json", name, why)
        messages = [
            f"{failure['what']}: {failure['error']}" for failure in record["errors"]
        ]
        failed += [name] * bool(messages)
        print(f"== {name}: {'; '.join(messages) or 'done'}", flush=True)
    taken = time.perf_counter() - begin
    print(f"{taken:.0f} s in total; records are in {options.output}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=9.0, help="time budget in minutes")
    add("--output", type=Path, help="folder of the records")
    add("--cache", type=Path, help="folder of compiled programs and computed images")
    add("--data-dir", type=Path, help="folder with the IDX files of Fashion-MNIST")
    add("--parts", nargs="+", choices=SHARES, default=[*SHARES], help="parts, in order")
    add("--quick", action="store_true", help="tiny sizes, to check that it runs")
    add("--seconds", type=float, help=argparse.SUPPRESS)  # of one part, in its process
    return parser


def _run(
    options: argparse.Namespace, name: str, seconds: float, most: float
) -> str | None:
    """Run a part in a separate process; return why it ended early, or None."""
    (options.output / f"{name}.json").unlink(missing_ok=True)  # of an earlier run
    command = [sys.executable, "-m", "benchmarks.gpu", "--output", options.output]
    command += ["--seconds", f"{max(5.0, seconds):.0f}", "--parts", name]
    command += ["--cache", options.cache]
    command += ["--data-dir", options.data_dir] if options.data_dir else []
    command += ["--quick"] if options.quick else []
    print(f"== {name}: {seconds:.0f} s", flush=True)
    path = os.pathsep.join(filter(None, (str(stored.ROOT), os.getenv("PYTHONPATH"))))
    process = subprocess.Popen(
        [*map(str, command)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
    )
    try:
        code = process.wait(timeout=min(most, 1.3 * seconds + GRACE))
    except subprocess.TimeoutExpired:
        return "stopped: it took longer than it had"
    finally:
        process.kill()  # also if this program is interrupted
        process.wait()
    if code == NO_ACCELERATOR:
        raise SystemExit(
            "error: JAX finds no accelerator, and on CPU this takes hours. Install jax "
            "for the device (pip install 'jax[cuda13]'), or test it with --quick"
        )
    return None if code == 0 else f"its process ended with {code}"


def _finished(path: Path, name: str, why: str | None) -> dict[str, Any]:
    """Return the record of a part, with the reason if it ended early."""
    record: dict[str, Any] = {"program": f"benchmarks.gpu.{name}", "errors": []}
    if path.exists():
        record = json.loads(path.read_text())
    elif why is None:
        why = "it wrote no record"
    if why is not None:
        record["errors"].append({"what": name, "error": why})
        stored.write_record(path, record)
    return record


def _measure(options: argparse.Namespace) -> None:
    """Measure one part, inside its process."""
    import importlib

    import jax

    from benchmarks.gpu.part import Budget, Options, Report

    if jax.default_backend() == "cpu" and not options.quick:
        sys.exit(NO_ACCELERATOR)
    budget = Budget(options.seconds)
    jax.config.update("jax_compilation_cache_dir", str(options.cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    (name,) = options.parts
    part_options = Options(
        quick=options.quick,
        output=options.output / f"{name}.json",
        overwrite=True,
        allow_dirty=True,
        data_dir=options.data_dir,
        cache=options.cache,
    )
    report = Report(f"benchmarks.gpu.{name}", part_options)
    try:
        importlib.import_module(f"benchmarks.gpu.{name}").measure(report, budget)
    except Exception as error:
        report.error(name, error)
        raise
    finally:
        report.save()


if __name__ == "__main__":
    sys.exit(main())

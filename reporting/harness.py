"""Time candidates in turn, print tables, and store the measurements as JSON.

Other work on a machine slows whatever runs at the same time. So candidates are timed in
rounds, A B C, B C A, and compared within a round, where a slowdown affects both sides.
The order changes from round to round, because the previous candidate leaves its memory
in the caches: in a fixed order, one program measured twice differed by 5 %.
"""

import dataclasses
import datetime
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from reporting import stored
from reporting.machine import machine, versions, working_tree


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of every benchmark.

    Attributes:
      quick: Tiny sizes and few rounds, to check that it runs. Stored only with
        --output.
      rounds: How often each candidate is timed; slow ones less often.
      output: File for the record, instead of the one next to the program.
      overwrite: Replace the file of --output.
      allow_dirty: Measure even if the working tree differs from the commit. The record
        says so.
    """

    quick: bool = False
    rounds: int | None = None
    output: Path | None = None
    overwrite: bool = False
    allow_dirty: bool = False

    def __post_init__(self) -> None:
        if self.rounds is not None and self.rounds < 1:
            raise SystemExit(f"--rounds must be at least 1, got {self.rounds}")
        if self.output is not None and self.output.is_dir():
            raise SystemExit(f"--output {self.output} is a folder; pass a file")
        if self.output is not None and self.output.exists() and not self.overwrite:
            raise SystemExit(
                f"--output {self.output} already exists. Pass --overwrite to replace "
                "it, or another file"
            )

    def rounds_or(self, default: int) -> int:
        """Return the requested rounds, else 2 if quick, else the default."""
        return self.rounds or (2 if self.quick else default)


class Candidate(NamedTuple):
    """Something to time.

    Attributes:
      name: its name in the table.
      run: runs it once, and returns arrays that are ready when it is done.
      steps: number of steps in ``run``; times are per step.
      every: it takes part in one of every ``every`` rounds.
    """

    name: str
    run: Callable[[], Any]
    steps: int = 1
    every: int = 1


class Spread(NamedTuple):
    """A sample described by five numbers."""

    median: float
    q1: float
    q3: float
    min: float
    max: float

    @classmethod
    def of(cls, sample: Iterable[float]) -> "Spread":
        """Return the spread of a sample that is not empty."""
        quantiles = np.quantile(list(sample), [0.5, 0.25, 0.75, 0.0, 1.0])
        return cls(*map(float, quantiles))


class Timing(NamedTuple):
    """The times of a candidate.

    Attributes:
      first_call: seconds of its whole first call, compilation included.
      seconds: seconds per step, by round.
    """

    first_call: float
    seconds: dict[int, float]

    def ratio(self, baseline: "Timing") -> Spread:
        """Return its time relative to the baseline's in the same round."""
        return Spread.of(
            seconds / baseline.seconds[turn]
            for turn, seconds in self.seconds.items()
            if turn in baseline.seconds
        )


def measure(
    candidates: Sequence[Candidate],
    rounds: int,
    check: Callable[[dict[str, Any]], None] = lambda results: None,
    clock: Callable[[], float] | None = None,
    seconds: float = math.inf,
) -> dict[str, Timing]:
    """Time the candidates, in another order each round, after two warm-up calls each.

    Args:
      candidates: what to time; names must differ.
      rounds: number of rounds.
      check: called with the results of the first calls, by name; raises if one is
        wrong.
      clock: returns seconds; ``time.perf_counter`` by default.
      seconds: after this time, warm-up included, no round starts except the first.

    Returns:
      Timings by name.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"candidates must have different names, got {names}")
    end = time.perf_counter() + seconds
    first = [_timed(candidate.run, clock) for candidate in candidates]
    check({name: result for name, (_, result) in zip(names, first, strict=True)})
    timings = {
        name: Timing(seconds, {})
        for name, (seconds, _) in zip(names, first, strict=True)
    }
    del first  # frees its arrays before others are made
    for candidate in candidates:
        _timed(candidate.run, clock)
    for turn in range(rounds):
        if turn and time.perf_counter() >= end:
            break
        order = random.Random(turn)
        for candidate in order.sample(candidates, len(candidates)):
            if turn % candidate.every == 0:
                seconds, _ = _timed(candidate.run, clock)
                timings[candidate.name].seconds[turn] = seconds / candidate.steps
    return timings


def _timed(
    run: Callable[[], Any], clock: Callable[[], float] | None
) -> tuple[float, Any]:
    clock = clock or time.perf_counter
    started = clock()
    result = jax.block_until_ready(run())
    return clock() - started, result


class Report:
    """The report of one benchmark: printed as it grows, stored at the end."""

    def __init__(self, program: str, options: Options, root: Path = stored.ROOT):
        """Open the report, before anything is measured.

        Args:
          program: the module that measures, such as ``"studies.paper.skew"``.
          options: the options of the command line.
          root: the checkout.

        Raises:
          SystemExit: if the working tree is dirty and ``--allow-dirty`` was not passed.
        """
        self.options = options
        commit, dirty = working_tree(root)
        if dirty and not options.allow_dirty:
            raise SystemExit(
                "The working tree differs from the commit, so the record could not be "
                "traced to code. Commit first, or pass --allow-dirty."
            )
        device = jax.devices()[0]
        self.record: dict[str, Any] = {
            "program": program,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit,
            "dirty": dirty,
            "quick": options.quick,
            "machine": machine(),
            "device": {"name": device.device_kind, "platform": device.platform},
            "versions": versions(),
            "tables": [],
            "claims": [],
        }
        self.path = options.output
        if self.path is None and not options.quick:
            self.path = stored.path_of(
                program, device_name(device.platform, device.device_kind), root
            )
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        about = {**self.record["machine"], **self.record["versions"]}
        print(f"{program} on {device.device_kind} ({device.platform})")
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        if options.quick:
            print("Tiny sizes: the numbers and their limits mean nothing.")

    def table(
        self, title: str, timings: Mapping[str, Timing], baseline: str, **key: Any
    ) -> None:
        """Add timings, each compared with the baseline.

        Args:
          title: what was timed, in words.
          timings: timings by name, from ``measure``.
          baseline: the name that all are compared with.
          **key: what was timed, for ``stored.select``.
        """
        rows = []
        for name, timing in timings.items():
            times = Spread.of(timing.seconds.values())._asdict()
            rows.append(
                {
                    "name": name,
                    "repeats": len(timing.seconds),
                    "first_call_s": timing.first_call,
                    **{f"{key}_ms": 1e3 * value for key, value in times.items()},
                    "ratio": timing.ratio(timings[baseline])._asdict(),
                }
            )
        self.record["tables"].append(
            {"key": key, "title": title, "baseline": baseline, "rows": rows}
        )
        print(f"\n{title}\n{format_rows(rows, baseline)}")

    def listing(
        self, title: str, rows: Sequence[Mapping[str, Any]], **key: Any
    ) -> None:
        """Add numbers that are counted, not timed.

        Args:
          title: what they describe, in words.
          rows: each with the same keys, which are the column heads.
          **key: what they describe, for ``stored.select``.
        """
        rows = [*map(dict, rows)]
        self.record["tables"].append({"key": key, "title": title, "rows": rows})
        show(title, rows)

    def claim(
        self,
        what: str,
        measured: float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        **key: Any,
    ) -> None:
        """Add a key number of the table, with its limit if it has one.

        Args:
          what: the number in words.
          measured: its value.
          at_least: its lower limit.
          at_most: its upper limit.
          **key: what the number is, for ``stored.select``.
        """
        claim: dict[str, Any] = {"key": key, "what": what, "measured": measured}
        if at_least is not None:
            claim |= {"at_least": at_least, "met": measured >= at_least}
        if at_most is not None:
            claim |= {"at_most": at_most, "met": measured <= at_most}
        self.record["claims"].append(claim)
        print(f"  {format_claim(claim)}")

    def picture(self, figure: Any) -> None:
        """Draw the measurements, next to the record if there is one.

        Args:
          figure: a ``matplotlib.figure.Figure``.
        """
        if self.path is not None:
            stored.write_picture(figure, self.path.with_suffix(".png"))

    def store(self) -> None:
        """Write the record, unless a quick run has no file."""
        if self.path is None:
            print("\nA quick run is not stored; --output stores it.")
            return
        stored.write_record(self.path, self.record)
        print(f"\nStored in {self.path}")


def start(
    main: Callable[[Any], None],
    description: str | None,
    options: type[Options] = Options,
) -> None:
    """Run a program with the options of the command line."""
    import tyro  # not needed by programs that parse their own command line

    spec = sys.modules["__main__"].__spec__
    prog = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
    main(tyro.cli(options, prog=prog, description=description))


def use_cores(count: int) -> None:
    """Restrict the process to ``count`` processor cores, if the system allows it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same keys, which are the column heads."""
    if not rows:
        print(f"\n{title}\nNone.")
        return
    head = [key.replace("_", " ") for key in rows[0]]
    lines = [head, *([_cell(x) for x in row.values()] for row in rows)]
    print(f"\n{title}\n{_columns(lines)}")


def format_rows(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return rows of a table as text."""
    head = ["", "median ms", "quartiles", "min", "max", f"x {baseline}", "quartiles"]
    lines = [[*head, "repeats", "first call s"]]
    for row in rows:
        ratio = row["ratio"]
        lines.append(
            [
                row["name"],
                f"{row['median_ms']:.2f}",
                f"{row['q1_ms']:.2f}-{row['q3_ms']:.2f}",
                f"{row['min_ms']:.2f}",
                f"{row['max_ms']:.2f}",
                f"{ratio['median']:.3f}",
                f"{ratio['q1']:.3f}-{ratio['q3']:.3f}",
                str(row["repeats"]),
                f"{row['first_call_s']:.2f}",
            ]
        )
    return _columns(lines)


def _cell(x: Any) -> str:
    return f"{x:,}" if isinstance(x, int) else str(x)


def _columns(lines: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        ).rstrip()
        for line in lines
    )


def format_claim(claim: Mapping[str, Any]) -> str:
    """Return a claim as a line of text."""
    text = f"{claim['what']}: {claim['measured']:.3f}"
    for key, words in (("at_least", "at least"), ("at_most", "at most")):
        if key in claim:
            verdict = "met" if claim["met"] else "MISSED"
            text += f", {words} {claim[key]:g} wanted: {verdict}"
    return text


def device_name(backend: str, device: str) -> str:
    """Return the device's part of a record's file name: empty for a CPU."""
    if backend == "cpu":
        return ""
    return re.sub("[^a-z0-9]+", "-", device.lower()).strip("-")

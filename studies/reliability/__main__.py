"""Run every program of the reliability study, one after the other.

    python -m studies.reliability
    nice -n 19 python -m studies.reliability --parts kills faults

Each program stores its own record when it finishes. If the study is interrupted, the
same command resumes it, provided the commit is unchanged. ``power`` and part of
``faults`` mount file systems, which needs root, and are skipped without it.
"""

import dataclasses
from typing import Literal

from reporting import harness
from studies.reliability import (
    faults,
    flushing,
    invariants,
    kills,
    non_finite,
    power,
)
from studies.reliability.disk_images import can_mount
from studies.reliability.options import Options

PROGRAMS = {
    "non_finite": non_finite,
    "faults": faults,
    "kills": kills,
    "power": power,
    "invariants": invariants,
    "flushing": flushing,
}


@dataclasses.dataclass(frozen=True)
class AllOptions(Options):
    """Options of the whole study.

    Attributes:
      parts: Which programs to run.
    """

    parts: tuple[
        Literal["non_finite", "faults", "kills", "power", "invariants", "flushing"],
        ...,
    ] = tuple(PROGRAMS)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            raise SystemExit(
                "--output names the record of one program: run that program, such as "
                "python -m studies.reliability.kills"
            )


def main(options: AllOptions) -> None:
    """Run the programs."""
    shared = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Options)
    }
    for part in options.parts:
        if part == "power" and not can_mount():
            print("power needs root: skipped.")
            continue
        PROGRAMS[part].main(Options(**shared))


if __name__ == "__main__":
    harness.start(main, __doc__, AllOptions)

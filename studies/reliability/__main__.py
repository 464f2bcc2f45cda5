"""Whether runs survive: every program of this study, one after the other.

    python -m studies.reliability
    nice -n 19 python -m studies.reliability --parts kills faults

Each program stores a record of its own once it is through. Where one was stopped, the
same command goes on, as long as the commit is the same. ``power`` and a part of
``faults`` need root, who may mount file systems, and are left out without.
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
from studies.reliability.images import can_mount
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
    """Whether runs survive: every program of this study, one after the other.

    Attributes:
      parts: Which of the programs to run.
    """

    parts: tuple[
        Literal["non_finite", "faults", "kills", "power", "invariants", "flushing"],
        ...,
    ] = tuple(PROGRAMS)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            raise SystemExit(
                "--output names the record of one program: start that one, such as "
                "python -m studies.reliability.kills"
            )


def main(options: AllOptions) -> None:
    """Runs the programs."""
    shared = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Options)
    }
    for part in options.parts:
        if part == "power" and not can_mount():
            print("power needs root: left out.")
            continue
        PROGRAMS[part].main(Options(**shared))


if __name__ == "__main__":
    harness.start(main, __doc__, AllOptions)

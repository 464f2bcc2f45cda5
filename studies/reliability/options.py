"""Options of the programs of this study, and their notes of what is done."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.common.run_folder import read_log
from reporting import harness


@dataclasses.dataclass(frozen=True)
class Options(harness.Options):
    """Options of every program of this study.

    Attributes:
      count: How many interruptions of each training, faults of each kind, or examples
        of each property; by default the numbers in the program.
      work: Folder for runs and for notes of what is done. The same command resumes from
        them, provided the commit is unchanged.
    """

    count: int | None = None
    work: Path = Path("runs/reliability")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count is not None and self.count < 1:
            raise SystemExit(f"--count must be at least 1, got {self.count}")

    def count_or(self, default: int) -> int:
        """Return the requested count, or else 2 if quick, or else the default."""
        return self.count or (2 if self.quick else default)


class Notes:
    """Notes of what one program has done at one commit.

    Attributes:
      folder: folder for the notes and for anything else the program needs.
      rows: the notes.
    """

    def __init__(self, report: harness.Report, options: Options):
        """Open the notes of a program; they start empty if the code has changed."""
        program = report.record["program"].rpartition(".")[2]
        commit, dirty = report.record["commit"], report.record["dirty"]
        name = f"{program}-{'quick' if options.quick else (commit or '')[:12]}"
        self.folder = options.work.absolute() / name
        if dirty or options.quick:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = read_log(self.folder)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, on disk at once, so that it is not done again."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self.rows.append(dict(row))
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def select(self, **key: Any) -> list[dict[str, Any]]:
        """Return the rows with these values."""
        return [row for row in self.rows if key.items() <= row.items()]

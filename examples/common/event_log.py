"""The log of a training run: rows of JSON, and event files for TensorBoard."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from examples.common.run_folder import RunFolder, read_log


class Log:
    """Log one run; only the first process of a run has a log.

    ``log.jsonl`` has a row for each event; the folder ``events`` holds the same numbers
    for TensorBoard.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], overwrite: bool = False):
        """Open the folder of a run, and create it if it does not exist.

        Args:
          path: the folder.
          config: everything that decides the results of the run.
          overwrite: whether to replace a run with another configuration. A stopped run
            that is started again is never removed.

        Raises:
          ValueError: if the folder holds a run with another configuration.
        """
        try:
            self._folder = RunFolder(path, config)
        except ValueError:
            if not overwrite or not path.is_dir():
                raise
            for folder in ("events", "checkpoints"):
                shutil.rmtree(path / folder, ignore_errors=True)
            for file in path.glob("fingerprints.*.jsonl"):
                file.unlink()
            self._folder = RunFolder(path, config, overwrite=True)
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def begin(self, step: int) -> None:
        """Drop what an interrupted run has logged about later steps.

        Args:
          step: the step from which training resumes.
        """
        rows = [row for row in read_log(self._folder.path) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self._folder.write_text("log.jsonl", text)
        # purge_step hides this event and later ones in TensorBoard. Step 0 needs it
        # too: a run may have been killed before its first checkpoint.
        self._writer = SummaryWriter(
            str(self._folder.path / "events"), purge_step=step + 1
        )

    def write(
        self,
        event: str,
        step: int,
        numbers: Mapping[str, Any],
        details: Mapping[str, float] | None = None,
    ) -> None:
        """Append a row.

        Args:
          event: the kind of row.
          step: optimizer steps so far.
          numbers: values by name.
          details: values that only TensorBoard receives.
        """
        self._folder.append({"event": event, "step": step, **numbers})
        if self._writer is None:
            raise ValueError("begin must be called before write")
        for name, value in {**numbers, **(details or {})}.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{event}/{name}", value, step)
        self._writer.flush()

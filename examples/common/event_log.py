"""What a run tells of itself: rows of JSON, and event files for TensorBoard."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from examples.common.run_folder import RunFolder, read_log


class Log:
    """The log of one run; only the first process of a run has one.

    ``log.jsonl`` has a row for each event, the folder ``events`` the same numbers for
    TensorBoard.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], overwrite: bool = False):
        """Opens the folder of a run, and makes it if it is not there.

        Args:
          path: the folder.
          config: what decides the results of the run.
          overwrite: whether to remove a run with another configuration. The same run,
            stopped and started again, is never removed.

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
        """Forgets what a run that was stopped has told of later steps.

        Args:
          step: the step that training goes on from.
        """
        rows = [row for row in read_log(self._folder.path) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self._folder.write_text("log.jsonl", text)
        # TensorBoard hides what was told of that step and later ones: at step 0 too, as
        # a run may have been killed before its first checkpoint.
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
        """Adds a row.

        Args:
          event: what kind of row.
          step: steps of the optimizer so far.
          numbers: by their names.
          details: numbers for TensorBoard alone.
        """
        self._folder.append({"event": event, "step": step, **numbers})
        if self._writer is None:
            raise ValueError("begin must be called before write")
        for name, value in {**numbers, **(details or {})}.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{event}/{name}", value, step)
        self._writer.flush()

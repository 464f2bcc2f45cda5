"""The folder of a comparison: its configuration, its log and its results.

The folder stays readable if a run is stopped at any moment: the log grows by whole
lines and ignores a truncated one, and every other file is written under a temporary
name and then renamed.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.common.aside import written_aside

FILES = ("log.jsonl", "config.json", "results.json", "results.md", "figure.png")


class RunFolder:
    """The folder of one comparison.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], overwrite: bool = False):
        """Open the folder for a configuration, and create it if it does not exist.

        Args:
          path: the folder.
          config: the configuration of the comparison, as JSON holds it.
          overwrite: whether to replace a comparison with another configuration.

        Raises:
          ValueError: if ``path`` is a file, or holds a comparison with another
            configuration.
        """
        self.path = path
        if overwrite and path.is_dir():
            for name in FILES:
                (path / name).unlink(missing_ok=True)
        check_folder(path, config)
        path.mkdir(parents=True, exist_ok=True)
        self.write_json("config.json", config)

    def forget_unfinished(self) -> None:
        """Remove the rows of unfinished runs from the log: these runs start over."""
        done = {run_id(row) for row in finished_runs(self.path)}
        kept = [
            row
            for row in read_log(self.path)
            if "seed" not in row or run_id(row) in done
        ]
        self.write_text("log.jsonl", "".join(map(_line, kept)))

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row to the log; it is on disk when this returns."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(_line(row))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file into the folder."""
        text = json.dumps(_finite(content), indent=2) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the folder."""
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8")

    def writing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Return a context of a path to write to; it becomes ``name`` once complete."""
        return written_aside(self.path / name)


def check_folder(
    path: Path, config: Mapping[str, Any], parts: Sequence[str] = ()
) -> None:
    """Check that a folder is free for a configuration; write nothing.

    Args:
      path: the folder, which need not exist.
      config: the configuration of the comparison, as JSON holds it.
      parts: files of a comparison besides ``FILES``.

    Raises:
      ValueError: if ``path`` is a file, or holds a comparison with another
        configuration.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {path} is a file; pass a folder")
    if differences := _differences(path, config, (*FILES, *parts)):
        raise ValueError(
            f"{path} holds another run: {'; '.join(differences)}. Pass --overwrite to "
            "replace it, another --output, or the options of that run"
        )


def default_output(program: str, recipe: str, *given: str | float | None) -> Path:
    """Return the folder of a run without ``--output``: one for each recipe.

    Args:
      program: the program that trains.
      recipe: the recipe's name.
      *given: other options to append to the name; None for options not passed.

    Returns:
      A path such as ``runs/cifar/rigl_wrn22_2-0.95``.
    """
    chosen = (x for x in given if x is not None)
    parts = [x if isinstance(x, str) else f"{x:g}" for x in chosen]
    return Path("runs", program, "-".join([recipe, *parts]))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder's log; no rows if there is no log."""
    log = folder / "log.jsonl"
    rows = []
    if log.exists():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a truncated line
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def finished_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that end a run, in the order of the log."""
    return [row for row in read_log(folder) if row.get("event") == "run"]


def run_id(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the run that a row belongs to: its method, correction and seed."""
    return row.get("method"), row.get("correction"), row.get("seed")


def _differences(
    path: Path, config: Mapping[str, Any], names: Sequence[str]
) -> list[str]:
    """Describe how the configuration in a folder differs."""
    stored = path / "config.json"
    if not stored.exists():
        return [
            f"{name} exists, but config.json does not"
            for name in names
            if (path / name).exists()
        ]
    try:
        old = json.loads(stored.read_text(encoding="utf-8"))
    except ValueError:
        old = None
    if not isinstance(old, dict):
        return ["its config.json cannot be read"]
    new = _finite(config)
    return [
        f"{name} was {_shown(old.get(name))}, is {_shown(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row)) + "\n"


def _finite(content: Any) -> Any:
    """Return ``content`` as JSON holds it; non-finite numbers become null."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

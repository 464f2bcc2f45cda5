"""The folder that a comparison writes to: its configuration, its log, its results.

Whatever moment a run is stopped at, the folder stays readable: the log grows by whole
lines and forgets one that was cut short, and every other file is written aside and
moved into place.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FILES = ("log.jsonl", "config.json", "results.json", "results.md", "figure.png")


class RunFolder:
    """One comparison on disk.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], overwrite: bool = False):
        """Opens the folder for a configuration, and makes it if it is not there.

        Args:
          path: the folder.
          config: what a comparison in this folder is made with, as JSON holds it.
          overwrite: whether to remove another comparison that is there.

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
        """Takes out of the log what unfinished runs have left: they start anew."""
        done = {run_id(row) for row in finished_runs(self.path)}
        kept = [
            row
            for row in read_log(self.path)
            if "seed" not in row or run_id(row) in done
        ]
        self.write_text("log.jsonl", "".join(map(_line, kept)))

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row to the log, on disk when this returns."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(_line(row))

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file into the folder."""
        text = json.dumps(_finite(content), indent=2) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file into the folder."""
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write to, which becomes the file ``name`` once it is whole."""
        aside = self.path / f".{name}"
        yield aside
        os.replace(aside, self.path / name)


def check_folder(
    path: Path, config: Mapping[str, Any], parts: Sequence[str] = ()
) -> None:
    """Makes sure that a folder is free for a configuration; nothing is written.

    Args:
      path: the folder, which need not be there.
      config: what a comparison in this folder is made with, as JSON holds it.
      parts: what a comparison has in it besides ``FILES``.

    Raises:
      ValueError: if ``path`` is a file, or holds a comparison with another
        configuration.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {path} is a file; name a folder")
    if differences := _differences(path, config, (*FILES, *parts)):
        raise ValueError(
            f"{path} holds another run: {'; '.join(differences)}. Give --overwrite to "
            "replace it, another --output, or the options it was made with"
        )


def default_output(program: str, recipe: str, *given: str | float | None) -> Path:
    """The folder of a run that is given none: one for each recipe.

    Args:
      program: what trains it.
      recipe: its name.
      *given: what else was chosen, to stand behind the name; None where it was not.

    Returns:
      A path like ``runs/cifar/rigl_wrn22_2-0.95``.
    """
    chosen = (x for x in given if x is not None)
    parts = [x if isinstance(x, str) else f"{x:g}" for x in chosen]
    return Path("runs", program, "-".join([recipe, *parts]))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log in a folder; none if there is no log."""
    log = folder / "log.jsonl"
    rows = []
    if log.exists():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a line cut short
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def finished_runs(folder: Path) -> list[dict[str, Any]]:
    """The rows that end a run, in the order of the log."""
    return [row for row in read_log(folder) if row.get("event") == "run"]


def run_id(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row of the log belongs to: a method, its correction and a seed."""
    return row.get("method"), row.get("correction"), row.get("seed")


def _differences(
    path: Path, config: Mapping[str, Any], names: Sequence[str]
) -> list[str]:
    """What the configuration in a folder has otherwise, in words."""
    stored = path / "config.json"
    if not stored.exists():
        return [
            f"{name} is there, but no config.json"
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
    """``content`` as JSON holds it; a number that is not finite becomes null."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

"""Notebooks as pairs: a script in percent format, and a notebook made from it.

The script is written, reviewed and linted: `# %%` begins a code cell, `# %% [markdown]`
a text cell, as VS Code, PyCharm and Jupytext read them. The notebook, for Jupyter and
GitHub, has the same cells with their printed output and figures. Cells are run by
`exec`, so neither Jupyter nor its kernels are needed.
"""

import ast
import base64
import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
NAMES = (
    "digits",
    "moving_topology",
    "compact_transformer",
    "weight_sparse_transformer",
    "prune_trained",
)
_CELL = re.compile(r'^# %%(?P<text> \[markdown\])?(?: tags=\["(?P<tag>\w+)"\])?$')


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a notebook.

    Attributes:
      source: its code, or its Markdown.
      is_text: whether it is Markdown.
      tag: `"parameters"` for the constants that a shorter run replaces, `"result"` for
        the figure that the notebook opens with; else empty.
    """

    source: str
    is_text: bool = False
    tag: str = ""


def script(name: str) -> Path:
    """Return the path of a notebook's script."""
    return FOLDER / f"{name}.py"


def notebook(name: str) -> Path:
    """Return the path of the notebook itself, with its outputs."""
    return FOLDER / f"{name}.ipynb"


def picture(name: str) -> Path:
    """Return the path of the figure that the notebook opens with."""
    return FOLDER / "images" / f"{name}.png"


def parse(text: str) -> list[Cell]:
    """Return the cells of a script in percent format.

    Raises:
      ValueError: if the script does not begin with a cell.
    """
    cells: list[tuple[re.Match[str], list[str]]] = []
    for line in text.splitlines():
        if begin := _CELL.match(line):
            cells.append((begin, []))
        elif not cells:
            raise ValueError(f"a script must begin with a cell, '# %%', got {line!r}")
        else:
            cells[-1][1].append(line)
    return [
        Cell(
            _source(lines, is_text=bool(begin["text"])),
            bool(begin["text"]),
            begin["tag"] or "",
        )
        for begin, lines in cells
    ]


def _source(lines: Sequence[str], *, is_text: bool) -> str:
    if is_text:
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    return "\n".join(lines).strip("\n")


def execute(
    cells: Sequence[Cell], replaced: Mapping[str, Any]
) -> list[list[dict[str, Any]]]:
    """Run the code of all cells, and return the outputs of each.

    Args:
      cells: cells from `parse`.
      replaced: new values of constants in the cell `"parameters"`, by name.

    Raises:
      ValueError: if that cell does not set a constant to be replaced.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    outputs: list[list[dict[str, Any]]] = []
    for cell in cells:
        outputs.append([] if cell.is_text else _run(cell.source, space))
        if cell.tag == "parameters":
            if unknown := replaced.keys() - space.keys():
                raise ValueError(f"not parameters of the notebook: {sorted(unknown)}")
            space.update(replaced)
    return outputs


def _run(source: str, space: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell, and return its printed output, its last value and its figures."""
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), space)
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
        else:
            exec(compile(tree, "cell", "exec"), space)
            value = None
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines(text)})
    figures = [plt.figure(number) for number in plt.get_fignums()]
    if isinstance(value, Figure):
        figures.append(value)
    outputs += [_drawn(figure) for figure in figures]
    plt.close("all")
    return outputs


def _drawn(figure: Figure) -> dict[str, Any]:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80, metadata={"Software": None})
    png = base64.b64encode(file.getvalue()).decode()
    data = {"image/png": png, "text/plain": ["<Figure>"]}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def lines(text: str) -> list[str]:
    """Split a text into lines, as notebooks store it."""
    return text.splitlines(keepends=True)


def as_json(cells: Sequence[Cell], outputs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return a notebook of nbformat 4.5."""
    count, listed = 0, []
    for number, (cell, shown) in enumerate(zip(cells, outputs, strict=True)):
        entry: dict[str, Any] = {
            "cell_type": "markdown" if cell.is_text else "code",
            "id": f"cell-{number}",
            "metadata": {"tags": [cell.tag]} if cell.tag else {},
            "source": lines(cell.source),
        }
        if not cell.is_text:
            count += 1
            entry |= {"execution_count": count, "outputs": list(shown)}
        listed.append(entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": listed,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def store(name: str) -> None:
    """Execute a script in full and write its notebook and its figure."""
    cells = parse(script(name).read_text(encoding="utf-8"))
    outputs = execute(cells, {})
    (result,) = (
        shown
        for cell, shown in zip(cells, outputs, strict=True)
        if cell.tag == "result"
    )
    (png,) = (x["data"]["image/png"] for x in result if "data" in x)
    picture(name).parent.mkdir(exist_ok=True)
    picture(name).write_bytes(base64.b64decode(png))
    text = json.dumps(as_json(cells, outputs), indent=1, ensure_ascii=False)
    notebook(name).write_text(text + "\n", encoding="utf-8")

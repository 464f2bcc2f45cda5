"""The gallery: stored notebooks as pages, with their printed output and figures."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = "examples/notebooks"


def on_config(config: Any) -> None:
    """Put the gallery into the menu, after the tutorials."""
    pages = [
        {read(path)["cells"][0]["source"][0].strip("# \n"): f"gallery/{path.stem}.md"}
        for path in notebooks()
    ]
    after = [list(entry) for entry in config.nav].index(["Tutorials"]) + 1
    if pages:
        config.nav.insert(after, {"Gallery": pages})


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook, the notebook itself, and its pictures."""
    for path in notebooks():
        notebook = read(path)
        page = f"gallery/{path.stem}.md"
        files.append(
            File.generated(config, page, content=markdown(notebook, path.name))
        )
        place = f"gallery/{path.name}"
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for path in sorted((ROOT / NOTEBOOKS).glob("images/*.png")):
        place = f"gallery/images/{path.name}"
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def notebooks() -> list[Path]:
    """Return the paths of the stored notebooks."""
    return sorted((ROOT / NOTEBOOKS).glob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    """Return a notebook's cells and their outputs."""
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(notebook: dict[str, Any], name: str) -> str:
    r"""Return a notebook as a page, with a link to the notebook after its title.

    >>> text = {"cell_type": "markdown", "source": ["# A\n", "\n", "B"]}
    >>> output = {"output_type": "stream", "text": ["2\n"]}
    >>> code = {"cell_type": "code", "source": ["print(2)"], "outputs": [output]}
    >>> print(markdown({"cells": [text, code]}, "a.ipynb"))
    # A
    <BLANKLINE>
    [Download the notebook](a.ipynb)
    <BLANKLINE>
    B
    <BLANKLINE>
    ```python
    print(2)
    ```
    <BLANKLINE>
    ```text
    2
    ```
    """
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts.append(f"```python\n{source}\n```")
            parts += [_output(output) for output in cell["outputs"]]
    title, _, rest = "\n\n".join(filter(None, parts)).partition("\n")
    return f"{title}\n\n[Download the notebook]({name})\n{rest}"


def _output(output: dict[str, Any]) -> str:
    """Return the printed output of a cell, or its figure."""
    data = output.get("data", {})
    if "image/png" in data:
        png = "".join("".join(data["image/png"]).split())
        return (
            f'<p><img alt="What the cell draws" src="data:image/png;base64,{png}"></p>'
        )
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""

"""Pages and docstrings as the site shows them."""

import re
import textwrap
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "studies/results"

_BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pictures that stand beside the results they are drawn from."""
    for picture in sorted(ROOT.glob(f"{RESULTS}/**/*.png")):
        place = picture.relative_to(ROOT / RESULTS)
        files.append(
            File.generated(config, f"results/{place}", abs_src_path=str(picture))
        )
    return files


def on_page_markdown(markdown: str, **options: Any) -> str:
    r"""A page as the site has it.

    Code blocks lose the names by which tests find them, programs that are not on the
    site their links, and pictures of results are found where ``on_files`` puts them.

    >>> print(on_page_markdown("```python host\n1\n```"))
    ```python
    1
    ```
    >>> on_page_markdown("[`a.py`](../examples/a.py) ![b](../studies/results/b.png)")
    '`a.py` ![b](results/b.png)'
    """
    del options
    markdown = re.sub(r"^```python \w+$", "```python", markdown, flags=re.MULTILINE)
    markdown = markdown.replace(f"](../{RESULTS}/", "](results/")
    return re.sub(r"\[(`[^`]+`)\]\(\.\./[^)]*\)", r"\1", markdown)


class Formulas(griffe.Extension):
    """Writes what Sphinx would set as formulas so that Markdown leaves it whole."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Called for every object that was read."""
        del options
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)


def shown(docstring: str) -> str:
    r"""A docstring with its formulas as code.

    >>> print(shown("So:\n\n.. math::\n  a = b\n\nwith :math:`b`.\n"))
    So:
    <BLANKLINE>
    ```text
    a = b
    ```
    <BLANKLINE>
    with `b`.
    """

    def block(found: re.Match[str]) -> str:
        formula = textwrap.dedent(found[2]).strip()
        lines = ["```text", *formula.splitlines(), "```", "", ""]
        return "\n".join(found[1] + line if line else line for line in lines)

    blocks = _BLOCK.sub(block, docstring + "\n").rstrip()
    return _INLINE.sub(r"`\1`", blocks)

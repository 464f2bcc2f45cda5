"""Pages and docstrings as the site shows them."""

import re
import textwrap
from typing import Any

import griffe

_BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")


def on_page_markdown(markdown: str, **options: Any) -> str:
    """Takes the names off code blocks, by which tests find them."""
    del options
    return re.sub(r"^```python \w+$", "```python", markdown, flags=re.MULTILINE)


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

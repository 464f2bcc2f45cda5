"""Formulas as MathML, which browsers render without scripts, fonts or a network.

Docstrings write formulas as Sphinx does, pages as GitHub renders them: a block is
fenced as ``math``, and an inline formula is written between ``$` `` and `` `$``.
"""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml import converter
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

_BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")


def on_config(config: Any) -> None:
    """Add formulas to the Markdown of all pages."""
    config.markdown_extensions.append(InlineFormulas())
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "math", "format": fenced}]
    }


class Formulas(griffe.Extension):
    """Convert the formulas of docstrings to those of pages."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Convert the docstring of an object that was read."""
        del options
        if obj.docstring is not None:
            obj.docstring.value = from_sphinx(obj.docstring.value)


class InlineFormulas(Extension):
    """Inline formulas."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the pattern before that of inline code, which has priority 190."""
        md.inlinePatterns.register(_Inline(r"\$`([^`]+)`\$", md), "formula", 195)


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        del data
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


def fenced(source: str, *arguments: Any, **options: Any) -> str:
    """Return a fenced formula, in a box that scrolls if it is wider than the page."""
    del arguments, options
    return f'<div class="formula">{mathml(source, block=True)}</div>'


def from_sphinx(docstring: str) -> str:
    r"""Return a docstring with its formulas written as on pages.

    >>> print(from_sphinx("So:\n\n.. math::\n  a = b\n\nwith :math:`b`.\n"))
    So:
    <BLANKLINE>
    ```math
    a = b
    ```
    <BLANKLINE>
    with $`b`$.
    """

    def block(found: re.Match[str]) -> str:
        formula = textwrap.dedent(found[2]).strip()
        lines = ["```math", *formula.splitlines(), "```", "", ""]
        return "\n".join(found[1] + line if line else line for line in lines)

    blocks = _BLOCK.sub(block, docstring + "\n").rstrip()
    return _INLINE.sub(r"$`\1`$", blocks)


def mathml(formula: str, *, block: bool = False) -> str:
    r"""Return a formula as MathML; raise if a LaTeX command is unknown.

    >>> mathml("a").partition(">")[2]
    '<mrow><mi>a</mi></mrow></math>'
    >>> mathml(r"\nosuch")
    Traceback (most recent call last):
    ValueError: cannot convert \nosuch in the formula \nosuch
    """
    source = formula.strip()
    if block and "&" in source and r"\begin" not in source:
        source = rf"\begin{{aligned}}{source}\end{{aligned}}"  # as in Sphinx
    # Function names are words: single letters would be spaced out and in italics.
    source = re.sub(r"\\mathrm\{([^{}]|\\text\{[^{}]*\})+\}", _as_text, source)
    drawn = converter.convert(source, display="block" if block else "inline")
    left = re.search(r"\\\w+", re.sub(r"<[^>]*>", " ", drawn))
    if left:
        raise ValueError(f"cannot convert {left[0]} in the formula {formula}")
    return drawn


def _as_text(found: re.Match[str]) -> str:
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", found[0].removeprefix(r"\mathrm"))
    return rf"\text{words}"

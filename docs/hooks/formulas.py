"""Formulas as MathML: browsers set it without scripts, fonts or a network.

Docstrings have them as Sphinx does. Pages have them as GitHub shows them: a block is
fenced as ``math``, and a formula within a line stands between ``$` `` and `` `$``.
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
    """Adds formulas to the Markdown of all pages."""
    config.markdown_extensions.append(InlineFormulas())
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "math", "format": fenced}]
    }


class Formulas(griffe.Extension):
    """Writes the formulas of docstrings as those of pages."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Called for every object that was read."""
        del options
        if obj.docstring is not None:
            obj.docstring.value = from_sphinx(obj.docstring.value)


class InlineFormulas(Extension):
    """Formulas within a line."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Registers the pattern before the one of inline code, which has 190."""
        md.inlinePatterns.register(_Inline(r"\$`([^`]+)`\$", md), "formula", 195)


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        del data
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


def fenced(source: str, *arguments: Any, **options: Any) -> str:
    """A fenced formula, in a box that scrolls where it is wider than the page."""
    del arguments, options
    return f'<div class="formula">{mathml(source, block=True)}</div>'


def from_sphinx(docstring: str) -> str:
    r"""A docstring with its formulas as pages have them.

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
    r"""A formula as MathML; raises where a command of LaTeX is not known.

    >>> mathml("a").partition(">")[2]
    '<mrow><mi>a</mi></mrow></math>'
    >>> mathml(r"\nosuch")
    Traceback (most recent call last):
    ValueError: what is left of \nosuch in the formula \nosuch
    """
    source = formula.strip()
    if block and "&" in source and r"\begin" not in source:
        source = rf"\begin{{aligned}}{source}\end{{aligned}}"  # as Sphinx takes it
    # Function names are words: one letter each would be set apart and in italics.
    source = re.sub(r"\\mathrm\{([^{}]|\\text\{[^{}]*\})+\}", _as_text, source)
    drawn = converter.convert(source, display="block" if block else "inline")
    left = re.search(r"\\\w+", re.sub(r"<[^>]*>", " ", drawn))
    if left:
        raise ValueError(f"what is left of {left[0]} in the formula {formula}")
    return drawn


def _as_text(found: re.Match[str]) -> str:
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", found[0].removeprefix(r"\mathrm"))
    return rf"\text{words}"
